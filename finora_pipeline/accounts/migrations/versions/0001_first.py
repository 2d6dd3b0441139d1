"""The tables of the last version without revisions, created or completed.

Earlier versions added bare columns on opening a database, so an index or a NOT NULL may be missing.
"""

from alembic import op
from sqlalchemy import (
    Column,
    Date,
    DateTime,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    text,
)

revision = "0001"
down_revision = None

_metadata = MetaData()
_ID = String(100)

Table(
    "users",
    _metadata,
    Column("user_id", _ID, primary_key=True),
    Column("email", Text),
    Column("plan", String(20), nullable=False),
    Column("created_at", DateTime, nullable=False),
    Column("plan_since", DateTime),
)
Table(
    "connections",
    _metadata,
    Column("user_id", _ID, primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("status", String(20), nullable=False),
    Column("status_reason", Text),
    Column("status_since", DateTime, nullable=False),
    Column("key_hint", String(40), nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("organization_id", Text),
    Column("organization_name", Text),
    Column("project_ids", Text, nullable=False),
    Column("connected_at", DateTime, nullable=False),
    Column("changed_at", DateTime, nullable=False),
    Column("history_from", Date),
    Column("read_until", Date),
    Column("cost_groupings", Text),
    Column("directory_read_at", DateTime),
    Column("organization_since", Date),
    Column("last_attempt_at", DateTime),
    Column("last_refresh_at", DateTime),
    Index("connections_changed_at", "changed_at"),
)
Table(
    "credentials",
    _metadata,
    Column("user_id", _ID, primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("master_key_id", String(20), nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("ciphertext", LargeBinary, nullable=False),
)
Table(
    "refreshes",
    _metadata,
    Column("run_id", String(64), primary_key=True),
    Column("user_id", _ID, primary_key=True),
    Column("provider", String(20), primary_key=True),
    Column("window_start", Date, nullable=False),
    Column("window_end", Date, nullable=False),
    Column("started_at", DateTime, nullable=False),
    Column("finished_at", DateTime, nullable=False),
    Column("outcome", String(20), nullable=False),
    Column("reason", String(40)),
    Column("message", Text),
    Column("pages", Integer, nullable=False),
    Column("published_at", DateTime),
    Index("refreshes_user_started", "user_id", "started_at"),
)
Table(
    "requests",
    _metadata,
    Column("run_id", String(64), primary_key=True),
    Column("outcome", String(40), primary_key=True),
    Column("count", Integer, nullable=False),
    Column("finished_at", DateTime, nullable=False),
    Index("requests_finished_at", "finished_at"),
)
Table(
    "audit",
    _metadata,
    Column("audit_id", Integer, primary_key=True, autoincrement=True),
    Column("at", DateTime, nullable=False),
    Column("user_id", _ID, nullable=False),
    Column("action", String(30), nullable=False),
    Column("detail", Text),
    Index("audit_user", "user_id", "at"),
)
Table(
    "alarms",
    _metadata,
    Column("key", String(200), primary_key=True),
    Column("message", Text, nullable=False),
    Column("opened_at", DateTime, nullable=False),
    # codespell:ignore-next-line told (the column keeps the name of earlier versions)
    Column("told_at", DateTime),
    Column("resolved_at", DateTime),
)
Table(
    "logins",
    _metadata,
    Column("name", String(200), primary_key=True),
    Column("user_id", _ID),
    Column("password_hash", Text),
    Column("created_at", DateTime, nullable=False),
    Index("logins_user", "user_id"),
)
Table(
    "sessions",
    _metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("opened_at", DateTime, nullable=False),
    Column("seen_at", DateTime, nullable=False),
    Index("sessions_name", "name"),
)
# Values for empty cells of columns that an earlier version added without NOT NULL.
_FILLED = {("connections", "project_ids"): "[]"}
_FILL = "UPDATE {table} SET {column} = :value WHERE {column} IS NULL"


def upgrade() -> None:
    database = op.get_bind()
    there = set(inspect(database).get_table_names())
    for table in _metadata.sorted_tables:
        if table.name not in there:
            table.create(database)
        else:
            _complete(table)


def _complete(table: Table) -> None:
    database = op.get_bind()
    found = {column["name"]: column for column in inspect(database).get_columns(table.name)}
    for column in table.columns:
        if column.name not in found:
            op.add_column(table.name, Column(column.name, column.type))
    loose = [
        column
        for column in table.columns
        if not column.nullable
        and not column.primary_key
        and (column.name not in found or found[column.name]["nullable"])
    ]
    if loose:
        with op.batch_alter_table(table.name) as batch:
            for column in loose:
                value = _FILLED.get((table.name, column.name))
                if value is not None:
                    filled = text(_FILL.format(table=table.name, column=column.name))
                    database.execute(filled, {"value": value})
                batch.alter_column(column.name, existing_type=column.type, nullable=False)
    indexes = {index["name"] for index in inspect(database).get_indexes(table.name)}
    for index in table.indexes:
        if index.name not in indexes:
            index.create(database)
