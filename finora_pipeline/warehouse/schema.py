"""Creates the warehouse's tables, and brings those of an earlier version up to date.

`pipeline.schema_version` holds the number of the last migration and a hash of the definitions. Definitions
(comments, macros, views) are executed again whenever their text changes: new words stop nothing.
"""

import hashlib
from functools import lru_cache

import duckdb

from finora_pipeline.warehouse.migrations import (
    MIGRATIONS,
    SCHEMA_NUMBER,
    columns_of,
    columns_of_first_number,
)
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.usage_columns import add_measures

# The tables that are also published as Parquet, a file a month.
MONTHLY_TABLES = ("daily_costs", "daily_usage", "daily_model_costs", "daily_member_costs", "daily_key_costs")
TABLES = (
    *MONTHLY_TABLES,
    "cost_revisions",
    "usage_revisions",
    "user_metrics",
    "projects",
    "members",
    "api_keys",
    "connections",
)
_CREATED = ("pipeline", "billed_costs", *TABLES, "reconciliation")
# In this order: tables' comments, and views over tables with the macros that they call.
_DEFINED = ("macros", *TABLES, "named", "as_of", "reconciliation")


class WarehouseOutdated(Exception):
    """The tables of this warehouse cannot be brought up to date in place, only built from its raw pages."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why} Build the warehouse from its raw pages with finora rebuild --replace; no data is lost."
        )


class RebuildIncomplete(Exception):
    """Some raw files could not be loaded; the message says which, and what to do. Nothing was replaced."""


class WarehouseTooNew(Exception):
    """A newer version of finora made this warehouse; the message says what to do."""


def create_or_migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Leaves the tables of this version, whatever the database held before; all or nothing.

    Raises `WarehouseOutdated` where only a rebuild helps, and `WarehouseTooNew`.
    """
    number, definitions = _version(connection)
    if (number, definitions) == (SCHEMA_NUMBER, definitions_hash()):
        return
    if number is not None and number > SCHEMA_NUMBER:
        raise WarehouseTooNew(
            f"A newer version of finora made this warehouse (schema {number}, this one knows "
            f"{SCHEMA_NUMBER}). Install that version again, or a later one."
        )
    connection.begin()
    try:
        if number is None:
            for name in _CREATED:
                connection.execute(section(name, "create"))
        else:
            _migrate(connection, number)
            add_measures(connection)
        for name in _DEFINED:
            connection.execute(section(name, "define"))
        for migration in MIGRATIONS:
            if number is not None and migration.number > number and migration.then:
                migration.then(connection)
        connection.execute("DELETE FROM pipeline.schema_version")
        connection.execute(
            "INSERT INTO pipeline.schema_version VALUES (?, ?, now())", [SCHEMA_NUMBER, definitions_hash()]
        )
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _version(connection: duckdb.DuckDBPyConnection) -> tuple[int | None, str]:
    """The number and definitions of a database: None for an empty one, 0 for one without a number."""
    try:
        found = connection.execute("SELECT number, definitions FROM pipeline.schema_version").fetchall()
    except duckdb.CatalogException:
        found = []
    if found:
        return found[0]
    has_tables = connection.execute("FROM duckdb_schemas() WHERE schema_name = 'pipeline'").fetchall()
    return (0, "") if has_tables else (None, "")


def _migrate(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    if number == 0:
        if columns_of(connection) != columns_of_first_number():
            raise WarehouseOutdated("The warehouse has the tables of an early version of finora.")
        connection.execute("DROP TABLE IF EXISTS pipeline.made_by")
        connection.execute(
            "CREATE TABLE pipeline.schema_version (number INTEGER NOT NULL, definitions VARCHAR NOT NULL, "
            "changed_at TIMESTAMPTZ NOT NULL)"
        )
    for migration in MIGRATIONS:
        if migration.number > number:
            if migration.needs_rebuild:
                raise WarehouseOutdated(migration.purpose)
            migration.apply(connection)


@lru_cache(maxsize=1)
def definitions_hash() -> str:
    """Identifies the text of the comments, macros and views of this version."""
    text = "".join(section(name, "define") for name in _DEFINED)
    return hashlib.sha256(text.encode()).hexdigest()
