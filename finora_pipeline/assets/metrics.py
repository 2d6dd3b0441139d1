"""Metrics: what the facts add up to, by model and by user."""

import time
from datetime import UTC, datetime

import dagster as dg

from finora_pipeline.assets.facts import daily_costs, daily_usage
from finora_pipeline.assets.metadata import table_description, table_metadata
from finora_pipeline.assets.user_history import user_history
from finora_pipeline.resources.accounts import AccountsResource
from finora_pipeline.resources.warehouse import WarehouseResource
from finora_pipeline.warehouse.metrics import refresh_daily_model_costs, refresh_user_metrics


@dg.asset(
    deps=[daily_costs, daily_usage, user_history],
    group_name="metrics",
    kinds={"duckdb"},
    description=table_description("daily_model_costs"),
    metadata=table_metadata("daily_model_costs"),
)
def daily_model_costs(accounts: AccountsResource, warehouse: WarehouseResource) -> dg.MaterializeResult:
    started = time.monotonic()
    today = datetime.now(UTC).date()
    days = refresh_daily_model_costs(warehouse.warehouse, accounts.accounts.user_ids(), today)
    return dg.MaterializeResult(
        metadata={"recomputed user-days": days, "seconds": round(time.monotonic() - started, 3)}
    )


@dg.asset(
    deps=[daily_model_costs],
    group_name="metrics",
    kinds={"duckdb"},
    description=table_description("user_metrics"),
    metadata=table_metadata("user_metrics"),
)
def user_metrics(warehouse: WarehouseResource) -> dg.MaterializeResult:
    started = time.monotonic()
    rows = refresh_user_metrics(warehouse.warehouse, datetime.now(UTC).date())
    return dg.MaterializeResult(
        metadata={"dagster/row_count": rows, "seconds": round(time.monotonic() - started, 3)}
    )
