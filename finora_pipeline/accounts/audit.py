"""The audit trail: each change of a user's connection, with its actor."""

from datetime import UTC, datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection as Transaction

from finora_pipeline.accounts.actors import current_actor
from finora_pipeline.accounts.database import AccountsDatabase, audit
from finora_pipeline.accounts.model import AuditEntry

# The action of a key's first use on a UTC day.
KEY_USE = "key use"


class AuditTrail:
    """Rows of the audit trail, by user."""

    def __init__(self, database: AccountsDatabase) -> None:
        self._database = database

    def of_user(self, user_id: str) -> list[AuditEntry]:
        """A user's rows, oldest first."""
        query = select(audit.c.at, audit.c.action, audit.c.detail, audit.c.actor)
        query = query.where(audit.c.user_id == user_id).order_by(audit.c.audit_id)
        with self._database.read() as database:
            return [AuditEntry(*row) for row in database.execute(query)]

    def recent(self, user_id: str, most: int) -> list[AuditEntry]:
        """At most `most` of a user's latest rows, newest first."""
        query = select(audit.c.at, audit.c.action, audit.c.detail, audit.c.actor)
        query = query.where(audit.c.user_id == user_id).order_by(audit.c.audit_id.desc()).limit(most)
        with self._database.read() as database:
            return [AuditEntry(*row) for row in database.execute(query)]

    def purge(self, transaction: Transaction, user_id: str, kept: int) -> dict[str, int]:
        """Delete a user's rows except the row `kept`; return the number deleted by table."""
        others = (audit.c.user_id == user_id) & (audit.c.audit_id != kept)
        return {audit.name: transaction.execute(delete(audit).where(others)).rowcount}

    def note(self, user_id: str, action: str, detail: str | None = None) -> None:
        """Add a row with the current time and actor."""
        with self._database.write() as database:
            note(database, now_utc(), user_id, action, detail)


def note(database: Transaction, at: datetime, user_id: str, action: str, detail: str | None) -> int:
    """Add a row with the current actor, within the caller's transaction; return its `audit_id`."""
    note = insert(audit).values(at=at, user_id=user_id, action=action, detail=detail, actor=current_actor())
    return database.execute(note.returning(audit.c.audit_id)).scalar_one()


def now_utc() -> datetime:
    """The current time with its zone."""
    return datetime.now(UTC)
