"""The warehouse as a Dagster resource."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from finora_pipeline.liveness import hold
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.rebuild import bring_up_to_date
from finora_pipeline.warehouse.warehouse import Warehouse


class WarehouseResource(dg.ConfigurableResource):
    """Raw pages, facts, metrics and the published copy below one data folder."""

    home: str = Field(description="Data folder (FINORA_HOME)")

    @classmethod
    def of(cls, settings: Settings) -> "WarehouseResource":
        return cls(home=str(settings.home))

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        # The first resource that any of our runs asks for.
        if context.run:
            hold(Path(self.home), context.run.run_id)
            bring_up_to_date(self.warehouse)

    @property
    def warehouse(self) -> Warehouse:
        return Warehouse(Path(self.home))
