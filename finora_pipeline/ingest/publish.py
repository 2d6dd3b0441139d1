"""Publishes the warehouse with the connections' states, and notes which refreshes everybody can now see."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from finora_pipeline.accounts.model import Connection, Read, is_future
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.data_folder.disk import told_if_full
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.provider import PROVIDER
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.publish import Published, publish
from finora_pipeline.warehouse.raw import RawPages


def publish_refreshes(accounts: Accounts, warehouse: Warehouse, now: datetime | None = None) -> Published:
    """Publishes, then marks the refreshes whose pages are all in the published copy; `now` is the present.

    Raises `DiskFull` and `PartsUnequal`.
    """
    for one in RawPages(warehouse.raw).quarantined():
        # Only costs decide how a read ended.
        if one.file.kind != COSTS.kind:
            continue
        message = f"Pages that OpenAI sent could not be loaded. {one.reason} They are in raw/quarantine."
        accounts.refreshes.mark_not_loaded(one.file.run_id, one.user_ids, message)
    present = now or datetime.now(UTC)
    reads: list[Read] = []

    def connection_rows() -> Iterator[dict[str, object]]:
        # Under the lock nothing is loaded, so a recorded read with no pending file is in the facts.
        # Recorded reads first: what is recorded has landed, so it is then either pending or loaded.
        waiting = accounts.refreshes.unpublished()
        pending = {file.run_id for file in RawPages(warehouse.raw).pending()}
        reads.extend(read for read in waiting if read.run_id not in pending)
        newest: dict[str, datetime] = {}
        for read in reads:
            if read.is_up_to_date:
                started_at = min(read.started_at, present)
                newest[read.user_id] = max(started_at, newest.get(read.user_id, started_at))
        for connection in accounts.connections.all():
            yield _row(connection, newest.get(connection.user_id), present)

    copy = publish(warehouse, accounts.users.each_id(), connection_rows, present.date())
    with told_if_full("the accounts database"):
        accounts.refreshes.mark_published(reads, max(copy.at, present))
    return copy


def _row(connection: Connection, read_at: datetime | None, now: datetime) -> dict[str, object]:
    moments = [
        moment for moment in (connection.last_refresh_at, read_at) if moment and not is_future(moment, now)
    ]
    shown = replace(connection, last_refresh_at=max(moments, default=None))
    return {
        "user_id": connection.user_id,
        "provider": PROVIDER,
        "plan": connection.plan.name,
        "status": str(connection.status),
        "status_reason": connection.status_reason,
        "status_since": connection.status_since,
        "organization_id": connection.organization.organization_id,
        "connected_at": connection.connected_at,
        "last_refresh_at": shown.last_refresh_at,
        "next_refresh_at": shown.next_refresh_at,
    }
