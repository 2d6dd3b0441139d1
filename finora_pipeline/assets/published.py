"""Serving: the snapshot that analysts and the dashboard read."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime

import dagster as dg

from finora_pipeline.accounts.model import Connection
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.metadata import OWNERS, cost_plot, docs, markdown_table
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.plans import PLANS
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.publish import Published

USERS_SHOWN = 50
# The plan with the longest limit: the policy judges the asset as a whole.
SLOWEST_PLAN = max(PLANS.values(), key=lambda plan: plan.late_after)


@dg.asset(
    deps=["user_metrics", "reconciliation"],
    group_name="serving",
    owners=OWNERS,
    metadata=docs("analysts"),
    kinds={"duckdb", "parquet"},
    description="`finora.duckdb`, swapped in as a whole so that readers never wait, and the same tables as "
    "Parquet with a manifest: facts, metrics and the state of the connections, without secrets.",
    # Judges the asset as a whole; the check `every_promise_kept` judges each user.
    freshness_policy=dg.FreshnessPolicy.time_window(
        fail_window=SLOWEST_PLAN.late_after, warn_window=SLOWEST_PLAN.refresh_interval
    ),
    check_specs=[
        dg.AssetCheckSpec(
            "published_equals_warehouse",
            asset="published",
            description="The published snapshot equals the warehouse: rows of every cost table, dollars of "
            "the last days.",
        ),
        dg.AssetCheckSpec(
            "every_promise_kept",
            asset="published",
            description="No active connection is late: past the promised next refresh plus its plan's lead.",
        ),
    ],
)
def published(
    accounts: dg.ResourceParam[Accounts], warehouse: dg.ResourceParam[Warehouse]
) -> dg.MaterializeResult:
    started = time.monotonic()
    snapshot = publish_refreshes(accounts, warehouse)
    return dg.MaterializeResult(
        metadata={
            "file": dg.PathMetadataValue(snapshot.database),
            "megabytes": round(snapshot.bytes / 1e6, 3),
            "parquet files written": snapshot.months,
            "dollars per day": cost_plot(snapshot.daily_usd),
            "repaired": snapshot.repair.message if snapshot.repair else "nothing",
            "seconds": round(time.monotonic() - started, 3),
        },
        check_results=[
            snapshot_check(snapshot),
            promise_check(accounts.connections.all(), datetime.now(UTC)),
        ],
    )


def snapshot_check(snapshot: Published) -> dg.AssetCheckResult:
    """Fails if the published snapshot differs from the warehouse."""
    rows = [(table, held, published) for table, (held, published) in snapshot.different.items()]
    return dg.AssetCheckResult(
        check_name="published_equals_warehouse",
        asset_key="published",
        passed=not snapshot.different,
        metadata={"tables that differ": markdown_table(("table", "warehouse", "published"), rows)},
    )


def promise_check(connections: Iterable[Connection], now: datetime) -> dg.AssetCheckResult:
    """Warns of late connections (`Connection.is_late`)."""
    late = sorted((c for c in connections if c.is_late(now)), key=lambda connection: connection.user_id)
    rows = [(c.user_id, c.plan.name, f"{c.next_refresh_at:%Y-%m-%d %H:%M}") for c in late[:USERS_SHOWN]]
    return dg.AssetCheckResult(
        check_name="every_promise_kept",
        asset_key="published",
        passed=not late,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "late users": len(late),
            "users": markdown_table(("user", "plan", "next refresh due by"), rows),
        },
    )
