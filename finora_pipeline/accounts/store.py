"""Users, plans, connections and the record of refreshes; the only code that can decrypt a key.

Nothing here talks to OpenAI: `connections.py` checks a key before it comes here.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, bindparam, case, delete, func, insert, select, update
from sqlalchemy.engine import Connection as DatabaseConnection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from finora_pipeline.accounts.actors import current_actor
from finora_pipeline.accounts.migrations import NewerAccounts
from finora_pipeline.accounts.model import (
    CLOCK_TOLERANCE,
    PROVIDER,
    RETRY_ATTENTION_AFTER,
    RETRY_PASSING_AFTER,
    AccountsError,
    AuditEntry,
    Connection,
    KeyReplaced,
    Organization,
    PartFailure,
    PartsRead,
    Read,
    Refresh,
    Status,
    attention_alarm,
    check_user_id,
)
from finora_pipeline.accounts.schema import (
    alarms,
    audit,
    connection_parts,
    connections,
    credentials,
    logins,
    open_database,
    refreshes,
    requests,
    sessions,
    users,
)
from finora_pipeline.accounts.sealed import check_master_keys, has_secrets
from finora_pipeline.accounts.second_factor import SecondFactor
from finora_pipeline.accounts.vault import Sealed, Vault, VaultError, load_vault
from finora_pipeline.openai_admin.addresses import OPENAI_BASE_URL, AddressError, bound_form
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.plans import PLANS, PRUNE_GRACE, Plan, plan_named
from finora_pipeline.private_files import secure_home
from finora_pipeline.settings import Settings

_log = logging.getLogger(__name__)
# The action of the audit trail for the first use of a key on a day.
KEY_USE = "key use"
REQUESTS_KEPT = timedelta(days=30)
# A key ring looks this often which keys are the users' still.
LOOK_AGAIN_SECONDS = 2.0
# As of a connection whose history has not been read.
_UNREAD: dict[str, None] = {"history_from": None, "read_until": None}


@dataclass(frozen=True, slots=True, repr=False)
class SealedKey:
    """A stored Admin key: encrypted, its version and the address that it is bound to."""

    sealed: Sealed
    version: int
    bound_to: str | None


class KeyRing:
    """Some users' encrypted keys, as they were at one moment; `current_versions` tells which are the users'
    keys now."""

    def __init__(
        self,
        vault: Vault,
        sealed: Mapping[str, "SealedKey"],
        current_versions: Callable[[], Mapping[str, int]],
    ) -> None:
        self._vault = vault
        self._sealed = sealed
        self._current_versions = current_versions
        self._looked_at = -math.inf
        self._versions: Mapping[str, int] = {}

    def key_of(self, user_id: str, version: int | None = None) -> AdminKey:
        """The user's Admin key, decrypted. Raises `AccountsError` if there is none, `VaultError`; with a
        version, `KeyReplaced` if that is not the user's key, of the ring or since a moment ago."""
        one = self._of(user_id)
        if version is not None and not one.version == version == self._now().get(user_id):
            raise KeyReplaced(f"The key of {user_id} has just been replaced or removed.")
        return AdminKey(self._vault.open(one.sealed, _identity(user_id, one.version, one.bound_to)))

    def bound_to(self, user_id: str) -> str | None:
        """The address that the user's key may be sent to (`addresses.bound_form`); it is authenticated with
        the key. None while no address is confirmed. Raises `AccountsError` if there is no key."""
        return self._of(user_id).bound_to

    def _of(self, user_id: str) -> "SealedKey":
        if user_id not in self._sealed:
            raise AccountsError(f"No OpenAI key is stored for user {user_id}.")
        return self._sealed[user_id]

    def _now(self) -> Mapping[str, int]:
        if time.monotonic() - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._versions, self._looked_at = self._current_versions(), time.monotonic()
        return self._versions


_CONNECTIONS = (
    select(connections, users.c.email, users.c.plan, users.c.plan_since)
    .join(users, users.c.user_id == connections.c.user_id)
    .order_by(connections.c.user_id)
)


