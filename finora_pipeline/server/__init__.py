"""The processes of `finora up`: the supervisor, health and metrics, Dagster's UI behind a guard, the docs.

The dashboard's own pages belong in `dashboard`, Dagster's private interfaces in `instance`.
"""
