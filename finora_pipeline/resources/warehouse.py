"""The warehouse as a Dagster resource."""

import dagster as dg

from finora_pipeline.data_folder.run_locks import hold
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.rebuild import bring_up_to_date


def warehouse_resource(settings: Settings) -> dg.ResourceDefinition:
    """The warehouse in the installation's data folder."""

    @dg.resource(config_schema={}, description="Raw pages, facts, metrics and the published snapshot.")
    def warehouse(context: dg.InitResourceContext) -> Warehouse:
        opened = Warehouse(settings.home)
        # All our runs require this resource before they change anything.
        if context.run:
            hold(settings.home, context.run.run_id)
            bring_up_to_date(opened)
        return opened

    return warehouse
