"""The copy that readers open: written aside and swapped in with one rename, so that nobody ever waits.

A reader with the old file open keeps reading it. Parquet files, one a table and month, are rewritten for the
months that changed.
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
from finora_pipeline.warehouse.database import Warehouse, transaction
from finora_pipeline.warehouse.metrics import catch_up
from finora_pipeline.warehouse.published_record import (
    Repair,
    begin_publishing,
    compare_with_record,
    end_publishing,
    month_of,
    remove_companions,
)
from finora_pipeline.warehouse.schema import MONTHLY_TABLES
from finora_pipeline.warehouse.snapshot import quoted

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


# What a copy is compared by: whole tables by their number of rows, the last days by the sum of their dollars.
COMPARED = ("daily_costs", "daily_model_costs", "daily_member_costs", "daily_key_costs")
COMPARED_DAYS = timedelta(days=4)
SHOWN_DAYS = timedelta(days=30)
_Totals = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """What was published: the file, its size in bytes, the Parquet files rewritten, when; and the tables of
    which readers do not get what the pipeline holds, with the rows and dollars of both: there are none.
    `daily_usd`: what all users were charged on each of the last days, in USD. `repair`: files that another
    program had changed, which this run has put right."""

    database: Path
    bytes: int
    months: int
    at: datetime
    different: dict[str, tuple[_Totals, _Totals]]
    daily_usd: list[tuple[date, Decimal]]
    repair: Repair | None = None


def publish(
    warehouse: Warehouse,
    user_ids: Iterable[str],
    connection_rows: Callable[[], Iterable[dict[str, object]]],
    today: date,
) -> Published:
    """Publishes the warehouse as it is now, with the connections' states.

    `user_ids` are all users there are; they and `connection_rows`, which gives rows of `CONNECTION_SCHEMA`,
    are asked for under the lock. Raises `PartsUnequal`, and leaves readers the copy they have.
    """
    database = warehouse.published_database
    make_folder(database.parent)
    with warehouse.lock():
        started = datetime.now(UTC)
        _remove_halves(warehouse.published)
        record, changed = compare_with_record(warehouse, started)
        with warehouse.connect() as connection:
            catch_up(connection, user_ids, today)
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
            # A program that still had the copy before open to write has left its log beside this one.
            size, copied, daily_usd = _swap_in(warehouse, today)
        end_publishing(warehouse, record)
    repair = record.repair if record.repair and record.repair.at == started else None
    if repair:
        _log.warning("%s", repair.message)
    different = {table: (held[table], copied[table]) for table in COMPARED if held[table] != copied[table]}
    return Published(database, size, months, datetime.now(UTC), different, daily_usd, repair)


def _totals(connection: duckdb.DuckDBPyConnection, table: str, today: date) -> _Totals:
    """All rows of a table, and those of the last days with their dollars."""
    recent = f"FROM {table} WHERE date >= $first"
    first = {"first": today - COMPARED_DAYS}
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    return rows + connection.execute(f"SELECT count(*), sum(amount_usd) {recent}", first).fetchall()[0]


def _remove_halves(folder: Path) -> None:
    """Removes what somebody who was killed, or had no room, has written aside; under the lock nobody does."""
    for half in (*folder.glob(".finora.duckdb.*"), *folder.glob("parquet/*/*/.*.parquet.*")):
        half.unlink()


def _swap_in(warehouse: Warehouse, today: date) -> tuple[int, dict[str, _Totals], list[tuple[date, Decimal]]]:
    """Puts a copy of the warehouse in the published file's place; returns its bytes, and its totals and the
    dollars of the last days as a reader gets them."""
    source, target = warehouse.database, warehouse.published_database
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        _copy(source, aside)
        share_published(aside, target.parent)
        remove_companions(warehouse)
        size = aside.stat().st_size
        aside.rename(target)
    except BaseException:
        # Half a copy would keep a full disk full.
        aside.unlink(missing_ok=True)
        raise
    with duckdb.connect(target, read_only=True) as connection:
        copied = {table: _totals(connection, table, today) for table in COMPARED}
        daily_usd = connection.execute(
            "SELECT date, sum(amount_usd) FROM daily_model_costs WHERE date > $first AND NOT is_sample "
            "GROUP BY date ORDER BY date",
            {"first": today - SHOWN_DAYS},
        ).fetchall()
    return size, copied, daily_usd


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as written:
        if sys.platform == "linux":
            # In the kernel, and without a copy at all where the file system can share blocks.
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
    """Has the Parquet files written that another program has changed or taken away, all that are missing
    where nothing was recorded; removes foreign ones."""
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
    """Rewrites the Parquet file of each table and month that changed; returns how many."""
    changed: list[tuple[str, date]] = connection.execute(
        "SELECT DISTINCT table_name, month FROM pipeline.unpublished_months ORDER BY ALL"
    ).fetchall()

    def write(table_and_month: tuple[str, date]) -> None:
        with connection.cursor() as own:
            _write_month(own, published, *table_and_month)

    # Compression takes most of the time, and a month is too small for DuckDB to share out.
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
        # Nothing of that month is kept.
        target.unlink(missing_ok=True)
        return
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    connection.execute(
        f"COPY ({days}) TO {quoted(aside)} "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 40960)",
        {"month": month},
    )
    share_published(aside, published)
    aside.rename(target)
