"""Nightly upkeep: deletes expired days and replaced raw pages, folds old revisions, sorts rows by user."""

import time
from datetime import UTC, datetime

import dagster as dg

from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.metadata import OWNERS, docs, markdown_table
from finora_pipeline.assets.partitions import USERS_NAME
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.instance.run_retention import RUNS_KEPT, delete_partitions, prune_runs
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.folding import fold_revisions
from finora_pipeline.warehouse.periods import EXACT_DAYS
from finora_pipeline.warehouse.retention import RAW_PAGES_KEPT, cluster, prune, thin


@dg.asset(
    group_name="upkeep",
    owners=OWNERS,
    metadata=docs("operations"),
    kinds={"duckdb", "parquet"},
    description="Deletes expired days, a week after they expired or the plan changed, and raw pages no fact "
    f"depends on; folds revisions older than {EXACT_DAYS} days to one a UTC day; sorts the month's rows by "
    f"user; then publishes. Of Dagster's records it deletes runs older than {RUNS_KEPT.days} days, and the "
    "partitions of purged users.",
)
def retention(
    context: dg.AssetExecutionContext,
    accounts: dg.ResourceParam[Accounts],
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.MaterializeResult:
    started = time.monotonic()
    now = datetime.now(UTC)
    pruned = prune(warehouse, lambda: accounts.users.kept_from(now))
    thinned = thin(warehouse, (now - RAW_PAGES_KEPT).date())
    folded = fold_revisions(warehouse, now)
    clustered = cluster(warehouse, now.date())
    if pruned.rows or folded or clustered:
        publish_refreshes(accounts, warehouse)
    partitions = set(context.instance.get_dynamic_partitions(USERS_NAME))
    delete_partitions(context.instance, USERS_NAME, partitions.difference(accounts.users.ids()))
    runs = prune_runs(context.instance, now - RUNS_KEPT)
    rows = [(table, f"{count:,}") for table, count in sorted(pruned.rows.items())]
    return dg.MaterializeResult(
        metadata={
            "rows removed": markdown_table(("table", "rows"), rows),
            "rows sorted": clustered,
            "revisions folded": folded,
            "raw files removed": thinned.files_removed,
            "raw files rewritten": thinned.files_rewritten,
            "megabytes freed": round(thinned.bytes_freed / 1e6, 3),
            "runs removed": runs,
            "seconds": round(time.monotonic() - started, 3),
        }
    )
