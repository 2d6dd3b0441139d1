"""The warehouse's schema number and the ordered steps that bring an earlier one up to it.

A migration is additive: it adds tables and columns, and marks the days stale whose metrics change. All steps
of an upgrade run in one transaction, which also stores the new number. Comments, macros and views are no
migrations: they are defined again whenever their text changes (`schema.py`). A change that cannot be made in
place sets `needs_rebuild`: the warehouse is then rebuilt from its raw pages.

To add one, append a `Migration` with the next number, put its statements into `NNNN_name.sql` in this folder
and change the `[create]` section of the table's file to match; a test compares both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import duckdb

from finora_pipeline.warehouse.reparse import mark_services_stale, reparse_line_items
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.statements import run_section

Columns = list[tuple[str, int, str, str, bool]]
_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Migration:
    """One step: the number after it, its purpose in a sentence, and what it does.

    `file`: its SQL file in this folder. `then`: a step in Python that runs after the SQL files and the
    definitions of the whole upgrade.
    """

    number: int
    purpose: str
    file: str | None = None
    then: Callable[[duckdb.DuckDBPyConnection], None] | None = None
    needs_rebuild: bool = False

    def apply(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Executes the SQL file, if any, within the caller's transaction."""
        if self.file:
            connection.execute((_FOLDER / self.file).read_text())


def _reparse(connection: duckdb.DuckDBPyConnection) -> None:
    reparse_line_items(connection)
    mark_services_stale(connection)


def _delete_sample_rows(connection: duckdb.DuckDBPyConnection) -> None:
    # After all files: DuckDB alters no table of which the same transaction has deleted rows.
    connection.execute((_FOLDER / "0005_no_sample_rows.sql").read_text())


def _reparse_all(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute(section("daily_costs", "fill"))
    _reparse(connection)


def _infer_moments(connection: duckdb.DuckDBPyConnection) -> None:
    run_section(connection, "pipeline", "infer_moments")


# Versions before the first number stored a hash of the tables' text.
MIGRATIONS = (
    Migration(1, "Numbers the tables, which are those of the last versions without a number."),
    Migration(2, "Reads models and token types from line items by a wider grammar.", then=_reparse),
    Migration(
        3,
        "Adds image size and source, search context level and vector store to usage.",
        "0003_usage_dimensions.sql",
    ),
    Migration(4, "Records when a day was complete and last checked.", "0004_moments.sql", _infer_moments),
    Migration(5, "Deletes the sample rows of users without costs.", then=_delete_sample_rows),
    Migration(6, "Adds the table about, with the version of the published tables.", "0006_about.sql"),
    Migration(
        7, "Adds services and categories of charges, and known days.", "0007_figures.sql", _reparse_all
    ),
    Migration(8, "Splits every charge by member and API key.", "0008_attributed_costs.sql"),
    Migration(9, "Adds keys of projects, members and API keys across users.", "0009_keys.sql"),
)
SCHEMA_NUMBER = MIGRATIONS[-1].number


def columns_of(connection: duckdb.DuckDBPyConnection) -> Columns:
    """Every column of the warehouse's tables: table, position, name, type, nullable.

    Without the tables that hold the schema's version.
    """
    return connection.execute(
        "SELECT schema_name || '.' || table_name, column_index, column_name, data_type, is_nullable "
        "FROM duckdb_columns() SEMI JOIN (FROM duckdb_tables() WHERE NOT internal AND NOT temporary) "
        "USING (database_name, schema_name, table_name) WHERE database_name = current_database() "
        "AND table_name NOT IN ('made_by', 'schema_version') ORDER BY ALL"
    ).fetchall()


def create_first_number(connection: duckdb.DuckDBPyConnection) -> None:
    """Creates the tables of schema number 1 in an empty database."""
    connection.execute((_FOLDER / "0001_tables.sql").read_text())


@lru_cache(maxsize=1)
def columns_of_first_number() -> Columns:
    """The columns of schema number 1."""
    with duckdb.connect(":memory:") as connection:
        create_first_number(connection)
        return columns_of(connection)
