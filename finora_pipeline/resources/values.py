"""The IO manager for steps, which pass no values to each other: they share the warehouse."""

import dagster as dg
from dagster import InMemoryIOManager


@dg.io_manager(config_schema={}, description="No value passes from step to step.")
def no_values(_: dg.InitResourceContext) -> InMemoryIOManager:
    """Replaces Dagster's default, which unpickles files from any folder that a launched run names."""
    return InMemoryIOManager()
