"""Raw pages: what OpenAI says about a range of days, for every user that is due, verbatim on disk."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from finora_pipeline.accounts.model import Connection
from finora_pipeline.assets.metadata import fetched_metadata
from finora_pipeline.assets.partitions import DAYS
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.refresh.fetch import Fetched, ProgressCallback, fetch, select_connections
from finora_pipeline.resources.accounts import AccountsResource
from finora_pipeline.resources.openai_admin import OpenAIAdminResource
from finora_pipeline.resources.warehouse import WarehouseResource
from finora_pipeline.warehouse.load import load_ahead, newest_sets
from finora_pipeline.warehouse.raw import RawPages

COST_PAGES = dg.AssetKey("raw_openai_cost_pages")
READ_CHECK = "every_connection_read"
USAGE_PAGES = dg.AssetKey("raw_openai_usage_pages")


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
        ),
        dg.AssetSpec(
            USAGE_PAGES,
            description="Pages of OpenAI's usage endpoints as received, grouped by project, member, "
            "API key, model, batch and service tier. "
            "Parquet, one row a page; a page set lands only when it is complete.",
            kinds={"openai", "parquet"},
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
    accounts: AccountsResource,
    openai_admin: OpenAIAdminResource,
    warehouse: WarehouseResource,
    on_progress: dg.ResourceParam[ProgressCallback],
) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
    started = time.monotonic()
    connections = select_connections(
        accounts.accounts,
        plan=config.plan,
        user_ids=config.users,
        skip_missing=True,
        only_due=config.only_due,
    )
    time_window = context.partition_time_window
    asked = Window(time_window.start.date(), min(time_window.end.date(), _tomorrow()))
    fetched = fetch_and_land(
        context.run.run_id, connections, asked, accounts, openai_admin, warehouse, on_progress
    )
    seconds = time.monotonic() - started
    read = (COSTS, *openai_admin.readings)
    for key, is_costs in ((COST_PAGES, True), (USAGE_PAGES, False)):
        names = ", ".join(endpoint.name for endpoint in read if endpoint.is_costs is is_costs)
        yield dg.MaterializeResult(asset_key=key, metadata=fetched_metadata(fetched, names, seconds))
    yield read_check(fetched)


def fetch_and_land(
    run_id: str,
    connections: Sequence[Connection],
    asked: Window,
    accounts: AccountsResource,
    openai_admin: OpenAIAdminResource,
    warehouse: WarehouseResource,
    on_progress: ProgressCallback,
) -> Fetched:
    """Runs the asynchronous fetch to its end."""

    user_ids = [connection.user_id for connection in connections]
    known = newest_sets(warehouse.warehouse, user_ids)

    async def run() -> Fetched:
        async with openai_admin.organizations(user_ids) as organizations:
            return await fetch(
                accounts.accounts,
                organizations,
                RawPages(warehouse.warehouse.raw),
                connections,
                asked,
                datetime.now(UTC).date(),
                run_id,
                on_progress,
                openai_admin.readings,
                openai_admin.directory,
                lambda: load_ahead(warehouse.warehouse),
                known,
            )

    return asyncio.run(run())


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


def _tomorrow():
    return datetime.now(UTC).date() + timedelta(days=1)
