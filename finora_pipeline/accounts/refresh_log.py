"""The record of refreshes: the outcome of each user's fetch, what is published, parts OpenAI refuses."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, case, delete, func, insert, select, update
from sqlalchemy.engine import Connection as Transaction

from finora_pipeline.accounts.actors import current_actor
from finora_pipeline.accounts.audit import KEY_USE, now_utc
from finora_pipeline.accounts.connection_states import next_state, reset_future_moments
from finora_pipeline.accounts.connections import CONNECTIONS, connection_of
from finora_pipeline.accounts.database import (
    AccountsDatabase,
    audit,
    connection_parts,
    connections,
    parts_of,
    refreshes,
    requests,
)
from finora_pipeline.accounts.model import (
    CLOCK_TOLERANCE,
    CompleteRefresh,
    Connection,
    PartFailure,
    PartOutcomes,
    Refresh,
)
from finora_pipeline.openai_admin.provider import PROVIDER

# The columns of `refreshes` that are fields of `Refresh`.
RECORDED = (
    *("user_id", "window_start", "window_end", "started_at", "finished_at"),
    *("pages", "reason", "message", "published_at"),
)
REQUESTS_KEPT = timedelta(days=30)


class RefreshLog:
    """Refreshes of single users by run, with the outcomes of optional parts."""

    def __init__(self, database: AccountsDatabase) -> None:
        self._database = database

    def record(self, run_id: str, outcomes: Iterable[Refresh], now: datetime | None = None) -> None:
        """Store the outcome of each user's fetch, and update the states of the connections.

        A complete fetch makes a connection that needed attention active again and extends its days fetched
        without a gap; a permanent failure makes it need attention. A connection removed during the run stays
        removed.
        """
        outcomes = list(outcomes)
        if not outcomes:
            return
        now = now or now_utc()
        with self._database.write() as database:
            reset_future_moments(database, now)
            wanted = CONNECTIONS.where(connections.c.user_id.in_([o.user_id for o in outcomes]))
            known = {row.user_id: connection_of(row) for row in database.execute(wanted)}
            judged = [(known[o.user_id], o) for o in outcomes if o.user_id in known]
            changes = [next_state(connection, outcome, now) for connection, outcome in judged]
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
            _save_refreshes(database, run_id, outcomes)
            if changes:
                changed: dict[str, Any] = {name: bindparam(name) for name in changes[0] if name != "user"}
                database.execute(
                    update(connections).where(connections.c.user_id == bindparam("user")).values(changed),
                    changes,
                )
            notes += _key_uses(database, [connection for connection, _ in judged], now)
            if notes:
                database.execute(insert(audit), notes)

    def record_parts(self, outcomes: Iterable[PartOutcomes]) -> None:
        """Store the outcomes of optional parts; drop those fetched with a key that has been replaced."""
        outcomes = list(outcomes)
        if not outcomes:
            return
        with self._database.write() as database:
            current = {
                row.user_id: row.key_version
                for part in parts_of([outcome.user_id for outcome in outcomes])
                for row in database.execute(
                    select(connections.c.user_id, connections.c.key_version).where(
                        connections.c.user_id.in_(part)
                    )
                )
            }
            for outcome in outcomes:
                if current.get(outcome.user_id) == outcome.key_version:
                    _save_parts(database, outcome)

    def part_failures(self, user_ids: Sequence[str]) -> dict[str, list[PartFailure]]:
        """The optional parts that OpenAI does not return, sorted by name, for users that have any."""
        found: dict[str, list[PartFailure]] = {}
        columns = [connection_parts.c[name] for name in ("user_id", *PartFailure.__slots__)]
        with self._database.read() as database:
            for part in parts_of(user_ids):
                query = select(*columns).where(connection_parts.c.user_id.in_(part))
                for user_id, *row in database.execute(query.order_by(*columns[:2])):
                    found.setdefault(user_id, []).append(PartFailure(*row))
        return found

    def mark_not_loaded(self, run_id: str, user_ids: Iterable[str], message: str) -> None:
        """Record that pages a run landed for these users cannot be loaded.

        Their refreshes count as failed, and their days are fetched again.
        """
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

    def unpublished(self) -> list[CompleteRefresh]:
        """Complete refreshes that no published snapshot holds yet."""
        query = select(
            refreshes.c.run_id, refreshes.c.user_id, refreshes.c.started_at, refreshes.c.window_end
        ).where((refreshes.c.outcome == "complete") & refreshes.c.published_at.is_(None))
        with self._database.read() as database:
            return [CompleteRefresh(*row) for row in database.execute(query)]

    def mark_published(self, published: Iterable[CompleteRefresh], published_at: datetime) -> None:
        """Record when these refreshes were published, and the time of their users' newest data.

        A time after `published_at` counts as `published_at`; a stored one after it is overwritten.
        """
        published = list(published)
        if not published:
            return
        fresh = [
            {"user": r.user_id, "started": min(r.started_at, published_at)}
            for r in published
            if r.is_up_to_date
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
                [{"run": r.run_id, "user": r.user_id} for r in published],
            )

    def of_run(self, run_id: str) -> list[Refresh]:
        """The refreshes of a single run, sorted by user id."""
        columns = [refreshes.c[name] for name in RECORDED]
        query = select(*columns).where(refreshes.c.run_id == run_id).order_by(refreshes.c.user_id)
        with self._database.read() as database:
            return [Refresh(**row) for row in database.execute(query).mappings()]

    def counts(self, run_id: str) -> tuple[int, int]:
        """The number of users a run has finished, and the number of them that failed."""
        failed = func.count().filter(refreshes.c.outcome == "failed")
        query = select(func.count(), failed).where(refreshes.c.run_id == run_id)
        with self._database.read() as database:
            done, failures = database.execute(query).one()
        return done, failures

    def purge(self, transaction: Transaction, user_id: str) -> dict[str, int]:
        """Delete a user's refreshes; return the number of rows deleted by table."""
        mine = refreshes.c.user_id == user_id
        return {refreshes.name: transaction.execute(delete(refreshes).where(mine)).rowcount}

    def last_failures(self, user_ids: Sequence[str], now: datetime | None = None) -> dict[str, str]:
        """The error sentence, by user id, of users whose latest attempt with the current key failed.

        Attempts after `now` were recorded while a clock ran ahead and do not count.
        """
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
        """Refreshes that ended since `moment`, by outcome or failure reason: their number and their pages."""
        outcome = func.coalesce(refreshes.c.reason, refreshes.c.outcome)
        query = (
            select(outcome, func.count(), func.sum(refreshes.c.pages))
            .where(refreshes.c.finished_at >= moment)
            .group_by(outcome)
        )
        with self._database.read() as database:
            return {name: (count, int(pages)) for name, count, pages in database.execute(query)}

    def record_requests(self, run_id: str, outcomes: Mapping[str, int]) -> None:
        """Store a run's number of requests by outcome; delete counts older than `REQUESTS_KEPT`."""
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
        """Requests to OpenAI by runs that ended since `moment`, by outcome."""
        query = (
            select(requests.c.outcome, func.sum(requests.c.count))
            .where(requests.c.finished_at >= moment)
            .group_by(requests.c.outcome)
        )
        with self._database.read() as database:
            return {outcome: int(count) for outcome, count in database.execute(query)}


