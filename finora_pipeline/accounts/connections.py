"""Connections: users' stored keys with their states."""

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection as Transaction

from finora_pipeline.accounts.audit import note, now_utc
from finora_pipeline.accounts.database import (
    AccountsDatabase,
    audit,
    connection_parts,
    connections,
    credentials,
    parts_of,
    users,
)
from finora_pipeline.accounts.key_ring import KeyRing, key_identity, sealed_key
from finora_pipeline.accounts.model import (
    UNREAD,
    AccountsError,
    Connection,
    Organization,
    Status,
)
from finora_pipeline.accounts.users import save_user
from finora_pipeline.accounts.vault import Vault, VaultError
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.provider import PROVIDER
from finora_pipeline.plans import plan_named

_log = logging.getLogger(__name__)
CONNECTIONS = (
    select(connections, users.c.email, users.c.plan, users.c.plan_since)
    .join(users, users.c.user_id == connections.c.user_id)
    .order_by(connections.c.user_id)
)


class Connections:
    """The connections of an installation. Keys are stored here and leave through `key_ring` alone."""

    def __init__(self, database: AccountsDatabase, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    def all(
        self,
        *,
        plan: str | None = None,
        user_ids: Sequence[str] | None = None,
        changed_after: datetime | None = None,
    ) -> list[Connection]:
        """Connections by user id, all or those of a plan, of some users or changed after a moment."""
        query = CONNECTIONS
        if plan is not None:
            query = query.where(users.c.plan == plan_named(plan).name)
        if changed_after is not None:
            query = query.where(connections.c.changed_at > changed_after)
        parts = [query]
        if user_ids is not None:
            parts = [query.where(connections.c.user_id.in_(part)) for part in parts_of(user_ids)]
        with self._database.read() as database:
            return [connection_of(row) for part in parts for row in database.execute(part)]

    def get(self, user_id: str) -> Connection | None:
        """The user's connection, or None."""
        return next(iter(self.all(user_ids=[user_id])), None)

    def key_ring(self, user_ids: Sequence[str]) -> "KeyRing":
        """The Admin keys of these users as they are now, to be decrypted one by one when needed."""
        with self._database.read() as database:
            sealed = {
                row.user_id: sealed_key(row)
                for part in parts_of(user_ids)
                for row in database.execute(select(credentials).where(credentials.c.user_id.in_(part)))
            }
        return KeyRing(self._vault, sealed, lambda: self.key_versions(user_ids))

    def bind_keys(self, address: str) -> int:
        """Binds the keys that an earlier version stored without an address to this one; how many.

        Keys that do not decrypt stay as they are. Raises no error for them: their users' reads will.
        """
        unbound = select(credentials).where(credentials.c.bound_to.is_(None))
        with self._database.read() as database:
            if database.execute(unbound.limit(1)).first() is None:
                return 0
        bound = 0
        with self._database.write() as database:
            for row in database.execute(unbound).all():
                mine = (credentials.c.user_id == row.user_id) & (credentials.c.provider == row.provider)
                one = sealed_key(row)
                try:
                    key = self._vault.open(one.sealed, key_identity(row.user_id, row.version, None))
                except VaultError as error:
                    _log.warning("The key of %s was not bound to an address: %s", row.user_id, error)
                    continue
                sealed = self._vault.seal(key, key_identity(row.user_id, row.version, address))
                values = {
                    "master_key_id": sealed.master_key_id,
                    "wrapped_key": sealed.wrapped_key,
                    "ciphertext": sealed.ciphertext,
                    "bound_to": address,
                }
                database.execute(update(credentials).where(mine).values(values))
                theirs = connections.c.user_id == row.user_id
                database.execute(update(connections).where(theirs).values(base_url=address))
                note(database, now_utc(), row.user_id, "bind address", address)
                bound += 1
        return bound

    def key_versions(self, user_ids: Sequence[str]) -> dict[str, int]:
        """Which of their keys these users have now; nobody whose connection was removed."""
        query = select(connections.c.user_id, connections.c.key_version).where(
            connections.c.status != Status.REMOVED
        )
        with self._database.read() as database:
            return {
                row.user_id: row.key_version
                for part in parts_of(user_ids)
                for row in database.execute(query.where(connections.c.user_id.in_(part)))
            }

    def save(
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
        now = now_utc()
        with self._database.write() as database:
            mine = CONNECTIONS.where(connections.c.user_id == user_id)
            row = database.execute(mine).first()
            current = connection_of(row) if row else None
            if _state(current) != _state(known):
                raise AccountsError(f"The connection of {user_id} was changed meanwhile: look and try again.")
            keeps_more = save_user(database, user_id, plan, email, now)
            version = (known.key_version if known else _last_version(database, user_id)) + 1
            sealed = self._vault.seal(key.reveal(), key_identity(user_id, version, address))
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
                values |= UNREAD | {
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
                    values |= UNREAD
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
            note(database, now, user_id, action, f"{key.hint} at {address}")
            if known and replaces_organization:
                old = known.organization.organization_id or "unknown"
                new = organization.organization_id or "unknown"
                note(database, now, user_id, "replace organization", f"{old} by {new} from {now.date()} on")
        connection = self.get(user_id)
        assert connection is not None
        return connection

    def forget(self, transaction: Transaction, user_id: str) -> dict[str, int]:
        """Deletes a user's connection with its key; returns the deleted rows by table."""
        return {
            table.name: transaction.execute(delete(table).where(table.c.user_id == user_id)).rowcount
            for table in (credentials, connection_parts, connections)
        }

    def remove(self, user_id: str, key_version: int | None = None) -> Connection:
        """Deletes the stored credential; the past cost data stays. Raises `AccountsError` if there is none
        or, with a version, if another key has taken that one's place."""
        now = now_utc()
        mine = credentials.c.user_id == user_id
        with self._database.write() as database:
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
            note(database, now, user_id, "remove", None)
        self._database.truncate_log(f"the encrypted key of {user_id}")
        connection = self.get(user_id)
        assert connection is not None
        return connection


def connection_of(row: Any) -> Connection:
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


def _state(connection: Connection | None) -> tuple[int, bool] | None:
    """What must not change between the check of a key and its storing: the key, and whether there is one."""
    return connection and (connection.key_version, connection.status is Status.REMOVED)


def _last_version(database: Transaction, user_id: str) -> int:
    """A number that no key of a user without a connection had: a run that began before a purge must not take
    the key that came after it for its own. Every key has a note, so that of the purge has a higher number."""
    purges = (audit.c.user_id == user_id) & (audit.c.action == "purge")
    return database.execute(select(func.max(audit.c.audit_id)).where(purges)).scalar() or 0
