"""Dagster assets and their checks: get the resources, call one function of the domain, return its counts.

Work on data belongs in `ingest` and `warehouse`, jobs and run config in `jobs.py`.
"""

import warnings

import dagster as dg

# `backfill_policy` is still marked beta; every process would print a warning.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
