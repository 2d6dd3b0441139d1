"""Raw pages: what OpenAI says about a range of days, for every user that is due, verbatim on disk."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster import DagsterLogManager
from pydantic import Field

from finora_pipeline.accounts.model import Connection
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.metadata import OWNERS, docs, fetched_metadata
from finora_pipeline.assets.partitions import DAYS
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.refresh.fetch import (
    Fetched,
    ProgressCallback,
    read_before,
    select_connections,
)
from finora_pipeline.refresh.read import read_and_land
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.warehouse import Warehouse

COST_PAGES = dg.AssetKey("raw_openai_cost_pages")
READ_CHECK = "every_connection_read"
USAGE_PAGES = dg.AssetKey("raw_openai_usage_pages")
# How often a run's log tells how far the reading is.
PROGRESS_SECONDS = 10.0
# After which what a run has read is too old for another to go on from.
RESUME_SECONDS = 3 * 3600


class RefreshConfig(dg.Config):
    """Whom a refresh reads: by default every connection."""

    plan: str | None = Field(
        default=None, description="Only users of this plan: trial, growth, scale, enterprise"
    )
    users: list[str] = Field(default=[], description="Only these user ids, even if they need attention")
    only_due: bool = Field(
        default=False, description="Only those whose data would soon be older than their plan promises"
    )


@dg.multi_asset(
    specs=[
        dg.AssetSpec(
            COST_PAGES,
            description="Pages of OpenAI's costs endpoint as received: by project and line item, in total, "
            "and by member and API key where the organization's API takes that. "
            "Parquet, one row a page; a page set lands only when it is complete.",
            kinds={"openai", "parquet"},
            owners=OWNERS,
            metadata=docs("faults"),
        ),
        dg.AssetSpec(
            USAGE_PAGES,
            description="Pages of OpenAI's usage endpoints as received, grouped by project, member, "
            "API key, model, batch and service tier. "
            "Parquet, one row a page; a page set lands only when it is complete.",
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
            READ_CHECK,
            asset=COST_PAGES,
            description="Every user's costs and usage could be read.",
        )
    ],
)
def raw_openai_pages(
    context: dg.AssetExecutionContext,
    config: RefreshConfig,
    accounts: dg.ResourceParam[Accounts],
    openai_admin: dg.ResourceParam[OpenAIAdmin],
    warehouse: dg.ResourceParam[Warehouse],
    on_progress: dg.ResourceParam[ProgressCallback],
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
    fetched = fetch_and_land(
        context,
        connections,
        asked,
        accounts,
        openai_admin,
        warehouse,
        on_progress,
        ask_all=bool(config.users),
    )
    seconds = time.monotonic() - started
    read = (COSTS, *openai_admin.readings)
    for key, is_costs in ((COST_PAGES, True), (USAGE_PAGES, False)):
        names = ", ".join(endpoint.name for endpoint in read if endpoint.is_costs is is_costs)
        yield dg.MaterializeResult(asset_key=key, metadata=fetched_metadata(fetched, names, seconds))
    yield read_check(fetched)


def fetch_and_land(
    context: dg.AssetExecutionContext,
    connections: Sequence[Connection],
    asked: Window,
    accounts: Accounts,
    openai_admin: OpenAIAdmin,
    warehouse: Warehouse,
    on_progress: ProgressCallback,
    ask_all: bool,
) -> Fetched:
    """Reads and lands; a run that repeats one that was cut short continues where that one stopped.

    `ask_all` also asks for what was refused or failed a short time ago.
    """
    if parent := _cut_short(context):
        done = read_before(accounts, parent, connections, asked)
        context.log.info(f"{len(done)} of {len(connections)} users were read by run {parent}.")
        connections = [c for c in connections if c.user_id not in done]
    return read_and_land(
        context.run.run_id,
        connections,
        asked,
        accounts,
        openai_admin,
        warehouse,
        _logged(context.log, on_progress),
        ask_all,
    )


def read_check(fetched: Fetched) -> dg.AssetCheckResult:
    """Fails with a warning if some users could not be read, with an error if none could."""
    everybody = fetched.users > 0 and len(fetched.failures) == fetched.users
    return dg.AssetCheckResult(
        check_name=READ_CHECK,
        asset_key=COST_PAGES,
        passed=not fetched.failures,
        severity=dg.AssetCheckSeverity.ERROR if everybody else dg.AssetCheckSeverity.WARN,
        description=f"{len(fetched.failures)} of {fetched.users} users failed.",
    )


def _cut_short(context: dg.AssetExecutionContext) -> str | None:
    """The run that this one repeats, if it did not end well a short time ago."""
    parent = context.run.parent_run_id
    record = parent and context.instance.get_run_record_by_id(parent)
    if not record or record.dagster_run.status not in (
        dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.CANCELED,
    ):
        return None
    ended = record.end_time or record.start_time or 0
    return parent if time.time() - ended <= RESUME_SECONDS else None


def _logged(log: DagsterLogManager, on_progress: ProgressCallback) -> ProgressCallback:
    """The callback, which now and then also tells the run's log how far the reading is."""
    told = time.monotonic()

    def tell(done: int, total: int, failed: int) -> None:
        nonlocal told
        on_progress(done, total, failed)
        if time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            log.info(f"{done:,} of {total:,} users read, {failed:,} failed.")

    return tell


def _tomorrow():
    return datetime.now(UTC).date() + timedelta(days=1)
