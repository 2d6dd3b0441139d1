"""Reads and lands what a run asks of OpenAI, from its start to its end, on an event loop of its own."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Protocol

from finora_pipeline.accounts.connections import Organizations
from finora_pipeline.accounts.model import Connection
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.logs import run_log
from finora_pipeline.openai_admin.endpoints import Endpoint
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.refresh.fetch import Fetched, ProgressCallback, fetch
from finora_pipeline.refresh.serve import publish_refreshes
from finora_pipeline.warehouse.load import KINDS, load_ahead, load_pending, newest_sets
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.warehouse import Warehouse


class Admin(Protocol):
    """Whoever hands out clients of users' organizations, and says what is read of them."""

    @property
    def directory(self) -> bool: ...

    @property
    def readings(self) -> Sequence[Endpoint]: ...

    def organizations(
        self, accounts: Accounts, user_ids: Sequence[str]
    ) -> AbstractAsyncContextManager[Organizations]: ...


def read_and_land(
    run_id: str,
    connections: Sequence[Connection],
    asked: Window,
    accounts: Accounts,
    admin: Admin,
    warehouse: Warehouse,
    on_progress: ProgressCallback | None = None,
    ask_all: bool = False,
) -> Fetched:
    """Reads these days of these connections' organizations and lands their pages (`fetch.fetch`)."""
    user_ids = [connection.user_id for connection in connections]
    known = newest_sets(warehouse, user_ids)

    def publish_ahead() -> None:
        load_pending(warehouse, KINDS, run_id)
        refresh_metrics(warehouse, accounts.each_user_id(), datetime.now(UTC).date())
        publish_refreshes(accounts, warehouse)

    async def run() -> Fetched:
        async with admin.organizations(accounts, user_ids) as organizations:
            return await fetch(
                accounts,
                organizations,
                RawPages(warehouse.raw),
                connections,
                asked,
                datetime.now(UTC).date(),
                run_id,
                on_progress,
                admin.readings,
                admin.directory,
                lambda all_read: load_ahead(warehouse, all_read),
                known,
                publish_ahead,
                ask_all=ask_all,
            )

    with run_log(warehouse.home, run_id):
        return asyncio.run(run())
