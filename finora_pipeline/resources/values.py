"""What steps hand to each other: nothing. They meet in the warehouse."""

import dagster as dg
from dagster import InMemoryIOManager


@dg.io_manager(config_schema={}, description="No value passes from step to step.")
def no_values(_: dg.InitResourceContext) -> InMemoryIOManager:
    """In place of Dagster's default, which unpickles what lies in any folder that a launched run names."""
    return InMemoryIOManager()
