"""Dagster's instance: storage, run launcher, processes, retention; the only folder to import `dagster._*`.

A test lists every private name in use. What the runs do belongs in `assets` and `jobs.py`.
"""
