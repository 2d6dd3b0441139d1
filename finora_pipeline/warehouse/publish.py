"""Publishes the snapshot that readers open: a copy swapped in with one rename.

No reader waits; one with the old file open keeps reading it. Parquet files, one per table and month, are
rewritten for the months that changed.
"""

import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa

from finora_pipeline.data_folder.private_files import make_folder, share_published
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import catch_up
from finora_pipeline.warehouse.published_record import (
    Repair,
    begin_publishing,
    compare_with_record,
    end_publishing,
    month_of,
    remove_companions,
)
from finora_pipeline.warehouse.snapshot import quoted
from finora_pipeline.warehouse.statements import transaction
from finora_pipeline.warehouse.tables import MONTHLY_TABLES

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
        with warehouse.connect() as connection:
            catch_up(connection, today)
            with transaction(connection):
                rows = pa.Table.from_pylist(list(connection_rows()), CONNECTION_SCHEMA)
                connection.register("connection_rows", rows)
                connection.execute("TRUNCATE connections")
                connection.execute("INSERT INTO connections SELECT * FROM connection_rows")
            begin_publishing(warehouse, record)
            _mark_months(connection, warehouse, changed, is_recorded=bool(record.files))
            months = _write_months(connection, warehouse.published)
            connection.execute("CHECKPOINT")
            held = {table: _totals(connection, table, today) for table in COMPARED}
        size, copied, daily_usd = _swap_in(warehouse, today)
        if copied != held:
            # A program with the earlier snapshot open to write may have left its log for this one.
            size, copied, daily_usd = _swap_in(warehouse, today)
        end_publishing(warehouse, record)
    repair = record.repair if record.repair and record.repair.at == started else None
    if repair:
        _log.warning("%s", repair.message)
    different = {table: (held[table], copied[table]) for table in COMPARED if held[table] != copied[table]}
    return Published(database, size, months, datetime.now(UTC), different, daily_usd, repair)


def _totals(connection: duckdb.DuckDBPyConnection, table: str, today: date) -> _Totals:
    """Number of rows of a table, then rows and USD of its last days."""
    recent = f"FROM {table} WHERE date >= $first"
    first = {"first": today - COMPARED_DAYS}
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    return rows + connection.execute(f"SELECT count(*), sum(amount_usd) {recent}", first).fetchall()[0]


def _delete_temp_files(folder: Path) -> None:
    """Deletes temp files of a crashed publish; safe, since the caller holds the lock."""
    for temporary in (*folder.glob(".finora.duckdb.*"), *folder.glob("parquet/*/*/.*.parquet.*")):
        temporary.unlink()


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


def _mark_months(
    connection: duckdb.DuckDBPyConnection, warehouse: Warehouse, changed: list[str], *, is_recorded: bool
) -> None:
    """Marks months whose Parquet files another program has changed or deleted.

    Without a record, marks every month whose file is missing. Deletes foreign files.
    """
    months: set[tuple[str, str]] = set()
    if not is_recorded:
        for table in MONTHLY_TABLES:
            rows = connection.execute(f"SELECT DISTINCT strftime(date, '%Y-%m') FROM {table}").fetchall()
            folder = warehouse.published / "parquet" / table
            months |= {
                (table, f"{month}-01")
                for (month,) in rows
                if not (folder / f"month={month}" / f"{table}.parquet").exists()
            }
    for name in changed:
        if month := month_of(name):
            months.add(month)
        elif name.startswith("parquet/"):
            (warehouse.published / name).unlink(missing_ok=True)
    for table, month in sorted(months):
        connection.execute(
            "INSERT INTO pipeline.unpublished_months SELECT $table, $month::DATE "
            "EXCEPT FROM pipeline.unpublished_months",
            {"table": table, "month": month},
        )


def _write_months(connection: duckdb.DuckDBPyConnection, published: Path) -> int:
    """Rewrites the Parquet file of each table and month that changed; returns their number."""
    changed: list[tuple[str, date]] = connection.execute(
        "SELECT DISTINCT table_name, month FROM pipeline.unpublished_months ORDER BY ALL"
    ).fetchall()

    def write(table_and_month: tuple[str, date]) -> None:
        with connection.cursor() as own:
            _write_month(own, published, *table_and_month)

    # Compression takes most of the time, and a month is too small for DuckDB's own threads.
    with ThreadPoolExecutor(2, "parquet") as threads:
        list(threads.map(write, changed))
    connection.execute("TRUNCATE pipeline.unpublished_months")
    return len(changed)


def _write_month(connection: duckdb.DuckDBPyConnection, published: Path, table: str, month: date) -> None:
    assert table in MONTHLY_TABLES
    target = published / "parquet" / table / f"month={month:%Y-%m}" / f"{table}.parquet"
    for folder in reversed(target.parents[:3]):
        folder.mkdir(exist_ok=True)
        share_published(folder, published)
    days = f"FROM {table} WHERE date >= $month AND date < $month + INTERVAL 1 MONTH"
    if not connection.execute(f"{days} LIMIT 1", {"month": month}).fetchall():
        # All rows of the month have expired.
        target.unlink(missing_ok=True)
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    connection.execute(
        f"COPY ({days}) TO {quoted(temporary)} "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 40960)",
        {"month": month},
    )
    share_published(temporary, published)
    temporary.rename(target)
