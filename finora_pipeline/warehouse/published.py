"""The published file as its readers see it. Imports little: the dashboard keeps that in memory for good."""

from pathlib import Path

import duckdb

# The name of the published database within a connection.
DATABASE = "finora"


def attach(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Attaches the file to a database in memory as `finora`, to read; it shows the same copy from then on.

    To connect to its path instead would show the copy that the process has open already, however old.
    """
    name = str(file).replace("'", "''")
    connection.execute(f"ATTACH '{name}' AS {DATABASE} (READ_ONLY)")
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
