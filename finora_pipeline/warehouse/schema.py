"""Creates the warehouse's tables, and upgrades those of an earlier version.

`pipeline.schema_version` holds the number of the last migration and a hash of the definitions. Definitions
(comments, macros, views) are executed again whenever their text changes, without a new number.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import duckdb

from finora_pipeline.warehouse.migrations import (
    MIGRATIONS,
    SCHEMA_NUMBER,
    columns_of,
    columns_of_first_number,
)
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.tables import DIRECTORY, NAMED, TABLES
from finora_pipeline.warehouse.usage_columns import add_measures

_CREATED = ("pipeline", "billed_costs", *TABLES, "reconciliation")
# In this order: comments of tables, then views after the tables and macros that they use.
_DEFINED = (
    *("macros", "pipeline", *TABLES, "named", "as_of", "restatements", "reconciliation"),
    "daily_spend",
)


class WarehouseOutdated(Exception):
    """The tables of this warehouse cannot be upgraded in place, only rebuilt from its raw pages."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why} Rebuild it from its raw pages with finora rebuild --replace; no data is lost."
        )


class RebuildIncomplete(Exception):
    """Some raw files could not be loaded, and nothing was replaced; the message says what to do."""


class WarehouseTooNew(Exception):
    """A newer version of finora made this warehouse; the message says what to do."""


def create_or_migrate(connection: duckdb.DuckDBPyConnection) -> None:
    """Creates the tables of this version, or upgrades earlier ones, in one transaction.

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
        for statements in _definitions():
            connection.execute(statements)
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
    """The stored number (None in an empty database, 0 if not stored) and definitions hash."""
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


def _definitions() -> Iterator[str]:
    for name in _DEFINED:
        yield section(name, "define")
    for texts in DIRECTORY.values():
        yield section("directory", "define", **texts)
    for view, table in NAMED.items():
        yield "\n".join(_column_comments(table)).replace(f"COLUMN {table}.", f"COLUMN {view}.")
    yield section("named", "comments")


def _column_comments(table: str) -> list[str]:
    """The statements that comment the table's columns, for a view that shows them."""
    return [
        line
        for line in section(table, "define").splitlines()
        if line.startswith(f"COMMENT ON COLUMN {table}.")
    ]


@lru_cache(maxsize=1)
def definitions_hash() -> str:
    """SHA-256 of the text of this version's comments, macros and views."""
    return hashlib.sha256("".join(_definitions()).encode()).hexdigest()
