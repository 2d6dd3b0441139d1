"""Publishing the warehouse with the connections' states, and recording the refreshes it contains."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from finora_pipeline.accounts.model import CompleteRefresh, Connection, is_future
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.data_folder.disk import translate_disk_full
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.provider import PROVIDER
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.publish import Published, publish
from finora_pipeline.warehouse.raw import RawPages


def publish_refreshes(accounts: Accounts, warehouse: Warehouse, now: datetime | None = None) -> Published:
    """Publish, then mark the refreshes whose pages are all in the snapshot. `now` defaults to the clock.

    Raises `DiskFull` and `PartsUnequal`.
    """
    for one in RawPages(warehouse.raw).quarantined():
        # Only costs decide the outcome of a refresh.
        if one.file.kind != COSTS.kind:
            continue
        message = f"Pages from OpenAI could not be loaded. {one.reason} They are in raw/quarantine."
        accounts.refreshes.mark_not_loaded(one.file.run_id, one.user_ids, message)
    present = now or datetime.now(UTC)
    loaded: list[CompleteRefresh] = []

    def connection_rows() -> Iterator[dict[str, object]]:
        # Nothing loads under the lock, so a recorded refresh without a pending file is in the facts. Pending
        # files are listed after the records: recorded pages have landed by then.
        waiting = accounts.refreshes.unpublished()
        pending = {file.run_id for file in RawPages(warehouse.raw).pending()}
        loaded.extend(refresh for refresh in waiting if refresh.run_id not in pending)
        newest: dict[str, datetime] = {}
        for refresh in loaded:
            if refresh.is_up_to_date:
                started_at = min(refresh.started_at, present)
                newest[refresh.user_id] = max(started_at, newest.get(refresh.user_id, started_at))
        for connection in accounts.connections.all():
            yield _row(connection, newest.get(connection.user_id), present)

    snapshot = publish(warehouse, connection_rows, present.date())
    with translate_disk_full("the accounts database"):
        accounts.refreshes.mark_published(loaded, max(snapshot.at, present))
    return snapshot


def _row(connection: Connection, refreshed_at: datetime | None, now: datetime) -> dict[str, object]:
    """A row of the published `connections`; `refreshed_at` is a refresh that this snapshot publishes."""
    known = (connection.last_refresh_at, refreshed_at)
    moments = [moment for moment in known if moment and not is_future(moment, now)]
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
