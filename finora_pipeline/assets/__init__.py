"""Dagster assets, thin: ask the resources, call one function of the domain, return its counts."""
