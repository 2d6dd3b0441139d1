"""The record of refreshes: how each user's fetch ended, what is published, what OpenAI does not give."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, delete, func, insert, select, update
from sqlalchemy.engine import Connection as Transaction

from finora_pipeline.accounts.actors import current_actor
from finora_pipeline.accounts.audit import KEY_USE, now_utc
from finora_pipeline.accounts.connections import CONNECTIONS, connection_of
from finora_pipeline.accounts.database import (
    AccountsDatabase,
    audit,
    connection_parts,
    connections,
    parts_of,
    refreshes,
    requests,
    users,
)
from finora_pipeline.accounts.model import (
    CLOCK_TOLERANCE,
    RETRY_ATTENTION_AFTER,
    RETRY_PASSING_AFTER,
    Connection,
    PartFailure,
    PartsRead,
    Read,
    Refresh,
    Status,
)
from finora_pipeline.openai_admin.provider import PROVIDER

# The columns of `refreshes` that a `Refresh` holds.
RECORDED = (
    *("user_id", "window_start", "window_end", "started_at", "finished_at"),
    *("pages", "reason", "message", "published_at"),
)
REQUESTS_KEPT = timedelta(days=30)


class RefreshLog:
    """Refreshes of single users, by run, and the optional parts of their pages."""

    def __init__(self, database: AccountsDatabase) -> None:
        self._database = database

    def record(self, run_id: str, outcomes: Iterable[Refresh], now: datetime | None = None) -> None:
        """Stores how each user's read ended, and brings the connections' states up to date.

        A complete read makes a connection that needed attention active again and widens what has been read
        without a gap; a permanent failure makes it need attention. A user who was removed meanwhile stays
        removed.
        """
        outcomes = list(outcomes)
        if not outcomes:
            return
        now = now or now_utc()
        rows = [
            {
                "run_id": run_id,
                "user_id": outcome.user_id,
                "provider": PROVIDER,
                "window_start": outcome.window_start,
                "window_end": outcome.window_end,
                "started_at": outcome.started_at,
                "finished_at": outcome.finished_at,
                "outcome": outcome.outcome,
                "reason": outcome.reason,
                "message": outcome.message,
                "pages": outcome.pages,
            }
            for outcome in outcomes
        ]
        with self._database.write() as database:
            _forget_future(database, now)
            wanted = CONNECTIONS.where(connections.c.user_id.in_([o.user_id for o in outcomes]))
            known = {row.user_id: connection_of(row) for row in database.execute(wanted)}
            judged = [(known[o.user_id], o) for o in outcomes if o.user_id in known]
            changes = [_next_state(connection, outcome, now) for connection, outcome in judged]
            notes = [
                {
                    "at": now,
                    "user_id": c.user_id,
                    "action": change["status"],
                    "detail": change["status_reason"],
                    "actor": current_actor(),
                }
                for (c, _), change in zip(judged, changes, strict=True)
                if change["status"] is not c.status
            ]
            # A run that is executed again after a crash repeats its users.
            database.execute(
                delete(refreshes).where(
                    refreshes.c.run_id == bindparam("run"), refreshes.c.user_id == bindparam("user")
                ),
                [{"run": run_id, "user": outcome.user_id} for outcome in outcomes],
            )
            database.execute(insert(refreshes), rows)
            if changes:
                changed = {name: bindparam(name) for name in changes[0] if name != "user"}
                database.execute(
                    update(connections).where(connections.c.user_id == bindparam("user")).values(changed),
                    changes,
                )
            notes += _key_uses(database, [connection for connection, _ in judged], now)
            if notes:
                database.execute(insert(audit), notes)

    def record_parts(self, reads: Iterable[PartsRead]) -> None:
        """Stores how optional parts were read; those of a key that was replaced since do not count."""
        reads = list(reads)
        if not reads:
            return
        with self._database.write() as database:
            current = {
                row.user_id: row.key_version
                for part in parts_of([read.user_id for read in reads])
                for row in database.execute(
                    select(connections.c.user_id, connections.c.key_version).where(
                        connections.c.user_id.in_(part)
                    )
                )
            }
            for read in reads:
                if current.get(read.user_id) == read.key_version:
                    _save_parts(database, read)

    def part_failures(self, user_ids: Sequence[str]) -> dict[str, list[PartFailure]]:
        """The optional parts that OpenAI does not give, by user and name; users without any are left out."""
        found: dict[str, list[PartFailure]] = {}
        columns = [connection_parts.c[name] for name in ("user_id", *PartFailure.__slots__)]
        with self._database.read() as database:
            for part in parts_of(user_ids):
                query = select(*columns).where(connection_parts.c.user_id.in_(part))
                for user_id, *row in database.execute(query.order_by(*columns[:2])):
                    found.setdefault(user_id, []).append(PartFailure(*row))
        return found

    def mark_not_loaded(self, run_id: str, user_ids: Iterable[str], message: str) -> None:
        """Notes that pages which a run landed of these users cannot be loaded: their reads have failed, and
        their days are to be read again."""
        with self._database.write() as database:
            for user_id in user_ids:
                mine = (refreshes.c.run_id == run_id) & (refreshes.c.user_id == user_id)
                complete = mine & (refreshes.c.outcome == "complete")
                row = database.execute(select(refreshes.c.window_start).where(complete)).first()
                if row is None:
                    continue
                failed = {"outcome": "failed", "reason": "not_loaded", "message": message}
                database.execute(update(refreshes).where(mine).values(failed))
                theirs = connections.c.user_id == user_id
                is_older = connections.c.history_from < row.window_start
                again = {
                    "history_from": case((is_older, connections.c.history_from), else_=None),
                    "read_until": case((is_older, row.window_start), else_=None),
                }
                is_read = connections.c.read_until > row.window_start
                database.execute(update(connections).where(theirs & is_read).values(again))

    def unpublished(self) -> list[Read]:
        """Complete reads that are not in the published copy yet."""
        query = select(
            refreshes.c.run_id, refreshes.c.user_id, refreshes.c.started_at, refreshes.c.window_end
        ).where((refreshes.c.outcome == "complete") & refreshes.c.published_at.is_(None))
        with self._database.read() as database:
            return [Read(*row) for row in database.execute(query)]

    def mark_published(self, reads: Iterable[Read], published_at: datetime) -> None:
        """Notes that everybody can see these reads since that moment, and how fresh their users' data is.

        A moment after `published_at` counts as that moment, and one that is stored is overwritten.
        """
        reads = list(reads)
        if not reads:
            return
        fresh = [
            {"user": r.user_id, "started": min(r.started_at, published_at)} for r in reads if r.is_up_to_date
        ]
        with self._database.write() as database:
            if fresh:
                database.execute(
                    update(connections)
                    .where(
                        connections.c.user_id == bindparam("user"),
                        connections.c.last_refresh_at.is_(None)
                        | (connections.c.last_refresh_at < bindparam("started"))
                        | (connections.c.last_refresh_at > published_at + CLOCK_TOLERANCE),
                    )
                    .values(last_refresh_at=bindparam("started")),
                    fresh,
                )
            database.execute(
                update(refreshes)
                .where(refreshes.c.run_id == bindparam("run"), refreshes.c.user_id == bindparam("user"))
                .values(published_at=published_at),
                [{"run": r.run_id, "user": r.user_id} for r in reads],
            )

    def of_run(self, run_id: str) -> list[Refresh]:
        """The refreshes of one run, by user id."""
        columns = [refreshes.c[name] for name in RECORDED]
        query = select(*columns).where(refreshes.c.run_id == run_id).order_by(refreshes.c.user_id)
        with self._database.read() as database:
            return [Refresh(**row) for row in database.execute(query).mappings()]

    def counts(self, run_id: str) -> tuple[int, int]:
        """How many users a run has finished, and how many of them failed."""
        failed = func.count().filter(refreshes.c.outcome == "failed")
        query = select(func.count(), failed).where(refreshes.c.run_id == run_id)
        with self._database.read() as database:
            done, failures = database.execute(query).one()
        return done, failures

    def forget(self, transaction: Transaction, user_id: str) -> dict[str, int]:
        """Deletes a user's refreshes; returns the deleted rows by table."""
        mine = refreshes.c.user_id == user_id
        return {refreshes.name: transaction.execute(delete(refreshes).where(mine)).rowcount}

    def last_failures(self, user_ids: Sequence[str], now: datetime | None = None) -> dict[str, str]:
        """For users whose latest attempt with their present key failed: what the failure says. Attempts after
        `now` were recorded while a clock ran ahead, and do not count."""
        latest = (now or now_utc()) + CLOCK_TOLERANCE
        found: dict[str, str] = {}
        with self._database.read() as database:
            for part in parts_of(user_ids):
                newest = (
                    select(refreshes.c.user_id, func.max(refreshes.c.started_at).label("started_at"))
                    .join(connections, connections.c.user_id == refreshes.c.user_id)
                    .where(
                        refreshes.c.user_id.in_(part),
                        refreshes.c.started_at >= connections.c.changed_at,
                        refreshes.c.started_at <= latest,
                    )
                    .group_by(refreshes.c.user_id)
                    .subquery()
                )
                query = (
                    select(refreshes.c.user_id, refreshes.c.message)
                    .join(
                        newest,
                        (refreshes.c.user_id == newest.c.user_id)
                        & (refreshes.c.started_at == newest.c.started_at),
                    )
                    .where(refreshes.c.outcome == "failed")
                )
                found |= {row.user_id: row.message for row in database.execute(query)}
        return found

    def outcomes_since(self, moment: datetime) -> dict[str, tuple[int, int]]:
        """The reads that ended since then, by outcome or reason of failure: how many, of how many pages."""
        outcome = func.coalesce(refreshes.c.reason, refreshes.c.outcome)
        query = (
            select(outcome, func.count(), func.sum(refreshes.c.pages))
            .where(refreshes.c.finished_at >= moment)
            .group_by(outcome)
        )
        with self._database.read() as database:
            return {name: (count, int(pages)) for name, count, pages in database.execute(query)}

    def record_requests(self, run_id: str, outcomes: Mapping[str, int]) -> None:
        """Stores how many requests a run made, by how they ended; forgets those of a month ago."""
        now = now_utc()
        rows = [
            {"run_id": run_id, "outcome": outcome, "count": count, "finished_at": now}
            for outcome, count in outcomes.items()
        ]
        with self._database.write() as database:
            old = (requests.c.run_id == run_id) | (requests.c.finished_at < now - REQUESTS_KEPT)
            database.execute(delete(requests).where(old))
            if rows:
                database.execute(insert(requests), rows)

    def requests_since(self, moment: datetime) -> dict[str, int]:
        """The requests to OpenAI of the runs that ended since then, by how they ended."""
        query = (
            select(requests.c.outcome, func.sum(requests.c.count))
            .where(requests.c.finished_at >= moment)
            .group_by(requests.c.outcome)
        )
        with self._database.read() as database:
            return {outcome: int(count) for outcome, count in database.execute(query)}


