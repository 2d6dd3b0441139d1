"""The pipeline's own DuckDB database: its lock, its connections and its documented tables.

Writers take turns by an operating-system lock on a file in the database's folder, held for the seconds of a
write. It covers every process (runs, command line, tests) and ends with the process that holds it. Readers
never open this file: they get the published snapshot.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import duckdb

from finora_pipeline.data_folder.disk import is_in_use, storage_errors, translate_disk_full, warehouse_store
from finora_pipeline.data_folder.private_files import open_lock
from finora_pipeline.settings import wait_seconds
from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.schema import create_or_migrate


class PartsUnequal(Exception):
    """Split costs do not add up to daily_costs; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class Column:
    """A published column: its name, DuckDB type and comment."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True, slots=True)
class Description:
    """A published table or view: its comment and its columns, in their order."""

    comment: str
    columns: list[Column]


class Warehouse:
    """The warehouse of a data folder; creating the object touches nothing."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.database = home / "warehouse" / "warehouse.duckdb"
        # Holds long raw pages in pieces, while they are loaded.
        self.cut_pages = self.database.with_name("cut_pages")
        self.raw = home / "raw"
        self.published = home / "published"
        self.published_database = self.published / "finora.duckdb"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Waits for the write lock and holds it; not reentrant. Raises `DiskFull`."""
        with translate_disk_full(self.home):
            self.database.parent.mkdir(parents=True, exist_ok=True)
            descriptor = open_lock(self.database.with_name("write.lock"))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for the holder of the lock, to a database with the tables of this version.

        Raises `StorageError` where the file cannot be read or another program has it open.
        """
        with self.storage_errors(), open_to_write(self.database) as connection:
            yield connection

    def storage_errors(self) -> AbstractContextManager[None]:
        """Turns DuckDB's errors about the warehouse's file into `StorageError`."""
        return storage_errors(warehouse_store(self.home, self.database))

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The lock and a connection, for one write."""
        with self.lock(), self.connect() as connection:
            yield connection


@contextmanager
def open_to_write(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a warehouse's file, created if missing, within `duckdb_limits`."""
    config: dict[str, str | bool | int | float | list[str]] = {
        **duckdb_limits().config,
        "temp_directory": str(database.with_name("spill")),
        # DuckDB 1.2 and later can open the published snapshot of a new file.
        "storage_compatibility_version": "v1.2.0",
        # A larger write goes into the database directly instead of through the log.
        "checkpoint_threshold": "8MB",
        # Trying it takes a quarter of a commit; in the benchmarks it makes no column smaller.
        "disabled_compression_methods": "fsst",
    }
    connection = _connect_when_free(database, config)
    try:
        connection.execute("SET GLOBAL TimeZone = 'UTC'")
        connection.execute("SET GLOBAL preserve_insertion_order = false")
        create_or_migrate(connection)
        yield connection
    finally:
        connection.close()


def _connect_when_free(
    database: Path, config: dict[str, str | bool | int | float | list[str]]
) -> duckdb.DuckDBPyConnection:
    """Connects; waits up to `wait_seconds` while another program has the file open."""
    end = time.monotonic() + wait_seconds()
    while True:
        try:
            return duckdb.connect(database, config=config)
        except duckdb.IOException as error:
            if not is_in_use(error) or time.monotonic() >= end:
                raise
        time.sleep(0.1)


def replay_log(database: Path) -> None:
    """Writes the log that a killed process has left into its database, if the database exists.

    DuckDB would otherwise replay the log into a file that replaces the database.
    """
    if database.exists():
        _connect_when_free(database, duckdb_limits().config).close()


@lru_cache(maxsize=1)
def described_tables() -> dict[str, Description]:
    """The published tables and views by name, with the comments of their `[define]` sections."""
    with duckdb.connect(":memory:") as connection:
        create_or_migrate(connection)
        columns: dict[str, list[Column]] = {}
        for table, name, type_, comment in connection.execute(
            "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
            "WHERE schema_name = 'main' AND NOT internal ORDER BY table_name, column_index"
        ).fetchall():
            columns.setdefault(table, []).append(Column(name, type_, comment))
        comments = connection.execute(
            "SELECT table_name, comment FROM duckdb_tables() WHERE schema_name = 'main' AND NOT internal "
            "UNION ALL "
            "SELECT view_name, comment FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal"
        ).fetchall()
    return {table: Description(comment, columns[table]) for table, comment in comments}
