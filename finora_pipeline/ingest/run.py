"""Fetching and landing the pages of a single run, on an event loop of its own."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from finora_pipeline.accounts.onboarding import Organizations
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.ingest.fetch import FetchPlan, OnUserDone, fetch
from finora_pipeline.ingest.landing import Fetched, Landing
from finora_pipeline.ingest.run_log import run_log
from finora_pipeline.warehouse.database import Warehouse


class OpensOrganizations(Protocol):
    """Opens clients of users' organizations for one run."""

    def organizations(
        self, accounts: Accounts, user_ids: Sequence[str]
    ) -> AbstractAsyncContextManager[Organizations]:
        """The clients of these users' organizations, open within the block."""
        ...


def fetch_and_land(
    run_id: str,
    plan: FetchPlan,
    accounts: Accounts,
    openai_admin: OpensOrganizations,
    warehouse: Warehouse,
    on_user_done: OnUserDone | None = None,
) -> Fetched:
    """Fetch and land the plan's windows; return the counts. Raises `StorageError`."""
    user_ids = [connection.user_id for connection, _ in plan.windows]

    async def run() -> Fetched:
        landing = Landing(accounts, warehouse, run_id, user_ids)
        async with openai_admin.organizations(accounts, user_ids) as organizations:
            return await fetch(organizations, plan, landing, on_user_done)

    with run_log(warehouse.home, run_id):
        return asyncio.run(run())
