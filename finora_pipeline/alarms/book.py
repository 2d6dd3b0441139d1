"""The alarms on record: each is told once when it opens and once when it is over, across restarts."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, Row, delete, insert, select, update

from finora_pipeline.accounts.schema import alarms
from finora_pipeline.alarms.conditions import Condition


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition since when it has been seen, and until when if it is over."""

    key: str
    message: str
    opened_at: datetime
    resolved_at: datetime | None


def open_alarms(database: Engine) -> list[Alarm]:
    """The alarms that are not over, oldest first."""
    with database.execution_options(writes=False).connect() as connection:
        query = (
            select(alarms).where(alarms.c.resolved_at.is_(None)).order_by(alarms.c.opened_at, alarms.c.key)
        )
        return [_alarm(row) for row in connection.execute(query)]


def note(database: Engine, conditions: Iterable[Condition], now: datetime) -> list[Alarm]:
    """Records what is the case now; returns the alarms, new and over, that nobody has been told of.

    What is over before anybody was told is forgotten.
    """
    found = {condition.key: condition.message for condition in conditions}
    with database.begin() as connection:
        known = {row.key: row for row in connection.execute(select(alarms))}
        for key, message in found.items():
            row = known.get(key)
            if row is None:
                connection.execute(insert(alarms).values(key=key, message=message, opened_at=now))
            elif row.resolved_at is not None:
                # It is back. That it was over needs not be told any more.
                again = {"opened_at": now, "resolved_at": None, "told_at": None, "message": message}
                connection.execute(update(alarms).where(alarms.c.key == key).values(again))
            elif row.message != message:
                connection.execute(update(alarms).where(alarms.c.key == key).values(message=message))
        for key, row in known.items():
            if key not in found and row.resolved_at is None:
                if row.told_at is None:
                    connection.execute(delete(alarms).where(alarms.c.key == key))
                else:
                    connection.execute(update(alarms).where(alarms.c.key == key).values(resolved_at=now))
        untold = alarms.c.told_at.is_(None) | alarms.c.resolved_at.is_not(None)
        query = select(alarms).where(untold).order_by(alarms.c.opened_at, alarms.c.key)
        return [_alarm(row) for row in connection.execute(query)]


def mark_told(database: Engine, told: Iterable[Alarm], now: datetime) -> None:
    """Notes that people know of these alarms; those that are over have served."""
    with database.begin() as connection:
        for alarm in told:
            if alarm.resolved_at is None:
                connection.execute(update(alarms).where(alarms.c.key == alarm.key).values(told_at=now))
            else:
                over = (alarms.c.key == alarm.key) & (alarms.c.resolved_at == alarm.resolved_at)
                connection.execute(delete(alarms).where(over))


def _alarm(row: Row) -> Alarm:
    return Alarm(row.key, row.message, row.opened_at, row.resolved_at)
