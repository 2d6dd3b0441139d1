"""The tables of the accounts database: users, connections, credentials, refreshes and the audit trail.

SQLite in WAL mode or Postgres, through SQLAlchemy. All times are UTC.
"""

from datetime import UTC, datetime
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import (
    Column,
    Date,
    DateTime,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    inspect,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, stored in UTC (SQLite would lose the zone)."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("user_id", String(100), primary_key=True),
    Column("email", Text),
    Column("plan", String(20), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("plan_since", UtcDateTime),
)

# The UTC days from `history_from` up to `read_until` (exclusive) have been read without a gap; `changed_at`
# is the moment the key was saved.
connections = Table(
    "connections",
    metadata,
    Column("user_id", String(100), primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("status", String(20), nullable=False),
    Column("status_reason", Text),
    Column("status_since", UtcDateTime, nullable=False),
    Column("key_hint", String(40), nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("organization_id", Text),
    Column("organization_name", Text),
    Column("project_ids", Text, nullable=False),
    Column("connected_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("history_from", Date),
    Column("read_until", Date),
    Column("cost_groupings", Text),
    Column("directory_read_at", UtcDateTime),
    # The first UTC day that is this organization's, where it replaced another.
    Column("organization_since", Date),
    Column("last_attempt_at", UtcDateTime),
    Column("last_refresh_at", UtcDateTime),
    Index("connections_changed_at", "changed_at"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("user_id", String(100), primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("master_key_id", String(20), nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
)

# One row an attempt to refresh one user in one run.
refreshes = Table(
    "refreshes",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("user_id", String(100), primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("window_start", Date, nullable=False),
    Column("window_end", Date, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
    Column("outcome", String(20), nullable=False),
    Column("reason", String(40)),
    Column("message", Text),
    Column("pages", Integer, nullable=False),
    Column("published_at", UtcDateTime),
    Index("refreshes_user_started", "user_id", "started_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("audit_id", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("user_id", String(100), nullable=False),
    Column("action", String(30), nullable=False),
    Column("detail", Text),
    Index("audit_user", "user_id", "at"),
)

# What needs a person, until that is over and has been told: finora_pipeline.alarms.
alarms = Table(
    "alarms",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("message", Text, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("told_at", UtcDateTime),
    Column("resolved_at", UtcDateTime),
)


def open_database(url: str) -> Engine:
    """The accounts database at that SQLAlchemy URL, its tables created where missing."""
    engine = create_engine(url, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    metadata.create_all(engine)
    _add_new_columns(engine)
    return engine


def _add_new_columns(engine: Engine) -> None:
    """Brings an older database up to date: new columns may be empty, so adding them is all it takes."""
    known = inspect(engine)
    for table in metadata.sorted_tables:
        there = {column["name"] for column in known.get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                with engine.begin() as database:
                    operations = Operations(MigrationContext.configure(database))
                    operations.add_column(table.name, Column(column.name, column.type))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own transaction handling starts them too late to be serializable.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "busy_timeout=30000", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Any) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
