"""The audit trail: what happened to each user's connection, and who did it."""

from datetime import UTC, datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection as Transaction

from finora_pipeline.accounts.actors import current_actor
from finora_pipeline.accounts.database import AccountsDatabase, audit
from finora_pipeline.accounts.model import AuditEntry

# The action of a key's first use on a day.
KEY_USE = "key use"


class AuditTrail:
    """Rows of the audit trail, by user."""

    def __init__(self, database: AccountsDatabase) -> None:
        self._database = database

    def of_user(self, user_id: str) -> list[AuditEntry]:
        """What happened to a user's connection, oldest first."""
        query = select(audit.c.at, audit.c.action, audit.c.detail, audit.c.actor)
        query = query.where(audit.c.user_id == user_id).order_by(audit.c.audit_id)
        with self._database.read() as database:
            return [AuditEntry(*row) for row in database.execute(query)]

    def recent(self, user_id: str, most: int) -> list[AuditEntry]:
        """The latest rows of a user's audit trail, newest first."""
        query = select(audit.c.at, audit.c.action, audit.c.detail, audit.c.actor)
        query = query.where(audit.c.user_id == user_id).order_by(audit.c.audit_id.desc()).limit(most)
        with self._database.read() as database:
            return [AuditEntry(*row) for row in database.execute(query)]

    def forget(self, transaction: Transaction, user_id: str, kept: int) -> dict[str, int]:
        """Deletes a user's rows but one; returns the deleted rows by table."""
        others = (audit.c.user_id == user_id) & (audit.c.audit_id != kept)
        return {audit.name: transaction.execute(delete(audit).where(others)).rowcount}

    def note(self, user_id: str, action: str, detail: str | None = None) -> None:
        """Adds a row to the audit trail of a user, with the current actor."""
        with self._database.write() as database:
            note(database, now_utc(), user_id, action, detail)


def note(database: Transaction, at: datetime, user_id: str, action: str, detail: str | None) -> int:
    """Adds to the audit trail; returns the number of the note."""
    note = insert(audit).values(at=at, user_id=user_id, action=action, detail=detail, actor=current_actor())
    return database.execute(note.returning(audit.c.audit_id)).scalar_one()


def now_utc() -> datetime:
    return datetime.now(UTC)
