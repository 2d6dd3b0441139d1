"""Serving: the copy that analysts and the dashboard read."""

import time

import dagster as dg

from finora_pipeline.assets.metrics import user_metrics
from finora_pipeline.refresh.serve import publish_refreshes
from finora_pipeline.resources.accounts import AccountsResource
from finora_pipeline.resources.warehouse import WarehouseResource


@dg.asset(
    deps=[user_metrics],
    group_name="serving",
    kinds={"duckdb", "parquet"},
    description="`finora.duckdb`, swapped in whole so that no reader ever waits, and Parquet by month: "
    "facts, metrics and the state of the connections, without secrets.",
)
def published(accounts: AccountsResource, warehouse: WarehouseResource) -> dg.MaterializeResult:
    started = time.monotonic()
    copy = publish_refreshes(accounts.accounts, warehouse.warehouse)
    return dg.MaterializeResult(
        metadata={
            "file": dg.PathMetadataValue(copy.database),
            "megabytes": round(copy.bytes / 1e6, 3),
            "parquet files written": copy.months,
            "seconds": round(time.monotonic() - started, 3),
        }
    )
