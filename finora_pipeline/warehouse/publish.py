"""The copy that readers open: written aside and swapped in with one rename, so that nobody ever waits.

A reader with the old file open keeps reading it. Parquet files, one a table and month, are rewritten for the
months that changed.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa

from finora_pipeline.warehouse.metrics import catch_up
from finora_pipeline.warehouse.published import quoted
from finora_pipeline.warehouse.schema import MONTHLY_TABLES
from finora_pipeline.warehouse.warehouse import Warehouse, transaction

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


@dataclass(frozen=True, slots=True)
class Published:
    """What was published: the file, its size in bytes, the Parquet files rewritten, when; and the tables of
    which readers do not get what the pipeline holds, with the rows and dollars of both: there are none.
    `daily_usd`: what all users were charged on each of the last days, in USD."""

    database: Path
    bytes: int
    months: int
    at: datetime
    different: dict[str, tuple[tuple[object, ...], tuple[object, ...]]]
    daily_usd: list[tuple[date, Decimal]]


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
    database.parent.mkdir(parents=True, exist_ok=True)
    with warehouse.lock():
        _remove_halves(warehouse.published)
        with warehouse.connect() as connection:
            catch_up(connection, user_ids, today)
            with transaction(connection):
                rows = pa.Table.from_pylist(list(connection_rows()), CONNECTION_SCHEMA)
                connection.register("connection_rows", rows)
                connection.execute("TRUNCATE connections")
                connection.execute("INSERT INTO connections SELECT * FROM connection_rows")
            months = _write_months(connection, warehouse.published / "parquet")
            connection.execute("CHECKPOINT")
            held = {table: _totals(connection, table, today) for table in COMPARED}
        size = _swap_in(warehouse.database, database)
        with duckdb.connect(database, read_only=True) as connection:
            copied = {table: _totals(connection, table, today) for table in COMPARED}
            daily_usd = connection.execute(
                "SELECT date, sum(amount_usd) FROM daily_model_costs WHERE date > $first AND NOT is_sample "
                "GROUP BY date ORDER BY date",
                {"first": today - SHOWN_DAYS},
            ).fetchall()
    different = {table: (held[table], copied[table]) for table in COMPARED if held[table] != copied[table]}
    return Published(database, size, months, datetime.now(UTC), different, daily_usd)


def _totals(connection: duckdb.DuckDBPyConnection, table: str, today: date) -> tuple[object, ...]:
    """All rows of a table, and those of the last days with their dollars."""
    recent = f"FROM {table} WHERE date >= $first"
    first = {"first": today - COMPARED_DAYS}
    rows = connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0]
    return rows + connection.execute(f"SELECT count(*), sum(amount_usd) {recent}", first).fetchall()[0]


def _remove_halves(folder: Path) -> None:
    """Removes what somebody who was killed, or had no room, has written aside; under the lock nobody does."""
    for half in (*folder.glob(".finora.duckdb.*"), *folder.glob("parquet/*/*/.*.parquet.*")):
        half.unlink()


def _swap_in(source: Path, target: Path) -> int:
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with source.open("rb") as read, aside.open("wb") as written:
            # In the kernel, and without a copy at all where the file system can share blocks.
            left = source.stat().st_size
            while left and (copied := os.copy_file_range(read.fileno(), written.fileno(), left)):
                left -= copied
            os.fsync(written.fileno())
    except BaseException:
        # Half a copy would keep a full disk full.
        aside.unlink(missing_ok=True)
        raise
    size = aside.stat().st_size
    aside.rename(target)
    return size


def _write_months(connection: duckdb.DuckDBPyConnection, folder: Path) -> int:
    """Rewrites the Parquet file of each table and month that changed; returns how many."""
    changed: list[tuple[str, date]] = connection.execute(
        "SELECT DISTINCT table_name, month FROM pipeline.unpublished_months ORDER BY ALL"
    ).fetchall()

    def write(table_and_month: tuple[str, date]) -> None:
        with connection.cursor() as own:
            _write_month(own, folder, *table_and_month)

    # Compression takes most of the time, and a month is too small for DuckDB to share out.
    with ThreadPoolExecutor(2, "parquet") as threads:
        list(threads.map(write, changed))
    connection.execute("TRUNCATE pipeline.unpublished_months")
    return len(changed)


def _write_month(connection: duckdb.DuckDBPyConnection, folder: Path, table: str, month: date) -> None:
    assert table in MONTHLY_TABLES
    target = folder / table / f"month={month:%Y-%m}" / f"{table}.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
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
    aside.rename(target)
