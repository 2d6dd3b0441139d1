"""Dagster resources: the domain's own objects, made from the installation's settings.

Their configuration is empty, and strictly so: a launched run must not choose where keys and data go.
"""
