"""Files of the data folder: their modes and owners, storage errors as sentences, and locks of runs.

What the files hold belongs elsewhere (`accounts`, `warehouse`, `instance`). Nothing here imports Dagster.
"""
