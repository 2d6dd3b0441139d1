"""The pipeline's own DuckDB database: who may write, and with which tables.

Writers take turns by an operating-system lock on a file beside the database, held for the seconds of a
write. It covers every process (runs, command line, tests) and ends with the process that holds it. Nobody
else opens this file: readers get a published copy.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import duckdb

from finora_pipeline.data_folder.disk import is_in_use, storage_errors, translate_disk_full, warehouse_store
from finora_pipeline.data_folder.private_files import open_lock
from finora_pipeline.settings import wait_seconds
from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.schema import create_or_migrate
from finora_pipeline.warehouse.sql import section


class PartsUnequal(Exception):
    """Parts of the costs do not add up to the bill; the message says where and what to do."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column as an analyst sees it."""

    name: str
    type: str
    comment: str


@dataclass(frozen=True, slots=True)
class Description:
    """What a table or view is, in a sentence, and its columns."""

    comment: str
    columns: list[Column]


class Warehouse:
    """The warehouse below a data folder; creating the object touches nothing."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.database = home / "warehouse" / "warehouse.duckdb"
        # Long raw pages in pieces, while they are loaded.
        self.cut_pages = self.database.with_name("cut_pages")
        self.raw = home / "raw"
        self.published = home / "published"
        self.published_database = self.published / "finora.duckdb"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Waits for and holds the right to write; not reentrant. Raises `DiskFull`."""
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
        """A connection for the holder of the lock; the tables are created in a new database. Raises
        `StorageError` where it cannot be read or another program has it open."""
        with self.storage_errors(), open_to_write(self.database) as connection:
            yield connection

    def storage_errors(self) -> AbstractContextManager[None]:
        """Turns what DuckDB says about the warehouse's file into a `StorageError`."""
        return storage_errors(warehouse_store(self.home, self.database))

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The lock and a connection, for one write."""
        with self.lock(), self.connect() as connection:
            yield connection


@contextmanager
def open_to_write(database: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a warehouse's file, which is made if there is none, within the memory it may take."""
    config: dict[str, str | bool | int | float | list[str]] = {
        **duckdb_limits().config,
        "temp_directory": str(database.with_name("spill")),
        # Every DuckDB from 1.2 on can open the published copy of a new file.
        "storage_compatibility_version": "v1.2.0",
        # What is larger goes straight into the database instead of into its log first.
        "checkpoint_threshold": "8MB",
        # It takes a quarter of a commit to try; in the benchmarks no column is smaller with it.
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
    """Connects, and waits for `wait_seconds` where another program has the file open."""
    end = time.monotonic() + wait_seconds()
    while True:
        try:
            return duckdb.connect(database, config=config)
        except duckdb.IOException as error:
            if not is_in_use(error) or time.monotonic() >= end:
                raise
        time.sleep(0.1)


def settle(database: Path) -> None:
    """Brings what a killed process has left in a database's log into the database, if there is one: DuckDB
    would replay the log into whatever takes the database's place."""
    if database.exists():
        _connect_when_free(database, duckdb_limits().config).close()


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """All or nothing: commits at the end of the block, rolls back if it fails."""
    connection.begin()
    try:
        yield
    except BaseException:
        # A database that is damaged or full has ended the transaction itself.
        with suppress(duckdb.Error):
            connection.rollback()
        raise
    connection.commit()


def run(connection: duckdb.DuckDBPyConnection, table: str, name: str, **parameters: Any) -> None:
    """Executes a section's statements, each with those of the parameters that it names."""
    for statement in duckdb.extract_statements(section(table, name)):
        wanted = {key: parameters[key] for key in statement.named_parameters}
        connection.execute(statement, wanted or None)


@lru_cache(maxsize=1)
def described_tables() -> dict[str, Description]:
    """The published tables and views by name, as their `.sql` files document them."""
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