class Accounts:
    """The accounts database of one installation."""

    def __init__(self, database: Engine, vault: Vault) -> None:
        self._read = database
        self._write = database.execution_options(writes=True)
        self._vault = vault

    @property
    def vault(self) -> Vault:
        """Seals and opens what the accounts keep encrypted."""
        return self._vault

    @property
    def database(self) -> Engine:
        """For what else is kept beside the accounts."""
        return self._write

    def second_factor(self) -> SecondFactor:
        """The second factor of logins, whose secrets the vault seals."""
        return SecondFactor(self._write, self._vault)

    def connections(
        self,
        *,
        plan: str | None = None,
        user_ids: Sequence[str] | None = None,
        changed_after: datetime | None = None,
    ) -> list[Connection]:
        """Connections by user id, all or those of a plan, of some users or changed after a moment."""
        query = _CONNECTIONS
        if plan is not None:
            query = query.where(users.c.plan == plan_named(plan).name)
        if changed_after is not None:
            query = query.where(connections.c.changed_at > changed_after)
        parts = [query]
        if user_ids is not None:
            parts = [query.where(connections.c.user_id.in_(part)) for part in _parts(user_ids)]
        with self._read.connect() as database:
            return [_connection(row) for part in parts for row in database.execute(part)]

    def connection(self, user_id: str) -> Connection | None:
        """The user's connection, or None."""
        return next(iter(self.connections(user_ids=[user_id])), None)

    def plan_of(self, user_id: str) -> Plan | None:
        """The user's plan, or None if there is no such user."""
        with self._read.connect() as database:
            plan = database.scalar(select(users.c.plan).where(users.c.user_id == user_id))
        return plan_named(plan) if plan else None

    def plans(self) -> dict[str, Plan]:
        """Every user's plan, by user id."""
        with self._read.connect() as database:
            rows = database.execute(select(users.c.user_id, users.c.plan).order_by(users.c.user_id))
            return {user_id: plan_named(plan) for user_id, plan in rows}

    def add_user(self, user_id: str, plan: str | None = None) -> str:
        """Makes a user who is not connected yet, or leaves one there is as it is; the checked id.

        Raises `AccountsError`, `UnknownPlan`.
        """
        user_id = check_user_id(user_id)
        if self.plan_of(user_id) is None:
            with self._write.begin() as database:
                _save_user(database, user_id, plan, None, _now())
        return user_id

    def user_ids(self) -> list[str]:
        """Every user there is, connected or not."""
        with self._read.connect() as database:
            return list(database.scalars(select(users.c.user_id).order_by(users.c.user_id)))

    def each_user_id(self) -> Iterator[str]:
        """As `user_ids`, of the moment at which the first is asked for."""
        yield from self.user_ids()

    def kept_from(self, now: datetime) -> dict[str, date]:
        """The oldest UTC day that is kept of each user whose plan does not keep everything.

        A plan that keeps less than the one before takes effect `PRUNE_GRACE` after the change.
        """
        with self._read.connect() as database:
            rows = database.execute(select(users.c.user_id, users.c.plan, users.c.plan_since)).all()
        kept: dict[str, date] = {}
        for row in rows:
            first = plan_named(row.plan).first_day_kept(now.date())
            if first and (row.plan_since is None or now - row.plan_since >= PRUNE_GRACE):
                kept[row.user_id] = first - PRUNE_GRACE
        return kept

    def purge(self, user_id: str) -> dict[str, int]:
        """Deletes all that is stored of a user but the note that it was done; rows deleted by table.

        Raises `AccountsError` for a user that nothing is known of.
        """
        deleted: dict[str, int] = {}
        with self._write.begin() as database:
            # First, so that its number is higher than those of the notes that go.
            noted = _note(database, _now(), user_id, "purge", None)
            for table in (credentials, connection_parts, connections, refreshes, users):
                deleted[table.name] = database.execute(
                    delete(table).where(table.c.user_id == user_id)
                ).rowcount
            older = (audit.c.user_id == user_id) & (audit.c.audit_id != noted)
            deleted[audit.name] = database.execute(delete(audit).where(older)).rowcount
            theirs = select(logins.c.name).where(logins.c.user_id == user_id)
            database.execute(delete(sessions).where(sessions.c.name.in_(theirs)))
            deleted["logins"] = database.execute(delete(logins).where(logins.c.user_id == user_id)).rowcount
            deleted["alarms"] = database.execute(
                delete(alarms).where(alarms.c.key == attention_alarm(user_id))
            ).rowcount
            if not any(deleted.values()):
                raise AccountsError(f"There is no user {user_id}.")
        if self._write.dialect.name == "sqlite":
            self._cut_log(user_id)
        return deleted

    def key_ring(self, user_ids: Sequence[str]) -> "KeyRing":
        """The Admin keys of these users as they are now, to be decrypted one by one when needed."""
        with self._read.connect() as database:
            sealed = {
                row.user_id: _sealed_key(row)
                for part in _parts(user_ids)
                for row in database.execute(select(credentials).where(credentials.c.user_id.in_(part)))
            }
        return KeyRing(self._vault, sealed, lambda: self.key_versions(user_ids))

    def bind_keys(self, address: str) -> int:
        """Binds the keys that an earlier version stored without an address to this one; how many.

        Keys that do not decrypt stay as they are. Raises no error for them: their users' reads will.
        """
        unbound = select(credentials).where(credentials.c.bound_to.is_(None))
        with self._read.connect() as database:
            if database.execute(unbound.limit(1)).first() is None:
                return 0
        bound = 0
        with self._write.begin() as database:
            for row in database.execute(unbound).all():
                mine = (credentials.c.user_id == row.user_id) & (credentials.c.provider == row.provider)
                one = _sealed_key(row)
                try:
                    key = self._vault.open(one.sealed, _identity(row.user_id, row.version, None))
                except VaultError as error:
                    _log.warning("The key of %s was not bound to an address: %s", row.user_id, error)
                    continue
                sealed = self._vault.seal(key, _identity(row.user_id, row.version, address))
                values = {
                    "master_key_id": sealed.master_key_id,
                    "wrapped_key": sealed.wrapped_key,
                    "ciphertext": sealed.ciphertext,
                    "bound_to": address,
                }
                database.execute(update(credentials).where(mine).values(values))
                theirs = connections.c.user_id == row.user_id
                database.execute(update(connections).where(theirs).values(base_url=address))
                _note(database, _now(), row.user_id, "bind address", address)
                bound += 1
        return bound

    def key_versions(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Which of their keys these users have now; nobody whose connection was removed."""
        query = select(connections.c.user_id, connections.c.key_version).where(
            connections.c.status != Status.REMOVED
        )
        with self._read.connect() as database:
            return {
                row.user_id: row.key_version
                for part in _parts(user_ids)
                for row in database.execute(query.where(connections.c.user_id.in_(part)))
            }

    def save_connection(
        self,
        user_id: str,
        key: AdminKey,
        organization: Organization,
        *,
        address: str,
        known: Connection | None,
        plan: str | None = None,
        email: str | None = None,
        replaces_organization: bool = False,
    ) -> Connection:
        """Stores a key that OpenAI accepted, in one transaction; creates the user where needed.

        `address` is the bound form of the address that it was checked against: it is sent to no other.

        `known` is the connection that the caller checked the key against, None for none. A new user gets
        `plan`; a stored e-mail or plan is kept where none is given. The history that has been read stays;
        an organization that replaces another is read from today on.
        Raises `AccountsError` if somebody else changed the connection meanwhile.
        """
        now = _now()
        with self._write.begin() as database:
            mine = _CONNECTIONS.where(connections.c.user_id == user_id)
            row = database.execute(mine).first()
            current = _connection(row) if row else None
            if _state(current) != _state(known):
                raise AccountsError(f"The connection of {user_id} was changed meanwhile: look and try again.")
            keeps_more = _save_user(database, user_id, plan, email, now)
            version = (known.key_version if known else _last_version(database, user_id)) + 1
            sealed = self._vault.seal(key.reveal(), _identity(user_id, version, address))
            values: dict[str, Any] = {
                "status": Status.ACTIVE,
                "status_reason": None,
                "status_since": now,
                "key_hint": key.hint,
                "key_version": version,
                "changed_at": now,
                "base_url": address,
                "key_expires_at": None,
                "retry_at": None,
                "project_ids": json.dumps(sorted(organization.project_ids)),
            }
            if replaces_organization:
                # No day is of two organizations: those before today stay the old one's.
                values |= _UNREAD | {
                    "organization_since": now.date(),
                    "organization_id": None,
                    "organization_name": None,
                    "cost_groupings": None,
                    "directory_read_at": None,
                    "given_from": None,
                }
            if organization.organization_id:
                values |= {
                    "organization_id": organization.organization_id,
                    "organization_name": organization.name,
                }
            if known is None:
                values |= {"user_id": user_id, "provider": PROVIDER, "connected_at": now}
                database.execute(insert(connections).values(values))
            else:
                if known.status is Status.REMOVED:
                    values["connected_at"] = now
                if keeps_more:
                    values |= _UNREAD
                database.execute(update(connections).where(connections.c.user_id == user_id).values(values))
            database.execute(delete(credentials).where(credentials.c.user_id == user_id))
            database.execute(delete(connection_parts).where(connection_parts.c.user_id == user_id))
            database.execute(
                insert(credentials).values(
                    user_id=user_id,
                    provider=PROVIDER,
                    version=version,
                    master_key_id=sealed.master_key_id,
                    wrapped_key=sealed.wrapped_key,
                    ciphertext=sealed.ciphertext,
                    bound_to=address,
                )
            )
            action = "connect" if known is None or known.status is Status.REMOVED else "update"
            _note(database, now, user_id, action, f"{key.hint} at {address}")
            if known and replaces_organization:
                old = known.organization.organization_id or "unknown"
                new = organization.organization_id or "unknown"
                _note(database, now, user_id, "replace organization", f"{old} by {new} from {now.date()} on")
        connection = self.connection(user_id)
        assert connection is not None
        return connection

    def remove_connection(self, user_id: str, key_version: int | None = None) -> Connection:
        """Deletes the stored credential; the past cost data stays. Raises `AccountsError` if there is none
        or, with a version, if another key has taken that one's place."""
        now = _now()
        mine = credentials.c.user_id == user_id
        with self._write.begin() as database:
            stored = database.execute(select(credentials.c.version).where(mine)).scalar()
            if stored is None:
                raise AccountsError(f"User {user_id} has no OpenAI connection to remove.")
            if key_version not in (None, stored):
                raise AccountsError(f"The key of {user_id} was changed meanwhile: look and try again.")
            database.execute(delete(credentials).where(mine))
            database.execute(
                update(connections)
                .where(connections.c.user_id == user_id)
                .values(status=Status.REMOVED, status_reason=None, status_since=now)
            )
            _note(database, now, user_id, "remove", None)
        if self._write.dialect.name == "sqlite":
            self._cut_log(user_id)
        connection = self.connection(user_id)
        assert connection is not None
        return connection

    def _cut_log(self, user_id: str) -> None:
        """Cuts SQLite's write-ahead log, which holds a deleted row until then."""
        database = self._write.raw_connection()
        try:
            cursor = database.cursor()
            (busy, _, _) = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            database.close()
        if busy:
            _log.warning(
                "The encrypted key of %s is deleted, but another program that reads the accounts keeps "
                "its bytes in the database's log until it ends.",
                user_id,
            )

    def set_plan(self, user_id: str, plan: str) -> Plan:
        """Moves a user to another plan. Raises `AccountsError` for an unknown user, `UnknownPlan`."""
        chosen = plan_named(plan)
        now = _now()
        with self._write.begin() as database:
            row = database.execute(select(users.c.plan).where(users.c.user_id == user_id)).first()
            if row is None:
                raise AccountsError(f"There is no user {user_id}: connect one with finora connect.")
            if chosen.name != row.plan:
                values = {"plan": chosen.name, "plan_since": now}
                database.execute(update(users).where(users.c.user_id == user_id).values(values))
            if chosen.keeps_more_than(plan_named(row.plan)):
                # The next refresh reads what is now kept.
                database.execute(update(connections).where(connections.c.user_id == user_id).values(_UNREAD))
            _note(database, now, user_id, "plan", chosen.name)
        return chosen

    def record_refreshes(self, run_id: str, outcomes: Iterable[Refresh], now: datetime | None = None) -> None:
        """Stores how each user's read ended, and brings the connections' states up to date.

        A complete read makes a connection that needed attention active again and widens what has been read
        without a gap; a permanent failure makes it need attention. A user who was removed meanwhile stays
        removed.
        """
        outcomes = list(outcomes)
        if not outcomes:
            return
        now = now or _now()
        rows = [
            {
                "run_id": run_id,
                "user_id": outcome.user_id,
                "provider": PROVIDER,
                "window_start": outcome.window_start,
                "window_end": outcome.window_end,
                "started_at": outcome.started_at,
                "finished_at": outcome.finished_at,
                "outcome": "complete" if outcome.is_complete else "failed",
                "reason": outcome.reason,
                "message": outcome.message,
                "pages": outcome.pages,
            }
            for outcome in outcomes
        ]
        with self._write.begin() as database:
            _forget_future(database, now)
            wanted = _CONNECTIONS.where(connections.c.user_id.in_([o.user_id for o in outcomes]))
            known = {row.user_id: _connection(row) for row in database.execute(wanted)}
            judged = [(known[o.user_id], o) for o in outcomes if o.user_id in known]
            changes = [_after(connection, outcome, now) for connection, outcome in judged]
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
        with self._write.begin() as database:
            current = {
                row.user_id: row.key_version
                for part in _parts([read.user_id for read in reads])
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
        with self._read.connect() as database:
            for part in _parts(user_ids):
                query = select(*columns).where(connection_parts.c.user_id.in_(part))
                for user_id, *row in database.execute(query.order_by(*columns[:2])):
                    found.setdefault(user_id, []).append(PartFailure(*row))
        return found

    def mark_not_loaded(self, run_id: str, user_ids: Iterable[str], message: str) -> None:
        """Notes that pages which a run landed of these users cannot be loaded: their reads have failed, and
        their days are to be read again."""
        with self._write.begin() as database:
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

    def unpublished_reads(self) -> list[Read]:
        """Complete reads that are not in the published copy yet."""
        query = select(
            refreshes.c.run_id, refreshes.c.user_id, refreshes.c.started_at, refreshes.c.window_end
        ).where((refreshes.c.outcome == "complete") & refreshes.c.published_at.is_(None))
        with self._read.connect() as database:
            return [Read(*row) for row in database.execute(query)]

    def outcomes_since(self, moment: datetime) -> dict[str, tuple[int, int]]:
        """The reads that ended since then, by outcome or reason of failure: how many, of how many pages."""
        outcome = func.coalesce(refreshes.c.reason, refreshes.c.outcome)
        query = (
            select(outcome, func.count(), func.sum(refreshes.c.pages))
            .where(refreshes.c.finished_at >= moment)
            .group_by(outcome)
        )
        with self._read.connect() as database:
            return {name: (count, int(pages)) for name, count, pages in database.execute(query)}

    def record_requests(self, run_id: str, outcomes: Mapping[str, int]) -> None:
        """Stores how many requests a run made, by how they ended; forgets those of a month ago."""
        now = _now()
        rows = [
            {"run_id": run_id, "outcome": outcome, "count": count, "finished_at": now}
            for outcome, count in outcomes.items()
        ]
        with self._write.begin() as database:
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
        with self._read.connect() as database:
            return {outcome: int(count) for outcome, count in database.execute(query)}

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
        with self._write.begin() as database:
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

    def refreshes_of(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of one run, by user id."""
        query = select(refreshes).where(refreshes.c.run_id == run_id).order_by(refreshes.c.user_id)
        with self._read.connect() as database:
            return [dict(row) for row in database.execute(query).mappings()]

    def last_failures(self, user_ids: Sequence[str], now: datetime | None = None) -> dict[str, str]:
        """For users whose latest attempt with their present key failed: what the failure says. Attempts after
        `now` were recorded while a clock ran ahead, and do not count."""
        latest = (now or _now()) + CLOCK_TOLERANCE
        found: dict[str, str] = {}
        with self._read.connect() as database:
            for part in _parts(user_ids):
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

    def audit_trail(self, user_id: str) -> list[AuditEntry]:
        """What happened to a user's connection, oldest first."""
        query = select(audit.c.at, audit.c.action, audit.c.detail, audit.c.actor)
        query = query.where(audit.c.user_id == user_id).order_by(audit.c.audit_id)
        with self._read.connect() as database:
            return [AuditEntry(*row) for row in database.execute(query)]

    def recent_audit(self, user_id: str, most: int) -> list[AuditEntry]:
        """The latest rows of a user's audit trail, newest first."""
        query = select(audit.c.at, audit.c.action, audit.c.detail, audit.c.actor)
        query = query.where(audit.c.user_id == user_id).order_by(audit.c.audit_id.desc()).limit(most)
        with self._read.connect() as database:
            return [AuditEntry(*row) for row in database.execute(query)]

    def note(self, user_id: str, action: str, detail: str | None = None) -> None:
        """Adds a row to the audit trail of a user, with the current actor."""
        with self._write.begin() as database:
            _note(database, _now(), user_id, action, detail)


def accounts_of(settings: Settings) -> Accounts:
    """The accounts of an installation, whose files are made private; raises as `open_accounts` does, and
    `ForeignFiles` and `SettingsError` as `secure_home`.

    Keys of an earlier version are bound to the address in the data folder's file, else to OpenAI's own;
    where the environment names another, they wait for an operator to confirm it.
    """
    secure_home(settings)
    accounts = open_accounts(settings.accounts_url, settings.master_key_variable, settings.master_key_file)
    configured = settings.folder_base_url or OPENAI_BASE_URL
    if settings.openai_base_url == configured.rstrip("/"):
        # An address that no key may be sent to binds none: they wait, and their users' reads say so.
        with suppress(AddressError):
            accounts.bind_keys(bound_form(configured))
    return accounts


def open_accounts(
    url: str, master_key_variable: str, master_key_file: Path, *, accepts_lost_keys: bool = False
) -> Accounts:
    """The accounts of this installation: its database, and the vault that the master key opens.

    Raises `vault.VaultError`, also where stored keys need a master key that is not given, unless
    `accepts_lost_keys`, and `AccountsError` if the database cannot be opened.
    """
    try:
        database = make_url(url)
    except ArgumentError:
        raise AccountsError(
            "FINORA_ACCOUNTS_URL must be SQLAlchemy's URL of a database, "
            "like postgresql+psycopg://finora@db.example/finora."
        ) from None
    is_file = database.get_backend_name() == "sqlite"
    if is_file and database.database:
        Path(database.database).parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = open_database(url)
    except DBAPIError as error:
        place = database.database if is_file else f"on {database.host}"
        raise AccountsError(
            f"The accounts database {place} cannot be opened. Check FINORA_ACCOUNTS_URL."
        ) from error
    except NewerAccounts as error:
        raise AccountsError(str(error)) from None
    is_new = accepts_lost_keys or not has_secrets(engine)
    vault = load_vault(master_key_variable, master_key_file, is_new=is_new)
    if not is_new:
        check_master_keys(engine, vault, master_key_variable, master_key_file)
    return Accounts(engine, vault)


def _parts(user_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """The ids in parts that fit a statement: SQLite takes 32,766 parameters."""
    ordered = sorted(set(user_ids))
    for first in range(0, len(ordered), 10_000):
        yield ordered[first : first + 10_000]


def _after(connection: Connection, outcome: Refresh, now: datetime) -> dict[str, Any]:
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
        **_read_after(connection, outcome),
        "last_attempt_at": outcome.started_at,
        "retry_at": retry_at,
        "given_from": None if outcome.is_history_given else outcome.given_from or connection.given_from,
        "cost_groupings": json.dumps({**connection.cost_groupings, **outcome.cost_groupings}),
        "organization_id": found.organization_id,
        "organization_name": found.name,
    }


def _read_after(connection: Connection, outcome: Refresh) -> dict[str, date | None]:
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


def _forget_future(database: DatabaseConnection, now: datetime) -> None:
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


def _state(connection: Connection | None) -> tuple[int, bool] | None:
    """What must not change between the check of a key and its storing: the key, and whether there is one."""
    return connection and (connection.key_version, connection.status is Status.REMOVED)


def _save_user(
    database: DatabaseConnection, user_id: str, plan: str | None, email: str | None, now: datetime
) -> bool:
    """Creates or changes a user; tells whether the user's plan now keeps more than before.

    Raises `UnknownPlan`: one that was stored would keep everybody from being listed.
    """
    plan = None if plan is None else plan_named(plan).name
    known = database.execute(select(users).where(users.c.user_id == user_id)).first()
    changes: dict[str, Any] = {
        name: value for name, value in (("plan", plan), ("email", email)) if value is not None
    }
    if known is None:
        changes.setdefault("plan", next(iter(PLANS)))
        database.execute(insert(users).values(user_id=user_id, created_at=now, plan_since=now, **changes))
        return False
    if plan is not None and plan != known.plan:
        changes["plan_since"] = now
    if changes:
        database.execute(update(users).where(users.c.user_id == user_id).values(changes))
    return plan is not None and plan_named(plan).keeps_more_than(plan_named(known.plan))


def _save_parts(database: DatabaseConnection, read: PartsRead) -> None:
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


def _last_version(database: DatabaseConnection, user_id: str) -> int:
    """A number that no key of a user without a connection had: a run that began before a purge must not take
    the key that came after it for its own. Every key has a note, so that of the purge has a higher number."""
    purges = (audit.c.user_id == user_id) & (audit.c.action == "purge")
    return database.execute(select(func.max(audit.c.audit_id)).where(purges)).scalar() or 0


def _key_uses(
    database: DatabaseConnection, read: Sequence[Connection], now: datetime
) -> list[dict[str, Any]]:
    """Audit rows of the keys that were used today for the first time."""
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    noted: set[tuple[str, str | None]] = set()
    for part in _parts([connection.user_id for connection in read]):
        query = select(audit.c.user_id, audit.c.detail).where(
            audit.c.user_id.in_(part), audit.c.action == KEY_USE, audit.c.at >= today
        )
        noted |= {(row.user_id, row.detail) for row in database.execute(query)}
    return [
        {"at": now, "user_id": user_id, "action": KEY_USE, "detail": hint, "actor": current_actor()}
        for user_id, hint in sorted({(connection.user_id, connection.key_hint) for connection in read})
        if (user_id, hint) not in noted
    ]


def _note(database: DatabaseConnection, at: datetime, user_id: str, action: str, detail: str | None) -> int:
    """Adds to the audit trail; returns the number of the note."""
    note = insert(audit).values(at=at, user_id=user_id, action=action, detail=detail, actor=current_actor())
    return database.execute(note.returning(audit.c.audit_id)).scalar_one()


def identity_of(row: Any) -> str:
    """The identity for which the key in a row of `credentials` is sealed."""
    return _identity(row.user_id, row.version, row.bound_to)


def _identity(user_id: str, version: int, bound_to: str | None) -> str:
    """What is authenticated with a key. A user id holds no blank, so that no two identities are equal."""
    identity = f"finora/{PROVIDER}/{version}/{user_id}"
    return identity if bound_to is None else f"{identity} at {bound_to}"


def _sealed_key(row: Any) -> SealedKey:
    return SealedKey(Sealed(row.master_key_id, row.wrapped_key, row.ciphertext), row.version, row.bound_to)


def _connection(row: Any) -> Connection:
    return Connection(
        user_id=row.user_id,
        email=row.email,
        plan=plan_named(row.plan),
        plan_since=row.plan_since,
        status=Status(row.status),
        status_reason=row.status_reason,
        status_since=row.status_since,
        key_hint=row.key_hint,
        key_version=row.key_version,
        organization=Organization(
            row.organization_id, row.organization_name, frozenset(json.loads(row.project_ids))
        ),
        connected_at=row.connected_at,
        changed_at=row.changed_at,
        history_from=row.history_from,
        read_until=row.read_until,
        directory_read_at=row.directory_read_at,
        organization_since=row.organization_since,
        cost_groupings=json.loads(row.cost_groupings or "{}"),
        last_attempt_at=row.last_attempt_at,
        last_refresh_at=row.last_refresh_at,
        base_url=row.base_url,
        key_expires_at=row.key_expires_at,
        given_from=row.given_from,
        retry_at=row.retry_at,
    )


def _now() -> datetime:
    return datetime.now(UTC)
