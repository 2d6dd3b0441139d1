"""Raw pages: OpenAI's responses for a range of days and every selected user, verbatim on disk."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta

import dagster as dg
from pydantic import Field

from finora_pipeline.accounts.model import Connection
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.metadata import OWNERS, docs, fetched_metadata
from finora_pipeline.assets.partitions import DAYS
from finora_pipeline.ingest.fetch import FetchPlan, OnUserDone
from finora_pipeline.ingest.landing import Fetched
from finora_pipeline.ingest.run import fetch_and_land
from finora_pipeline.ingest.selection import already_fetched, select_connections
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.database import Warehouse

COST_PAGES = dg.AssetKey("raw_openai_cost_pages")
# The name keeps the word of earlier versions.
FETCH_CHECK = "every_connection_read"
USAGE_PAGES = dg.AssetKey("raw_openai_usage_pages")
# How often a run logs the progress of its fetch.
PROGRESS_SECONDS = 10.0
# A run resumes an interrupted one only within this time; older pages are fetched again.
RESUME_SECONDS = 3 * 3600


class RefreshConfig(dg.Config):
    """The users a refresh fetches: by default every connection."""

    plan: str | None = Field(
        default=None, description="Only users of this plan: trial, growth, scale, enterprise"
    )
    users: list[str] = Field(default=[], description="Only these user ids, even if they need attention")
    only_due: bool = Field(
        default=False, description="Only those whose plan's promise would otherwise break soon"
    )


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            COST_PAGES,
            description="Pages of OpenAI's costs endpoint as received: by project and line item, in total, "
            "and by member and API key if the organization's API allows it. "
            "Parquet, one row per page; only complete page sets land.",
            kinds={"openai", "parquet"},
            owners=OWNERS,
            metadata=docs("faults"),
        ),
        dg.AssetSpec(
            USAGE_PAGES,
            description="Pages of OpenAI's usage endpoints as received, grouped by project, member, "
            "API key, model, batch and service tier. "
            "Parquet, one row per page; only complete page sets land.",
            kinds={"openai", "parquet"},
            owners=OWNERS,
            metadata=docs("faults"),
        ),
    ],
    name="raw_openai_pages",
    group_name="raw",
    partitions_def=DAYS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=[
        dg.AssetCheckSpec(
            FETCH_CHECK,
            asset=COST_PAGES,
            description="Every user's costs and usage were fetched.",
        )
    ],
)
def raw_openai_pages(
    context: dg.AssetExecutionContext,
    config: RefreshConfig,
    accounts: dg.ResourceParam[Accounts],
    openai_admin: dg.ResourceParam[OpenAIAdmin],
    warehouse: dg.ResourceParam[Warehouse],
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    started = time.monotonic()
    connections = select_connections(
        accounts,
        plan=config.plan,
        user_ids=config.users,
        skip_missing=True,
        only_due=config.only_due,
    )
    time_window = context.partition_time_window
    asked = Window(time_window.start.date(), min(time_window.end.date(), _tomorrow()))
    fetched = fetch_connections(
        context, connections, asked, accounts, openai_admin, warehouse, retry_parts=bool(config.users)
    )
    seconds = time.monotonic() - started
    endpoints = (COSTS, *openai_admin.endpoints)
    for key, is_costs in ((COST_PAGES, True), (USAGE_PAGES, False)):
        names = ", ".join(endpoint.name for endpoint in endpoints if endpoint.is_costs is is_costs)
        yield dg.MaterializeResult(asset_key=key, metadata=fetched_metadata(fetched, names, seconds))
    yield fetch_check(fetched)


def fetch_connections(
    context: dg.AssetExecutionContext,
    connections: Sequence[Connection],
    asked: Window,
    accounts: Accounts,
    openai_admin: OpenAIAdmin,
    warehouse: Warehouse,
    retry_parts: bool,
) -> Fetched:
    """Fetch and land these days of these connections.

    A run that retries an interrupted one continues where that one stopped. `retry_parts` fetches optional
    parts that failed recently without waiting for their next attempt.
    """
    if parent := _interrupted_parent(context):
        done = already_fetched(accounts, parent, connections, asked)
        context.log.info(f"Run {parent} already fetched {len(done)} of {len(connections)} users.")
        connections = [c for c in connections if c.user_id not in done]
    plan = FetchPlan.of(
        connections,
        asked,
        datetime.now(UTC).date(),
        endpoints=openai_admin.endpoints,
        with_directory=openai_admin.directory,
        failures=accounts.refreshes.part_failures([connection.user_id for connection in connections]),
        retry_parts=retry_parts,
    )
    return fetch_and_land(
        context.run.run_id, plan, accounts, openai_admin, warehouse, progress_log(context.log)
    )


def fetch_check(fetched: Fetched) -> dg.AssetCheckResult:
    """Fails with a warning if some users failed, with an error if all did."""
    all_failed = fetched.users > 0 and len(fetched.failures) == fetched.users
    return dg.AssetCheckResult(
        check_name=FETCH_CHECK,
        asset_key=COST_PAGES,
        passed=not fetched.failures,
        severity=dg.AssetCheckSeverity.ERROR if all_failed else dg.AssetCheckSeverity.WARN,
        description=f"{len(fetched.failures)} of {fetched.users} users failed.",
    )


def _interrupted_parent(context: dg.AssetExecutionContext) -> str | None:
    """The run that this one retries, if it failed or was canceled within `RESUME_SECONDS`."""
    parent = context.run.parent_run_id
    record = parent and context.instance.get_run_record_by_id(parent)
    if not record or record.dagster_run.status not in (
        dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.CANCELED,
    ):
        return None
    ended = record.end_time or record.start_time or 0
    return parent if time.time() - ended <= RESUME_SECONDS else None


def progress_log(log: dg.DagsterLogManager) -> OnUserDone:
    """A callback that logs the number of finished users every `PROGRESS_SECONDS`."""
    logged_at = time.monotonic()

    def on_user_done(done: int, total: int, failed: int) -> None:
        nonlocal logged_at
        if time.monotonic() - logged_at >= PROGRESS_SECONDS:
            logged_at = time.monotonic()
            log.info(f"{done:,} of {total:,} users fetched, {failed:,} failed.")

    return on_user_done


def _tomorrow() -> date:
    return datetime.now(UTC).date() + timedelta(days=1)
