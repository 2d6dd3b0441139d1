"""Connections: users' stored keys with their states. Their changes by refreshes are in `refresh_log`."""

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
    NO_HISTORY,
    AccountsError,
    Connection,
    Organization,
    Status,
)
from finora_pipeline.accounts.users import save_user
from finora_pipeline.accounts.vault import Sealed, Vault, VaultError
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
    """The connections of an installation. Keys are stored here and leave only through `key_ring`."""

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
        """Connections sorted by user id: all, or those of a plan, of some users or saved after a moment."""
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
        """The current Admin keys of these users, decrypted one at a time when needed."""
        with self._database.read() as database:
            sealed = {
                row.user_id: sealed_key(row)
                for part in parts_of(user_ids)
                for row in database.execute(select(credentials).where(credentials.c.user_id.in_(part)))
            }
        return KeyRing(self._vault, sealed, lambda: self.key_versions(user_ids))

    def bind_keys(self, address: str) -> int:
        """Bind keys that an earlier version stored without an address to this one; return how many.

        Keys that do not decrypt are left unchanged and logged; the refreshes of their users fail.
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
                database.execute(update(credentials).where(mine).values(_sealed_columns(sealed, address)))
                theirs = connections.c.user_id == row.user_id
                database.execute(update(connections).where(theirs).values(base_url=address))
                note(database, now_utc(), row.user_id, "bind address", address)
                bound += 1
        return bound

    def key_versions(self, user_ids: Sequence[str]) -> dict[str, int]:
        """The current key versions by user id, without removed connections."""
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
        """Store a key that OpenAI accepted, in one transaction; create the user if needed.

        `address` is the bound form of the address the key was checked against; it is sent to no other.
        `known` is the connection as the caller saw it, None for a new one. Without `plan` or `email` stored
        values stay. Fetched history stays; an organization that replaces another is fetched from today on.
        Raises `AccountsError` if the connection changed since the caller looked.
        """
        now = now_utc()
        with self._database.write() as database:
            mine = CONNECTIONS.where(connections.c.user_id == user_id)
            row = database.execute(mine).first()
            current = connection_of(row) if row else None
            if _key_state(current) != _key_state(known):
                raise AccountsError(_changed(f"connection of {user_id}"))
            keeps_more = save_user(database, user_id, plan, email, now)
            version = (known.key_version if known else _last_version(database, user_id)) + 1
            sealed = self._vault.seal(key.reveal(), key_identity(user_id, version, address))
            values = _columns_of_key(key, version, address, now)
            values |= _columns_of_organization(organization, now, replaces_organization)
            if known is None:
                values |= {"user_id": user_id, "provider": PROVIDER, "connected_at": now}
                database.execute(insert(connections).values(values))
            else:
                if known.status is Status.REMOVED:
                    values["connected_at"] = now
                if keeps_more:
                    values |= NO_HISTORY
                database.execute(update(connections).where(connections.c.user_id == user_id).values(values))
            _replace_credential(database, user_id, version, sealed, address)
            action = "connect" if known is None or known.status is Status.REMOVED else "update"
            note(database, now, user_id, action, f"{key.hint} at {address}")
            if known and replaces_organization:
                old = known.organization.organization_id or "unknown"
                new = organization.organization_id or "unknown"
                note(database, now, user_id, "replace organization", f"{old} by {new} from {now.date()} on")
        return self._existing(user_id)

    def _existing(self, user_id: str) -> Connection:
        connection = self.get(user_id)
        assert connection is not None
        return connection

    def purge(self, transaction: Transaction, user_id: str) -> dict[str, int]:
        """Delete a user's connection with its key; return the number of rows deleted by table."""
        return {
            table.name: transaction.execute(delete(table).where(table.c.user_id == user_id)).rowcount
            for table in (credentials, connection_parts, connections)
        }

    def remove(self, user_id: str, key_version: int | None = None) -> Connection:
        """Delete the stored key; past cost data stays.

        Raises `AccountsError` if no key is stored or, with a version, if the stored key is another one.
        """
        now = now_utc()
        mine = credentials.c.user_id == user_id
        with self._database.write() as database:
            stored = database.execute(select(credentials.c.version).where(mine)).scalar()
            if stored is None:
                raise AccountsError(f"User {user_id} has no OpenAI connection to remove.")
            if key_version not in (None, stored):
                raise AccountsError(_changed(f"key of {user_id}"))
            database.execute(delete(credentials).where(mine))
            database.execute(
                update(connections)
                .where(connections.c.user_id == user_id)
                .values(status=Status.REMOVED, status_reason=None, status_since=now)
            )
            note(database, now, user_id, "remove", None)
        self._database.truncate_log(f"The encrypted key of {user_id}")
        return self._existing(user_id)


def connection_of(row: Any) -> Connection:
    """The connection in a row of `CONNECTIONS`."""
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


def _changed(what: str) -> str:
    return f"The {what} was changed at the same time. Check it and try again."


def _columns_of_key(key: AdminKey, version: int, address: str, now: datetime) -> dict[str, Any]:
    return {
        "status": Status.ACTIVE,
        "status_reason": None,
        "status_since": now,
        "key_hint": key.hint,
        "key_version": version,
        "changed_at": now,
        "base_url": address,
        "key_expires_at": None,
        "retry_at": None,
    }


def _columns_of_organization(organization: Organization, now: datetime, replaces: bool) -> dict[str, Any]:
    values: dict[str, Any] = {"project_ids": json.dumps(sorted(organization.project_ids))}
    if replaces:
        # No day belongs to two organizations: days before today stay the old one's.
        values |= NO_HISTORY | {
            "organization_since": now.date(),
            "organization_id": None,
            "organization_name": None,
            "cost_groupings": None,
            "directory_read_at": None,
            "given_from": None,
        }
    if organization.organization_id:
        values |= {"organization_id": organization.organization_id, "organization_name": organization.name}
    return values


def _replace_credential(
    database: Transaction, user_id: str, version: int, sealed: Sealed, address: str
) -> None:
    """Store the key instead of the one before, and delete the part failures of that one."""
    database.execute(delete(credentials).where(credentials.c.user_id == user_id))
    database.execute(delete(connection_parts).where(connection_parts.c.user_id == user_id))
    identity = {"user_id": user_id, "provider": PROVIDER, "version": version}
    database.execute(insert(credentials).values(identity | _sealed_columns(sealed, address)))


def _sealed_columns(sealed: Sealed, address: str) -> dict[str, Any]:
    return {
        "master_key_id": sealed.master_key_id,
        "wrapped_key": sealed.wrapped_key,
        "ciphertext": sealed.ciphertext,
        "bound_to": address,
    }


def _key_state(connection: Connection | None) -> tuple[int, bool] | None:
    """What must not change between checking and storing a key: its version, and whether it was removed."""
    return connection and (connection.key_version, connection.status is Status.REMOVED)


def _last_version(database: Transaction, user_id: str) -> int:
    """A version that no earlier key of a user without a connection reached.

    A run that began before a purge must not mistake the key stored afterwards for its own. Every key has an
    audit row, so the number of the purge's row is higher than all its versions.
    """
    purges = (audit.c.user_id == user_id) & (audit.c.action == "purge")
    return database.execute(select(func.max(audit.c.audit_id)).where(purges)).scalar() or 0
