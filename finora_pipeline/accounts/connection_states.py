"""The state of a connection after a refresh: its status and fetched days; repair after a fast clock."""

import json
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import update
from sqlalchemy.engine import Connection as Transaction

from finora_pipeline.accounts.database import connection_parts, connections, users
from finora_pipeline.accounts.model import (
    CLOCK_TOLERANCE,
    RETRY_ATTENTION_AFTER,
    RETRY_PASSING_AFTER,
    Connection,
    Refresh,
    Status,
)


def next_state(connection: Connection, outcome: Refresh, now: datetime) -> dict[str, Any]:
    """The columns of a connection after a refresh, by name; `user` holds its id."""
    status, reason, since = connection.status, connection.status_reason, connection.status_since
    found = connection.organization
    if outcome.organization_id and not found.organization_id:
        found = replace(
            found, organization_id=outcome.organization_id, name=outcome.organization_name or found.name
        )
    # A key saved after the fetch began has not failed, and a removed connection stays removed.
    is_judged = connection.changed_at <= outcome.started_at and status is not Status.REMOVED
    if outcome.is_complete and is_judged and status is Status.NEEDS_ATTENTION:
        status, reason, since = Status.ACTIVE, None, now
    elif (outcome.permanent or outcome.needs_person) and is_judged:
        since = since if status is Status.NEEDS_ATTENTION else now
        status, reason = Status.NEEDS_ATTENTION, outcome.message
    retry_at = None
    if status is Status.NEEDS_ATTENTION:
        passing = min(RETRY_PASSING_AFTER, connection.plan.refresh_interval - connection.plan.lead)
        retry_at = outcome.started_at + (RETRY_ATTENTION_AFTER if outcome.permanent else passing)
    return {
        "user": connection.user_id,
        "status": status,
        "status_reason": reason,
        "status_since": since,
        **_days_fetched(connection, outcome),
        "last_attempt_at": outcome.started_at,
        "retry_at": retry_at,
        "given_from": None if outcome.is_history_given else outcome.given_from or connection.given_from,
        "cost_groupings": json.dumps({**connection.cost_groupings, **outcome.cost_groupings}),
        "organization_id": found.organization_id,
        "organization_name": found.name,
    }


def _days_fetched(connection: Connection, outcome: Refresh) -> dict[str, date | None]:
    """The UTC days fetched without a gap, None until the plan's whole history has been fetched."""
    first, end = connection.history_from, connection.read_until
    if outcome.is_complete:
        if first is None or end is None or outcome.window_start > end:
            # The plan may have changed during the fetch. After a pause longer than the plan's history the
            # days start over; for a plan that keeps everything no pause is that long.
            days = (connection.first_day(outcome.started_at.date()), outcome.given_from)
            kept_from = max((day for day in days if day), default=None)
            is_missing = first is None or end is None
            is_whole = is_missing if kept_from is None else outcome.window_start <= kept_from
            if is_whole and outcome.plan in (None, connection.plan.name):
                first, end = outcome.window_start, outcome.window_end
        elif outcome.window_start <= end and outcome.window_end >= first:
            first = min(first, outcome.window_start)
            # After a fetch of past days only, the next refresh still makes up for a pause.
            tomorrow = outcome.started_at.date() + timedelta(days=1)
            if outcome.window_end >= tomorrow:
                # Days "fetched" while a clock ran ahead are still to come.
                end = max(min(end, tomorrow), outcome.window_end)
    return {"history_from": first, "read_until": end}


def reset_future_moments(database: Transaction, now: datetime) -> None:
    """Set back moments recorded while the clock ran ahead; they would mislead until they are past."""
    limit = now + CLOCK_TOLERANCE
    earlier = now - timedelta(hours=1)
    tried_ahead = connections.c.last_attempt_at > limit
    database.execute(update(connections).where(tried_ahead).values(retry_at=now))
    for column in (
        users.c.plan_since,
        connections.c.connected_at,
        connections.c.changed_at,
        connections.c.status_since,
        connections.c.last_attempt_at,
        connections.c.directory_read_at,
    ):
        value = None if column.name == "directory_read_at" else earlier
        database.execute(update(column.table).where(column > limit).values({column.name: value}))
    ahead = connection_parts.c.last_attempt_at > limit
    database.execute(update(connection_parts).where(ahead).values(last_attempt_at=earlier, retry_at=now))
    since = connections.c.organization_since
    database.execute(update(connections).where(since > now.date()).values(organization_since=now.date()))
