"""Dagster assets, thin: ask the resources, call one function of the domain, return its counts."""

import warnings

import dagster as dg

# `backfill_policy` is still marked beta; every process would print the warning.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
