"""Dagster resources: domain objects created from the installation's settings, without logic of their own.

Their config schema is strictly empty: a launched run must not choose where keys and data go.
"""
