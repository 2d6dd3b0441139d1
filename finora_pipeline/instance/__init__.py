"""Dagster's instance: storage, run launcher, retention. The only folder that may import `dagster._*`.

A test names each private thing that is used. Nothing here knows what the runs do.
"""
