"""Publishes the snapshot that readers open: a copy swapped in with one rename.

No reader waits; one with the old file open keeps reading it. The same tables are published as Parquet
(`parquet_files.py`), with a manifest of the moment (`manifest.py`).
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path

import duckdb
import pyarrow as pa

from finora_pipeline.data_folder.private_files import make_folder, share_published
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.manifest import (
    CURRENCY,
    MANIFEST,
    SNAPSHOTS,
    TIME_ZONE,
    Manifest,
    link_snapshot,
    list_files,
    read_manifest,
    remove_snapshots,
    snapshot_folder,
    write_manifest,
)
from finora_pipeline.warehouse.metrics import catch_up
from finora_pipeline.warehouse.parquet_files import (
    PARQUET,
    Columns,
    ParquetFile,
    columns_of_tables,
    existing_files,
    mark_files,
    mark_unsettled,
    mark_whole,
    write_changed,
)
from finora_pipeline.warehouse.published_record import (
    PublishedRecord,
    Repair,
    begin_publishing,
    compare_with_record,
    end_publishing,
    remove_changed_links,
    remove_companions,
)
from finora_pipeline.warehouse.statements import transaction
from finora_pipeline.warehouse.tables import PARQUET_TABLES, SCHEMA_VERSION

_log = logging.getLogger("finora.warehouse")
CONNECTION_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("provider", pa.string()),
        ("plan", pa.string()),
        ("status", pa.string()),
        ("status_reason", pa.string()),
        ("status_since", pa.timestamp("us", "UTC")),
        ("organization_id", pa.string()),
        ("connected_at", pa.timestamp("us", "UTC")),
        ("last_refresh_at", pa.timestamp("us", "UTC")),
        ("next_refresh_at", pa.timestamp("us", "UTC")),
    ]
)
# Tables by which a snapshot is compared with the warehouse: all rows, and the dollars of the last days.
COMPARED = (
    "daily_costs",
    "daily_model_costs",
    "daily_attributed_costs",
    "daily_member_costs",
    "daily_key_costs",
)
COMPARED_DAYS = timedelta(days=4)
SHOWN_DAYS = timedelta(days=30)
_Totals = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What was published: the file, its size, the number of Parquet files rewritten, and when.

    `different`: tables whose snapshot differs from the warehouse, with rows and dollars of both (expected
    none). `daily_usd`: USD charged to all users on each of the last days. `repair`: files that another
    program had changed and this publish repaired.
    """

    database: Path
    bytes: int
    months: int
    at: datetime
    different: dict[str, tuple[_Totals, _Totals]]
    daily_usd: list[tuple[date, Decimal]]
    repair: Repair | None = None


def publish(
    warehouse: Warehouse,
    connection_rows: Callable[[], Iterable[dict[str, object]]],
    today: date,
) -> Published:
    """Publishes the warehouse and the connections' states.

    `connection_rows`, rows of `CONNECTION_SCHEMA`, are read under the lock. Raises `PartsUnequal`; readers
    then keep the snapshot they have.
    """
    database = warehouse.published_database
    make_folder(database.parent)
    with warehouse.lock():
        started = datetime.now(UTC)
        _delete_temp_files(warehouse.published)
        record, changed = compare_with_record(warehouse, started)
        before = _manifest_before(warehouse, record, changed)
        with warehouse.connect() as connection:
            catch_up(connection, today)
            folder, at = snapshot_folder(warehouse.published, datetime.now(UTC))
            columns = columns_of_tables(connection)
            begin_publishing(warehouse, record)
            remove_changed_links(warehouse, record)
            with transaction(connection):
                _replace_connections(connection, connection_rows())
                is_first = _replace_about(connection, at)
                known = before if record.files and not is_first else None
                _mark(connection, warehouse.published, changed, columns, known, today)
            files = write_changed(connection, warehouse.published, known.rows if known else {}, today)
            connection.execute("CHECKPOINT")
            held = {table: _totals(connection, table, today) for table in COMPARED}
        size, copied, daily_usd = _replace_database(warehouse, today, held)
        _replace_manifest(warehouse, folder, at, columns, before)
        end_publishing(warehouse, record)
    repair = record.repair if record.repair and record.repair.at == started else None
    if repair:
        _log.warning("%s", repair.message)
    different = {table: (held[table], copied[table]) for table in COMPARED if held[table] != copied[table]}
    return Published(database, size, files, datetime.now(UTC), different, daily_usd, repair)


def _totals(connection: duckdb.DuckDBPyConnection, table: str, today: date) -> _Totals:
    """Number of rows of a table, then rows and USD of its last days."""
    recent = f"FROM {table} WHERE date >= $first"
    first = {"first": today - COMPARED_DAYS}
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    return rows + connection.execute(f"SELECT count(*), sum(amount_usd) {recent}", first).fetchall()[0]


