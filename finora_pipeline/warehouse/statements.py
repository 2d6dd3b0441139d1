"""Executes the warehouse's SQL: a section with its parameters, and what is one transaction."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import duckdb

from finora_pipeline.warehouse.sql import section


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commits at the end of the block, or rolls back if the block raises."""
    connection.begin()
    try:
        yield
    except BaseException:
        # A damaged database or a full disk has ended the transaction already.
        with suppress(duckdb.Error):
            connection.rollback()
        raise
    connection.commit()


def run_section(connection: duckdb.DuckDBPyConnection, table: str, name: str, **parameters: Any) -> None:
    """Executes the statements of a section, each with those of the parameters that it names."""
    execute_with(connection, section(table, name), **parameters)


def execute_with(connection: duckdb.DuckDBPyConnection, statements: str, **parameters: Any) -> None:
    """Executes statements, each with those of the parameters that it names."""
    for statement in duckdb.extract_statements(statements):
        wanted = {key: parameters[key] for key in statement.named_parameters}
        connection.execute(statement, wanted or None)
