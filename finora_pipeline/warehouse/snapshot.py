"""The published file as its readers see it. Imports little: the dashboard keeps that in memory for good."""

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
    """The file's path as a text in SQL, for statements that take no parameter."""
    return "'" + str(file).replace("'", "''") + "'"


def attach(connection: duckdb.DuckDBPyConnection, file: Path) -> None:
    """Attaches the file to a database in memory as `finora`, to read; it shows the same copy from then on.

    To connect to its path instead would show the copy that the process has open already, however old.
    """
    connection.execute(f"ATTACH {quoted(file)} AS {DATABASE} (READ_ONLY)")
    connection.execute("SET GLOBAL TimeZone = 'UTC'")


def close_off(connection: duckdb.DuckDBPyConnection, *, spills: bool) -> None:
    """Leaves a connection nothing but its attached tables: no files, networks, extensions or settings.

    What does not fit into memory may still be spilled with `spills`. Then DuckDB also lets SQL write the
    attached file itself, if this account can: only for SQL that is not a person's.
    """
    for setting in _CLOSED:
        connection.execute(f"SET {setting}")
    if not spills:
        connection.execute("SET disabled_filesystems = 'LocalFileSystem'")
    connection.execute("SET lock_configuration = true")