def _delete_temp_files(folder: Path) -> None:
    """Deletes temp files of a crashed publish; safe, since the caller holds the lock."""
    patterns = (".finora.duckdb.*", f".{MANIFEST}.*", f"{PARQUET}/**/.*.parquet.*")
    for temporary in (path for pattern in patterns for path in folder.glob(pattern)):
        temporary.unlink()
    for partial in folder.glob(f"{SNAPSHOTS}/.*"):
        shutil.rmtree(partial)


def _replace_database(
    warehouse: Warehouse, today: date, held: dict[str, _Totals]
) -> tuple[int, dict[str, _Totals], list[tuple[date, Decimal]]]:
    """Swaps the copy in, a second time if its totals are not those of the warehouse."""
    swapped = _swap_in(warehouse, today)
    _, copied, _ = swapped
    # A program with the earlier snapshot open to write may have left its log for this one.
    return swapped if copied == held else _swap_in(warehouse, today)


def _swap_in(warehouse: Warehouse, today: date) -> tuple[int, dict[str, _Totals], list[tuple[date, Decimal]]]:
    """Replaces the published file by a copy of the warehouse.

    Returns its bytes, its totals by table, and the USD of each of the last days, as a reader gets them.
    """
    source, target = warehouse.database, warehouse.published_database
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _copy(source, temporary)
        share_published(temporary, target.parent)
        remove_companions(warehouse)
        size = temporary.stat().st_size
        temporary.rename(target)
    except BaseException:
        # A partial copy would keep a full disk full.
        temporary.unlink(missing_ok=True)
        raise
    with duckdb.connect(target, read_only=True) as connection:
        copied = {table: _totals(connection, table, today) for table in COMPARED}
        daily_usd = connection.execute(
            "SELECT date, sum(amount_usd) FROM daily_model_costs WHERE date > $first "
            "GROUP BY date ORDER BY date",
            {"first": today - SHOWN_DAYS},
        ).fetchall()
    return size, copied, daily_usd


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        if sys.platform == "linux":
            # Copies in the kernel, or shares the blocks where the file system can.
            left = source.stat().st_size
            while left and (copied := os.copy_file_range(read.fileno(), written.fileno(), left)):
                left -= copied
        else:
            shutil.copyfileobj(read, written, 1 << 20)
            written.flush()
        os.fsync(written.fileno())


def _manifest_before(warehouse: Warehouse, record: PublishedRecord, changed: list[str]) -> Manifest | None:
    """The manifest of the publish before, unless another program has changed it."""
    if MANIFEST in changed and not record.is_publishing:
        return None
    return read_manifest(warehouse.published)


def _replace_connections(connection: duckdb.DuckDBPyConnection, rows: Iterable[dict[str, object]]) -> None:
    connection.register("connection_rows", pa.Table.from_pylist(list(rows), CONNECTION_SCHEMA))
    connection.execute("TRUNCATE connections")
    connection.execute("INSERT INTO connections SELECT * FROM connection_rows")


def _replace_about(connection: duckdb.DuckDBPyConnection, at: datetime) -> bool:
    """Replaces the row of `about`; returns whether this warehouse was never published."""
    is_first = not connection.execute("FROM about").fetchall()
    connection.execute("TRUNCATE about")
    connection.execute(
        "INSERT INTO about VALUES (?, ?, ?, ?, ?)",
        [SCHEMA_VERSION, at, version("finora-pipeline"), CURRENCY, TIME_ZONE],
    )
    return is_first


def _mark(
    connection: duckdb.DuckDBPyConnection,
    published: Path,
    changed: list[str],
    columns: dict[str, Columns],
    known: Manifest | None,
    today: date,
) -> None:
    """Marks Parquet files to be written besides those of changed months; deletes foreign files.

    Those are the files that another program has changed, those whose rows change with the clock, and all of
    a table whose columns differ from those that the manifest `known` has.
    """
    for table in PARQUET_TABLES:
        of_files = known.tables.get(table.name) if known else None
        if of_files is None or of_files.columns != columns[table.name]:
            mark_whole(connection, table)
    if known:
        mark_unsettled(connection, known.published_at.date(), today)
    for name in changed if known else existing_files(published):
        if file := ParquetFile.of_name(name):
            mark_files(connection, [file])
        elif name.startswith(f"{PARQUET}/"):
            (published / name).unlink(missing_ok=True)


def _replace_manifest(
    warehouse: Warehouse, folder: str, at: datetime, columns: dict[str, Columns], before: Manifest | None
) -> None:
    """Makes the files of this publish one moment, and removes snapshots that no reader needs."""
    published = warehouse.published
    link_snapshot(published, folder)
    manifest = Manifest(
        SCHEMA_VERSION,
        at,
        version("finora-pipeline"),
        warehouse.published_database.name,
        folder,
        list_files(published, folder, columns, before),
    )
    write_manifest(published, manifest)
    remove_snapshots(published, folder, before)
