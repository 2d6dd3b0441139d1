"""The published file as its readers see it. Imports little: the dashboard keeps that in memory for good."""

from pathlib import Path

import duckdb

# The name of the published database within a connection.
DATABASE = "finora"


def quoted(file: Path) -> str:
    """The file's path as a text in SQL, for statements that take no parameter."""
    return "'" + str(file).replace("'", "''") + "'"


def attach(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Attaches the file to a database in memory as `finora`, to read; it shows the same copy from then on.

    To connect to its path instead would show the copy that the process has open already, however old.
    """
    connection.execute(f"ATTACH {quoted(file)} AS {DATABASE} (READ_ONLY)")
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