def _next_state(connection: Connection, outcome: Refresh, now: datetime) -> dict[str, Any]:
    """The columns of a connection as a read's outcome leaves them."""
    status, reason, since = connection.status, connection.status_reason, connection.status_since
    found = connection.organization
    if outcome.organization_id and not found.organization_id:
        found = replace(
            found, organization_id=outcome.organization_id, name=outcome.organization_name or found.name
        )
    # A key saved after this read began has not failed, and a removed connection stays removed.
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
    """The days that have been read without a gap, None while the plan's whole history has not been."""
    first, end = connection.history_from, connection.read_until
    if outcome.is_complete:
        if first is None or end is None or outcome.window_start > end:
            # The plan may have changed while fewer days were being read. After a pause that is longer than
            # what the plan keeps, history begins anew; a plan that keeps everything has none so long.
            days = (connection.first_day(outcome.started_at.date()), outcome.given_from)
            kept_from = max((day for day in days if day), default=None)
            is_missing = first is None or end is None
            is_whole = is_missing if kept_from is None else outcome.window_start <= kept_from
            if is_whole and outcome.plan in (None, connection.plan.name):
                first, end = outcome.window_start, outcome.window_end
        elif outcome.window_start <= end and outcome.window_end >= first:
            first = min(first, outcome.window_start)
            # A read of past days alone leaves it to the next refresh to make up for a pause.
            tomorrow = outcome.started_at.date() + timedelta(days=1)
            if outcome.window_end >= tomorrow:
                # Days that a clock running ahead has "read" are still to come.
                end = max(min(end, tomorrow), outcome.window_end)
    return {"history_from": first, "read_until": end}


