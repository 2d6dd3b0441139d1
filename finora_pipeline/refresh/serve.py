"""Publishes the warehouse with the connections' states, and notes which refreshes everybody can now see."""

from collections.abc import Iterator
from datetime import datetime

from finora_pipeline.accounts.model import PROVIDER, Connection
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.warehouse.publish import Published, publish
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.warehouse import Warehouse


def publish_refreshes(accounts: Accounts, warehouse: Warehouse) -> Published:
    """Publishes, then marks the refreshes whose pages are all in the published copy."""
    runs: dict[str, dict[str, datetime]] = {}

    def connection_rows() -> Iterator[dict[str, object]]:
        # Under the lock nothing is loaded, so a recorded run with no pending file is in the facts.
        # Recorded runs first: what is recorded has landed, so it is then either pending or loaded.
        waiting = accounts.unpublished_runs()
        pending = {file.run_id for file in RawPages(warehouse.raw).pending()}
        runs.update({run_id: users for run_id, users in waiting.items() if run_id not in pending})
        for connection in accounts.connections():
            yield _row(connection, runs)

    copy = publish(warehouse, connection_rows)
    accounts.mark_published(runs, copy.at)
    return copy


def _row(connection: Connection, runs: dict[str, dict[str, datetime]]) -> dict[str, object]:
    moments = [users[connection.user_id] for users in runs.values() if connection.user_id in users]
    if connection.last_refresh_at:
        moments.append(connection.last_refresh_at)
    refreshed = max(moments) if moments else None
    due = connection.next_refresh_at
    return {
        "user_id": connection.user_id,
        "provider": PROVIDER,
        "plan": connection.plan.name,
        "status": str(connection.status),
        "status_reason": connection.status_reason,
        "status_since": connection.status_since,
        "organization_id": connection.organization.organization_id,
        "connected_at": connection.connected_at,
        "last_refresh_at": refreshed,
        "next_refresh_at": due and connection.plan.next_refresh(refreshed or connection.connected_at),
    }
