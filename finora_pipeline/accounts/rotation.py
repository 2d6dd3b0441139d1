"""Rotation: every stored secret moves to another master key; users need not do anything.

Only the data key of each secret (60 bytes) is wrapped again. All secrets open after every step, so the next
rotation resumes an interrupted one.
"""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.engine import Connection as DatabaseConnection

from finora_pipeline.accounts.actors import current_actor
from finora_pipeline.accounts.database import audit, credentials, logins
from finora_pipeline.accounts.key_ring import identity_of
from finora_pipeline.accounts.sealed import SEALED, Lock, locks
from finora_pipeline.accounts.store import Accounts, accounts_of, open_accounts
from finora_pipeline.accounts.vault import KeyFile, Vault, VaultError, new_key, totp_identity
from finora_pipeline.data_folder.private_files import open_lock, secure_home
from finora_pipeline.settings import Settings

# Stands for the user id in the audit trail.
ALL_USERS = "*"


# The identity that a row's secret is sealed for, by table.
IDENTITY_OF: dict[str, Callable[[Any], str]] = {
    credentials.name: identity_of,
    logins.name: lambda row: totp_identity(row.name),
}


@dataclass(frozen=True, slots=True)
class Rotation:
    """The result of a rotation.

    `current` is the current master key's id, `rewrapped` the number of secrets moved to it, `removable` the
    ids of master keys that no longer lock anything, `unreadable` the secrets that did not open and were left
    unchanged.
    """

    current: str
    rewrapped: int
    removable: list[str]
    unreadable: list[Lock] = field(default_factory=list[Lock])


def rotate(settings: Settings) -> Rotation:
    """Move every stored secret to the current master key. Raises `VaultError`.

    That is the first key in the environment, or a new key that replaces the one in the file.
    """
    accounts = accounts_of(settings)
    vault = accounts.vault
    if os.environ.get(settings.master_key_variable):
        if len(vault.key_ids) == 1:
            raise VaultError(
                f"{settings.master_key_variable} holds one master key. Put a new one before it, separated by "
                "a comma, restart finora up with both, and run this command again."
            )
        return rewrap_all(accounts, vault)
    file = KeyFile(settings.master_key_file)
    with os.fdopen(open_lock(file.path.with_name("rotate.lock")), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rotation = rewrap_all(accounts, Vault(add_key(file), file))
        drop_old_keys(accounts, file)
    return rotation


def add_key(file: KeyFile) -> list[bytes]:
    """Put a new key before the one in the file; keep both keys of an interrupted rotation."""
    keys = file.read()
    if len(keys) == 1:
        keys = [new_key(), *keys]
        file.replace(keys)
    return keys


def rewrap_all(accounts: Accounts, vault: Vault) -> Rotation:
    """Wrap every data key that an old master key wraps with the current one, in one transaction."""
    rewrapped = 0
    unreadable: list[Lock] = []
    before: set[str] = set()
    with accounts.database.write() as database:
        for where in SEALED:
            table = where.table
            changes: list[dict[str, Any]] = []
            old = select(table).where(where.master_key_id != vault.current_key_id)
            for row in database.execute(old).all():
                owner, sealed = getattr(row, where.owner), where.sealed(row)
                before.add(sealed.master_key_id)
                try:
                    again = vault.rewrap(sealed, IDENTITY_OF[table.name](row))
                except VaultError:
                    unreadable.append(Lock(table.name, owner, sealed.master_key_id))
                else:
                    changes.append({"owner": owner, "id": again.master_key_id, "wrapped": again.wrapped_key})
            if changes:
                changed: dict[str, Any] = {
                    f"{where.prefix}master_key_id": bindparam("id"),
                    f"{where.prefix}wrapped_key": bindparam("wrapped"),
                }
                mine = table.c[where.owner] == bindparam("owner")
                database.execute(update(table).where(mine).values(changed), changes)
            rewrapped += len(changes)
        if rewrapped:
            _note(database, "rotate master key", f"{', '.join(sorted(before))} to {vault.current_key_id}")
    accounts.database.truncate_log("What the old master key opens")
    needed = {lock.master_key_id for lock in unreadable}
    removable = [one for one in vault.key_ids if one != vault.current_key_id and one not in needed]
    return Rotation(vault.current_key_id, rewrapped, removable, unreadable)


def drop_old_keys(accounts: Accounts, file: KeyFile) -> None:
    """Remove old keys from the file, unless one of them still locks a secret.

    Other processes seal within writing transactions, so none can use an old key at the same time.
    """
    keys = file.read()
    with accounts.database.write() as database:
        current = Vault(keys[:1]).current_key_id
        if len(keys) > 1 and all(lock.master_key_id == current for lock in locks(database)):
            file.replace(keys[:1])


def forget_lost(settings: Settings) -> list[Lock]:
    """Delete secrets whose master key is missing; return them.

    Their connections become removed, their logins lose the second factor.
    """
    secure_home(settings)
    accounts = open_accounts(
        settings.accounts_url,
        settings.master_key_variable,
        settings.master_key_file,
        accepts_lost_keys=True,
    )
    with accounts.database.read() as database:
        lost = [lock for lock in locks(database) if lock.master_key_id not in accounts.vault.key_ids]
    for lock in lost:
        if lock.table == credentials.name:
            accounts.connections.remove(lock.owner)
    names = [lock.owner for lock in lost if lock.table == logins.name]
    if names:
        empty = {column.name: None for column in logins.c if column.name.startswith("totp_")}
        with accounts.database.write() as database:
            database.execute(update(logins).where(logins.c.name.in_(names)).values(empty))
    return lost


def _note(database: DatabaseConnection, action: str, detail: str) -> None:
    values = {"at": datetime.now(UTC), "user_id": ALL_USERS, "action": action, "detail": detail}
    database.execute(insert(audit).values(values | {"actor": current_actor()}))
