"""The published file as readers open it. Imports little: the dashboard keeps it in memory."""

from pathlib import Path

import duckdb

# The name of the published database within a connection.
DATABASE = "finora"
_CLOSED = (
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    "allow_community_extensions = false",
    "enable_external_access = false",
)


def quoted(file: Path) -> str:
    """The path as an SQL string literal, for statements that take no parameters."""
    return "'" + str(file).replace("'", "''") + "'"


def attach(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Attaches the file read-only as `finora`; it shows one snapshot from then on.

    For a database in memory. A connection to the file's path would share an older snapshot that the process
    still has open.
    """
    connection.execute(f"ATTACH {quoted(file)} AS {DATABASE} (READ_ONLY)")
    connection.execute("SET GLOBAL TimeZone = 'UTC'")


def close_off(connection: duckdb.DuckDBPyConnection, *, spills: bool) -> None:
    """Restricts a connection to its attached tables: no files, networks, extensions or settings.

    With `spills` queries may still spill to disk. DuckDB then also lets SQL write the attached file, if this
    account can: use it only for our own SQL.
    """
    for setting in _CLOSED:
        connection.execute(f"SET {setting}")
    if not spills:
        connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
    connection.execute("SET lock_configuration = true")
