"""The tables of the accounts database, and its transactions. SQLite in WAL mode or Postgres; times are UTC.

Changing a table takes a revision in `accounts/migrations` too.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Date,
    DateTime,
    Engine,
    ExceptionContext,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.types import TypeDecorator

from finora_pipeline.accounts import migrations
from finora_pipeline.data_folder.disk import accounts_store, storage_error
from finora_pipeline.settings import wait_seconds

IDS_A_STATEMENT = 10_000
_log = logging.getLogger(__name__)


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware moment, stored in UTC without a zone, which SQLite would lose."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=UTC)


class PlainText(TypeDecorator[str]):
    """Text from outside, without NUL: JSON may hold it, Postgres cannot store it."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:  # noqa: ARG002
        return value and value.replace("\0", "")


metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("user_id", String(100), primary_key=True),
    Column("email", PlainText),
    Column("plan", String(20), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("plan_since", UtcDateTime),
)

# UTC days from `history_from` to `read_until` (exclusive) have been fetched without a gap. `changed_at`: when
# the key was saved.
connections = Table(
    "connections",
    metadata,
    Column("user_id", String(100), primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("status", String(20), nullable=False),
    Column("status_reason", PlainText),
    Column("status_since", UtcDateTime, nullable=False),
    Column("key_hint", String(40), nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("organization_id", PlainText),
    Column("organization_name", PlainText),
    Column("project_ids", Text, nullable=False),
    Column("connected_at", UtcDateTime, nullable=False),
    Column("changed_at", UtcDateTime, nullable=False),
    Column("history_from", Date),
    Column("read_until", Date),
    Column("cost_groupings", Text),
    Column("directory_read_at", UtcDateTime),
    # The first UTC day of this organization, where it replaced another.
    Column("organization_since", Date),
    Column("last_attempt_at", UtcDateTime),
    Column("last_refresh_at", UtcDateTime),
    # The address the key was checked against (`openai_admin.addresses.bound_form`); NULL until an operator
    # confirms the address of an upgraded installation.
    Column("base_url", PlainText),
    Column("key_expires_at", UtcDateTime),
    # OpenAI refuses costs of days before this one.
    Column("given_from", Date),
    # Refreshes of several users skip a connection that needs attention until this moment.
    Column("retry_at", UtcDateTime),
    Index("connections_changed_at", "changed_at"),
)

# Optional parts of a fetch that OpenAI does not return: a usage endpoint, a split of costs, a list.
connection_parts = Table(
    "connection_parts",
    metadata,
    Column("user_id", String(100), primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("part", String(200), primary_key=True),
    Column("reason", String(40), nullable=False),
    Column("message", PlainText, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("last_attempt_at", UtcDateTime, nullable=False),
    Column("retry_at", UtcDateTime, nullable=False),
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
    # The address authenticated with the key; NULL for keys sealed by versions without bound addresses.
    Column("bound_to", PlainText),
)

# One row per attempt to refresh one user in one run.
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
    Column("message", PlainText),
    Column("pages", Integer, nullable=False),
    Column("published_at", UtcDateTime),
    Index("refreshes_user_started", "user_id", "started_at"),
)

# Numbers of requests to OpenAI, by run and outcome.
requests = Table(
    "requests",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("outcome", String(40), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("finished_at", UtcDateTime, nullable=False),
    Index("requests_finished_at", "finished_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("audit_id", Integer, primary_key=True, autoincrement=True),
    Column("at", UtcDateTime, nullable=False),
    Column("user_id", String(100), nullable=False),
    Column("action", String(30), nullable=False),
    Column("detail", PlainText),
    # A login's name, "command line", "daemon" or "start link".
    Column("actor", String(200)),
    Index("audit_user", "user_id", "at"),
)

# Alerts, until they are resolved and the notification is sent (`finora_pipeline.alerts`).
alarms = Table(
    "alarms",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("message", PlainText, nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    # codespell:ignore-next-line told (the column keeps the name of earlier versions)
    Column("told_at", UtcDateTime, key="notified_at"),
    Column("resolved_at", UtcDateTime),
)

# Logins of the dashboard: with a `user_id` they see that user's rows, without one (operators) all rows.
logins = Table(
    "logins",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("user_id", String(100)),
    # NULL for logins that only sign in through the identity provider.
    Column("password_hash", Text),
    Column("created_at", UtcDateTime, nullable=False),
    # The second factor's secret, sealed by the vault, and the last step whose code was used.
    Column("totp_master_key_id", String(20)),
    Column("totp_wrapped_key", LargeBinary),
    Column("totp_ciphertext", LargeBinary),
    Column("totp_last_step", BigInteger),
    Index("logins_user", "user_id"),
)

# Open sessions. Only the token's hash is stored, so a reader of this table cannot sign in.
sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("opened_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
    Index("sessions_name", "name"),
)


class AccountsDatabase:
    """The accounts database: concurrent reads, and writing transactions one at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reading = engine.execution_options(writes=False)
        self._writing = engine.execution_options(writes=True)
        self._impatient = engine.execution_options(writes=False, at_once=True)

    def read(self) -> AbstractContextManager[Connection]:
        """A connection that only reads and does not wait for writers."""
        return self._reading.connect()

    def write(self) -> AbstractContextManager[Connection]:
        """A writing transaction; it waits for the one before."""
        return self._writing.begin()

    def write_at_once(self) -> AbstractContextManager[Connection]:
        """A writing transaction that fails instead of waiting for another writer."""
        return self._impatient.begin()

    def truncate_log(self, what: str) -> None:
        """Empty SQLite's write-ahead log, which still holds deleted rows; `what` names them in a warning."""
        if self.engine.dialect.name != "sqlite":
            return
        with closing(self.engine.raw_connection()) as raw:
            (busy, _, _) = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            _log.warning(
                "%s was deleted, but its bytes stay in SQLite's write-ahead log until another program that "
                "reads the accounts exits.",
                what,
            )


def parts_of(user_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Sorted unique ids in batches that fit one statement: SQLite takes 32,766 parameters."""
    ordered = sorted(set(user_ids))
    for first in range(0, len(ordered), IDS_A_STATEMENT):
        yield ordered[first : first + IDS_A_STATEMENT]


def open_database(url: str) -> Engine:
    """Open the accounts database at a SQLAlchemy URL and upgrade its tables to this version.

    Transactions of an engine with the option `writes` run one at a time, in SQLite and Postgres alike; with
    `at_once` they fail instead of waiting. Raises `migrations.NewerAccounts`; later statements raise
    `disk.StorageError` whenever the database cannot be used.
    """
    engine = create_engine(url, hide_parameters=True, pool_pre_ping=True)
    event.listen(engine, "handle_error", _raise_storage_error)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "checkout", _wait_for_writers)
        event.listen(engine, "begin", _begin_sqlite)
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "begin", _begin_postgres)
        # At a stricter level, which may be the server's default, a writer that has waited would not see the
        # rows of the one before.
        engine = engine.execution_options(isolation_level="READ COMMITTED")
    with engine.connect() as database:
        is_current = migrations.revision_of(database) == migrations.HEAD
    if not is_current:
        with engine.execution_options(writes=True).begin() as database:
            migrations.upgrade(database)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver would begin transactions too late for them to be serializable.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (_patience(), "journal_mode=WAL", "secure_delete=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _wait_for_writers(connection: Any, _record: Any, _proxy: Any) -> None:
    # The previous user of this pooled connection may have set a timeout of 0.
    connection.execute(f"PRAGMA {_patience()}").close()


def _patience() -> str:
    return f"busy_timeout={int(wait_seconds() * 1000)}"


def _raise_storage_error(context: ExceptionContext) -> None:
    """Raise `StorageError` for a driver's error about the database itself, at any statement."""
    # After a failed ping SQLAlchemy replaces the connection.
    if context.engine is None or context.is_pre_ping:
        return
    url = context.engine.url
    place = Path(url.database or "") if url.get_backend_name() == "sqlite" else str(url.host)
    if error := storage_error(context.original_exception, accounts_store(place)):
        raise error


def _begin_sqlite(connection: Any) -> None:
    options = connection.get_execution_options()
    if options.get("at_once"):
        connection.exec_driver_sql("PRAGMA busy_timeout=0")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")


def _begin_postgres(connection: Connection) -> None:
    # Row locks are not enough: a new user has no row yet.
    if connection.get_execution_options().get("writes"):
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(hashtext('finora accounts'))")
