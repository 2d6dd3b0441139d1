"""Serving: the copy that analysts and the dashboard read."""

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dagster as dg

from finora_pipeline.accounts.model import Connection, Status
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.metadata import OWNERS, cost_plot, docs, markdown_table
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.plans import PLANS
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.publish import Published

USERS_SHOWN = 50
LONGEST_INTERVAL = max(plan.refresh_interval for plan in PLANS.values())


@dg.asset(
    deps=["user_metrics", "reconciliation"],
    group_name="serving",
    owners=OWNERS,
    metadata=docs("analysts"),
    kinds={"duckdb", "parquet"},
    description="`finora.duckdb`, swapped in whole so that no reader ever waits, and Parquet by month: "
    "facts, metrics and the state of the connections, without secrets.",
    # Knows the asset as a whole; what each user was promised is the check's to tell.
    freshness_policy=dg.FreshnessPolicy.time_window(
        fail_window=LONGEST_INTERVAL, warn_window=LONGEST_INTERVAL - timedelta(hours=1)
    ),
    check_specs=[
        dg.AssetCheckSpec(
            "published_equals_warehouse",
            asset="published",
            description="The copy that readers open holds what the pipeline holds: rows of every cost table, "
            "dollars of the last days.",
        ),
        dg.AssetCheckSpec(
            "every_promise_kept",
            asset="published",
            description="No active connection's data is older than its plan promises.",
        ),
    ],
)
def published(
    accounts: dg.ResourceParam[Accounts], warehouse: dg.ResourceParam[Warehouse]
) -> dg.MaterializeResult:
    started = time.monotonic()
    copy = publish_refreshes(accounts, warehouse)
    return dg.MaterializeResult(
        metadata={
            "file": dg.PathMetadataValue(copy.database),
            "megabytes": round(copy.bytes / 1e6, 3),
            "parquet files written": copy.months,
            "dollars a day": cost_plot(copy.daily_usd),
            "repaired": copy.repair.message if copy.repair else "nothing",
            "seconds": round(time.monotonic() - started, 3),
        },
        check_results=[copy_check(copy), promise_check(accounts.connections.all(), datetime.now(UTC))],
    )


def copy_check(copy: Published) -> dg.AssetCheckResult:
    """Fails if readers do not get what the pipeline holds."""
    rows = [(table, held, got) for table, (held, got) in copy.different.items()]
    return dg.AssetCheckResult(
        check_name="published_equals_warehouse",
        asset_key="published",
        passed=not copy.different,
        metadata={"tables that differ": markdown_table(("table", "held", "published"), rows)},
    )


def promise_check(connections: Iterable[Connection], now: datetime) -> dg.AssetCheckResult:
    """Warns of active connections whose data is older than their plan promises."""
    late = [
        c for c in connections if c.status is Status.ACTIVE and c.next_refresh_at and c.next_refresh_at < now
    ]
    late.sort(key=lambda connection: connection.user_id)
    rows = [(c.user_id, c.plan.name, f"{c.next_refresh_at:%Y-%m-%d %H:%M}") for c in late[:USERS_SHOWN]]
    return dg.AssetCheckResult(
        check_name="every_promise_kept",
        asset_key="published",
        passed=not late,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "users whose data is too old": len(late),
            "who": markdown_table(("user", "plan", "promised until"), rows),
        },
    )