def _save_refreshes(database: Transaction, run_id: str, outcomes: Sequence[Refresh]) -> None:
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
    # A run executed again after a crash has rows of these users already.
    is_repeated = (refreshes.c.run_id == bindparam("run")) & (refreshes.c.user_id == bindparam("user"))
    repeated = [{"run": run_id, "user": outcome.user_id} for outcome in outcomes]
    database.execute(delete(refreshes).where(is_repeated), repeated)
    database.execute(insert(refreshes), rows)


def _save_parts(database: Transaction, outcomes: PartOutcomes) -> None:
    mine = (connection_parts.c.user_id == outcomes.user_id) & (connection_parts.c.provider == PROVIDER)
    stored = database.execute(select(connection_parts.c.part, connection_parts.c.since).where(mine))
    known = {row.part: row.since for row in stored}
    # The lists of deleted projects are neither given nor refused any more.
    lists: set[str] = {part for part in known if "/" in part} if outcomes.directory_read_at else set()
    over = sorted(set(known) & (outcomes.given | outcomes.failed.keys() | lists))
    if over:
        database.execute(delete(connection_parts).where(mine & connection_parts.c.part.in_(over)))
    rows = [
        {
            "user_id": outcomes.user_id, "provider": PROVIDER,
            "part": part, "reason": reason, "message": message,
            "since": known.get(part, outcomes.at), "last_attempt_at": outcomes.at, "retry_at": retry_at,
        }
        for part, (reason, message, retry_at) in outcomes.failed.items()
    ]  # fmt: skip
    if rows:
        database.execute(insert(connection_parts), rows)
    moments = {"directory_read_at": outcomes.directory_read_at, "key_expires_at": outcomes.key_expires_at}
    values = {name: moment for name, moment in moments.items() if moment}
    if values:
        database.execute(update(connections).where(connections.c.user_id == outcomes.user_id).values(values))


def _key_uses(database: Transaction, fetched: Sequence[Connection], now: datetime) -> list[dict[str, Any]]:
    """Audit rows for the keys that were used for the first time today."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    noted: set[tuple[str, str | None]] = set()
    for part in parts_of([connection.user_id for connection in fetched]):
        query = select(audit.c.user_id, audit.c.detail).where(
            audit.c.user_id.in_(part), audit.c.action == KEY_USE, audit.c.at >= today
        )
        noted |= {(row.user_id, row.detail) for row in database.execute(query)}
    return [
        {"at": now, "user_id": user_id, "action": KEY_USE, "detail": hint, "actor": current_actor()}
        for user_id, hint in sorted({(connection.user_id, connection.key_hint) for connection in fetched})
        if (user_id, hint) not in noted
    ]
