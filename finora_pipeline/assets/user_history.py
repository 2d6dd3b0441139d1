"""One user's whole history as the plan keeps it: for a new connection, or fetched again."""

import time
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg

from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.metadata import OWNERS, docs, fetched_metadata, loaded_metadata
from finora_pipeline.assets.partitions import USERS
from finora_pipeline.assets.raw_pages import fetch_connections
from finora_pipeline.ingest.selection import select_connections
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending


@dg.asset(
    group_name="history",
    owners=OWNERS,
    metadata=docs("operations"),
    kinds={"openai", "duckdb"},
    partitions_def=USERS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    description="A user's whole history, as far back as the plan keeps it, fetched and loaded into "
    "daily_costs and daily_usage. A new connection starts it automatically; materialize a partition to load "
    "one user's history again.",
)
def user_history(
    context: dg.AssetExecutionContext,
    accounts: dg.ResourceParam[Accounts],
    openai_admin: dg.ResourceParam[OpenAIAdmin],
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.MaterializeResult:
    started = time.monotonic()
    chosen = select_connections(accounts, user_ids=context.partition_keys, skip_missing=True)
    whole = [
        replace(connection, history_from=None, read_until=None, given_from=None) for connection in chosen
    ]
    asked = trailing_window(datetime.now(UTC).date())
    fetched = fetch_connections(context, whole, asked, accounts, openai_admin, warehouse, retry_parts=True)
    loaded = load_pending(warehouse, KINDS, context.run.run_id)
    seconds = time.monotonic() - started
    names = ", ".join(endpoint.name for endpoint in (COSTS, *openai_admin.endpoints))
    return dg.MaterializeResult(
        metadata=loaded_metadata(loaded, seconds, with_money=True)
        | {"usage rows": loaded.usage_rows}
        | fetched_metadata(fetched, names, seconds)
    )
