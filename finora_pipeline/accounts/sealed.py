"""The columns that hold secrets sealed by the vault, and the master key that locks each secret."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Table, select
from sqlalchemy.engine import Connection

from finora_pipeline.accounts.database import AccountsDatabase, credentials, logins
from finora_pipeline.accounts.vault import Sealed, Vault, VaultError


@dataclass(frozen=True, slots=True)
class SealedColumns:
    """The columns of a table that hold a sealed secret.

    `owner` names the column that identifies a row; `prefix` precedes the column names `master_key_id`,
    `wrapped_key` and `ciphertext`.
    """

    table: Table
    owner: str
    prefix: str = ""

    @property
    def master_key_id(self) -> ColumnElement[Any]:
        """The column that names the master key."""
        return self.table.c[f"{self.prefix}master_key_id"]

    def sealed(self, row: Any) -> Sealed:
        """The encrypted secret of a row."""
        return Sealed(
            getattr(row, f"{self.prefix}master_key_id"),
            getattr(row, f"{self.prefix}wrapped_key"),
            getattr(row, f"{self.prefix}ciphertext"),
        )


SEALED = (SealedColumns(credentials, "user_id"), SealedColumns(logins, "name", "totp_"))


@dataclass(frozen=True, slots=True)
class Lock:
    """A stored secret and the master key that locks it; `owner` is a user id or a login's name."""

    table: str
    owner: str
    master_key_id: str


def locks(database: Connection) -> Iterator[Lock]:
    """Every stored secret with the master key that locks it."""
    for where in SEALED:
        owner = where.table.c[where.owner]
        query = select(owner, where.master_key_id).where(where.master_key_id.is_not(None)).order_by(owner)
        for row in database.execute(query):
            yield Lock(where.table.name, *row)


def has_secrets(database: AccountsDatabase) -> bool:
    """Whether the database holds any sealed secret."""
    with database.read() as connection:
        return next(locks(connection), None) is not None


def check_master_keys(database: AccountsDatabase, vault: Vault, variable: str, file: Path) -> None:
    """Raise `VaultError` if a stored secret needs a master key that the vault does not have."""
    with database.read() as connection:
        counts = Counter(lock.master_key_id for lock in locks(connection))
    for key_id, count in counts.items():
        if key_id not in vault.key_ids:
            source = variable if os.environ.get(variable) else str(file)
            secrets = f"{count} stored keys are" if count > 1 else "A stored key is"
            raise VaultError(
                f"{secrets} encrypted with master key {key_id}, which is not in {source}. Add it there after "
                "the current one, separated by a comma; if it is lost, "
                "finora rotate-master-key --forget-lost deletes what it locks."
            )