def _forget_future(database: Transaction, now: datetime) -> None:
    """Puts back what was recorded while the clock ran ahead; it would be judged wrongly until that moment."""
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


def _save_parts(database: Transaction, read: PartsRead) -> None:
    mine = (connection_parts.c.user_id == read.user_id) & (connection_parts.c.provider == PROVIDER)
    stored = database.execute(select(connection_parts.c.part, connection_parts.c.since).where(mine))
    known = {row.part: row.since for row in stored}
    # A list of a project that is gone is neither given nor refused any more.
    lists = {part for part in known if "/" in part} if read.directory_read_at else set()
    over = sorted(set(known) & (read.given | read.failed.keys() | lists))
    if over:
        database.execute(delete(connection_parts).where(mine & connection_parts.c.part.in_(over)))
    rows = [
        {
            "user_id": read.user_id, "provider": PROVIDER, "part": part, "reason": reason, "message": message,
            "since": known.get(part, read.at), "last_attempt_at": read.at, "retry_at": retry_at,
        }
        for part, (reason, message, retry_at) in read.failed.items()
    ]  # fmt: skip
    if rows:
        database.execute(insert(connection_parts), rows)
    moments = {"directory_read_at": read.directory_read_at, "key_expires_at": read.key_expires_at}
    values = {name: moment for name, moment in moments.items() if moment}
    if values:
        database.execute(update(connections).where(connections.c.user_id == read.user_id).values(values))


def _key_uses(database: Transaction, read: Sequence[Connection], now: datetime) -> list[dict[str, Any]]:
    """Audit rows of the keys that were used today for the first time."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    noted: set[tuple[str, str | None]] = set()
    for part in parts_of([connection.user_id for connection in read]):
        query = select(audit.c.user_id, audit.c.detail).where(
            audit.c.user_id.in_(part), audit.c.action == KEY_USE, audit.c.at >= today
        )
        noted |= {(row.user_id, row.detail) for row in database.execute(query)}
    return [
        {"at": now, "user_id": user_id, "action": KEY_USE, "detail": hint, "actor": current_actor()}
        for user_id, hint in sorted({(connection.user_id, connection.key_hint) for connection in read})
        if (user_id, hint) not in noted
    ]
