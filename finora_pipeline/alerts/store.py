"""The record of alerts: each is sent once when it opens and once when it is over, across restarts."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Row, delete, insert, select, update

from finora_pipeline.accounts.database import AccountsDatabase, alarms
from finora_pipeline.alerts.conditions import Condition


@dataclass(frozen=True, slots=True)
class Alert:
    """A condition with the time it was first seen and the time it was over."""

    key: str
    message: str
    opened_at: datetime
    resolved_at: datetime | None


def open_alerts(database: AccountsDatabase) -> list[Alert]:
    """The alerts that are not over, oldest first."""
    with database.read() as connection:
        query = (
            select(alarms).where(alarms.c.resolved_at.is_(None)).order_by(alarms.c.opened_at, alarms.c.key)
        )
        return [_alert(row) for row in connection.execute(query)]


def sync_alerts(database: AccountsDatabase, conditions: Iterable[Condition], now: datetime) -> list[Alert]:
    """Record the current conditions; return the new and resolved alerts that are not sent yet.

    An alert that is over before it was sent is deleted.
    """
    found = {condition.key: condition.message for condition in conditions}
    with database.write() as connection:
        known = {row.key: row for row in connection.execute(select(alarms))}
        for key, message in found.items():
            row = known.get(key)
            if row is None:
                connection.execute(insert(alarms).values(key=key, message=message, opened_at=now))
            elif row.resolved_at is not None:
                # The condition is back, so its end need not be sent.
                again = {"opened_at": now, "resolved_at": None, "notified_at": None, "message": message}
                connection.execute(update(alarms).where(alarms.c.key == key).values(again))
            elif row.message != message:
                connection.execute(update(alarms).where(alarms.c.key == key).values(message=message))
        for key, row in known.items():
            if key not in found and row.resolved_at is None:
                if row.notified_at is None:
                    connection.execute(delete(alarms).where(alarms.c.key == key))
                else:
                    connection.execute(update(alarms).where(alarms.c.key == key).values(resolved_at=now))
        unsent = alarms.c.notified_at.is_(None) | alarms.c.resolved_at.is_not(None)
        query = select(alarms).where(unsent).order_by(alarms.c.opened_at, alarms.c.key)
        return [_alert(row) for row in connection.execute(query)]


def mark_notified(database: AccountsDatabase, sent: Iterable[Alert], now: datetime) -> None:
    """Record that these alerts were sent; delete those that are over."""
    with database.write() as connection:
        for alert in sent:
            if alert.resolved_at is None:
                connection.execute(update(alarms).where(alarms.c.key == alert.key).values(notified_at=now))
            else:
                over = (alarms.c.key == alert.key) & (alarms.c.resolved_at == alert.resolved_at)
                connection.execute(delete(alarms).where(over))


def _alert(row: Row) -> Alert:
    return Alert(row.key, row.message, row.opened_at, row.resolved_at)
