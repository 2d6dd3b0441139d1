"""Facts: the landed pages as exact rows of a day, a project and a line item or model."""

import time

import dagster as dg

from finora_pipeline.assets.metadata import loaded_metadata, table_description, table_metadata
from finora_pipeline.assets.partitions import DAYS
from finora_pipeline.assets.raw_pages import COST_PAGES, USAGE_PAGES
from finora_pipeline.openai_admin.endpoints import BILLED_KIND, COSTS, DIRECTORY_KIND, USAGE_KIND
from finora_pipeline.resources.warehouse import WarehouseResource
from finora_pipeline.warehouse.load import load_pending


@dg.asset(
    deps=[COST_PAGES],
    group_name="facts",
    kinds={"duckdb"},
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description=table_description("daily_costs"),
    metadata=table_metadata("daily_costs"),
)
def daily_costs(context: dg.AssetExecutionContext, warehouse: WarehouseResource) -> dg.MaterializeResult:
    started = time.monotonic()
    loaded = load_pending(warehouse.warehouse, [COSTS.kind, BILLED_KIND], context.run.run_id)
    return dg.MaterializeResult(metadata=loaded_metadata(loaded, time.monotonic() - started, with_money=True))


@dg.asset(
    deps=[USAGE_PAGES],
    group_name="facts",
    kinds={"duckdb"},
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description=table_description("daily_usage"),
    metadata=table_metadata("daily_usage"),
)
def daily_usage(context: dg.AssetExecutionContext, warehouse: WarehouseResource) -> dg.MaterializeResult:
    started = time.monotonic()
    loaded = load_pending(warehouse.warehouse, [USAGE_KIND, DIRECTORY_KIND], context.run.run_id)
    return dg.MaterializeResult(
        metadata=loaded_metadata(loaded, time.monotonic() - started, with_money=False)
    )
