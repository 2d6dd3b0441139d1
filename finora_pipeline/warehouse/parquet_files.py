"""The published tables as Parquet in `published/parquet`: a file per month, or one per small table.

Which months are written: those marked in `pipeline.unpublished_months`, also for tables that are made from a
marked one; of tables to which rows are only added, the files whose number of rows has changed. Each file is
replaced by a rename; `manifest.py` makes all of them one moment.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import duckdb

from finora_pipeline.data_folder.private_files import make_folder, share_published
from finora_pipeline.openai_admin.provider import CLOSING_DAYS, FINAL_AFTER_DAYS
from finora_pipeline.warehouse.snapshot import quoted
from finora_pipeline.warehouse.tables import PARQUET_TABLES, ParquetTable

PARQUET = "parquet"
# Columns of a table by name, with their DuckDB types.
Columns = dict[str, str]
_BY_NAME = {table.name: table for table in PARQUET_TABLES}
_NAME = re.compile(
    rf"{PARQUET}/(?P<table>\w+)/(?:month=(?P<month>\d{{4}}-(?:0[1-9]|1[0-2]))/)?"
    r"(?P=table)(?:\.(?P<hour>\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3])))?\.parquet"
)
_HOUR = "%Y-%m-%dT%H"
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """A Parquet file: its table, its month's first day unless it is the whole table, and its hour (UTC).

    With an hour it has the rows of the month that were added in that hour.
    """

    table: ParquetTable
    month: date | None
    hour: datetime | None = None

    @property
    def name(self) -> str:
        """Its path below `published/`."""
        folder = f"/month={self.month:%Y-%m}" if self.month else ""
        hour = f".{self.hour:{_HOUR}}" if self.hour else ""
        return f"{PARQUET}/{self.table.name}{folder}/{self.table.name}{hour}.parquet"

    @classmethod
    def of_name(cls, name: str) -> "ParquetFile | None":
        """The file with a path below `published/`, or None for any other file."""
        found = _NAME.fullmatch(name)
        table = _BY_NAME.get(found["table"]) if found else None
        if found is None or table is None or (found["month"] is None) != (table.day is None):
            return None
        if found["hour"] and not table.added_at:
            return None
        return cls(
            table,
            date.fromisoformat(f"{found['month']}-01") if found["month"] else None,
            datetime.fromisoformat(f"{found['hour']}:00:00+00:00") if found["hour"] else None,
        )


def parquet_below(folder: Path) -> Iterator[Path]:
    """All Parquet files below a folder, but for temp files and folders, whose names start with a dot."""
    # Unlike Path.rglob, os.walk passes over a folder that is removed in between.
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.endswith(".parquet") and not name.startswith("."):
                yield Path(parent, name)


def existing_files(published: Path, table: str = "") -> list[str]:
    """Paths below `published/` of all Parquet files, or a table's, without those of snapshots."""
    found = parquet_below(published / PARQUET / table)
    return sorted(path.relative_to(published).as_posix() for path in found)


def columns_of_tables(connection: duckdb.DuckDBPyConnection) -> dict[str, Columns]:
    """The columns of the tables that are published as Parquet."""
    rows = connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = current_database() AND schema_name = 'main' ORDER BY table_name, column_index"
    ).fetchall()
    found: dict[str, Columns] = {table.name: {} for table in PARQUET_TABLES}
    for table, column, type_ in rows:
        if table in found:
            found[table][column] = type_
    return found


def mark_files(connection: duckdb.DuckDBPyConnection, files: Iterable[ParquetFile]) -> None:
    """Marks the months of files, so that they are written again."""
    for name, month in sorted({(file.table.name, file.month) for file in files if file.month}):
        connection.execute(
            "INSERT INTO pipeline.unpublished_months SELECT $table, $month "
            "EXCEPT FROM pipeline.unpublished_months",
            {"table": name, "month": month},
        )


def mark_whole(connection: duckdb.DuckDBPyConnection, table: ParquetTable) -> None:
    """Marks every month in which a table has rows."""
    if table.day:
        connection.execute(
            f"INSERT INTO pipeline.unpublished_months SELECT DISTINCT '{table.name}', "
            f"date_trunc('month', {table.day})::DATE FROM {table.name} "
            "EXCEPT FROM pipeline.unpublished_months"
        )


def mark_unsettled(connection: duckdb.DuckDBPyConnection, published_on: date, today: date) -> None:
    """Marks the months whose rows change with the clock, if a UTC day has ended since the last publish.

    Those are the months that were not closed or had days that were not final on the day of that publish.
    """
    if published_on == today:
        return
    first = min(published_on, today) - timedelta(days=max(CLOSING_DAYS, FINAL_AFTER_DAYS))
    months = {first + timedelta(days=n) for n in range((today - first).days + 1)}
    mark_files(
        connection,
        (
            ParquetFile(table, month)
            for table in PARQUET_TABLES
            if table.follows_clock
            for month in {day.replace(day=1) for day in months}
        ),
    )


def write_changed(
    connection: duckdb.DuckDBPyConnection, published: Path, rows: Mapping[str, int], today: date
) -> int:
    """Writes the small tables, marked months and added rows, then removes the marks; returns the number.

    `rows`: the number of rows of each file as written before.
    """
    marked: dict[str, set[date]] = {}
    months = connection.execute("SELECT DISTINCT table_name, month FROM pipeline.unpublished_months")
    for name, month in months.fetchall():
        marked.setdefault(name, set()).add(month)
    files: list[ParquetFile] = []
    gone: set[str] = set()
    for table in PARQUET_TABLES:
        if table.added_at:
            counts = _count_added(connection, table, today)
            is_marked = marked.get(table.name, set())
            files += (f for f, n in counts.items() if f.month in is_marked or rows.get(f.name) != n)
            names = {file.name for file in counts}
            gone |= {n for n in existing_files(published, table.name) if n not in names}
        else:
            files += _files_of_months(table, marked)
    _write_all(connection, published, files, today)
    # Hours of a day that has ended: their rows are in the month's file now.
    for name in sorted(gone):
        (published / name).unlink()
    connection.execute("TRUNCATE pipeline.unpublished_months")
    return len(files)


def _files_of_months(table: ParquetTable, marked: Mapping[str, set[date]]) -> list[ParquetFile]:
    if table.day is None:
        return [ParquetFile(table, None)]
    months = set[date]().union(*(marked.get(name, ()) for name in (table.name, *table.made_from)))
    return [ParquetFile(table, month) for month in sorted(months)]


def _count_added(
    connection: duckdb.DuckDBPyConnection, table: ParquetTable, today: date
) -> dict[ParquetFile, int]:
    """The files of a table to which rows are only added, with the rows that they must have."""
    # Hours as numbers: as texts the count of a million rows takes five times as long.
    hour = f"CASE WHEN {table.added_at} >= $midnight THEN epoch_ms({table.added_at}) // {_HOUR_MS} END"
    found = connection.execute(
        f"SELECT date_trunc('month', {table.day})::DATE AS month, {hour} AS hour, count(*) FROM {table.name} "
        "GROUP BY ALL ORDER BY ALL",
        {"midnight": _midnight(today)},
    ).fetchall()
    return {
        ParquetFile(table, month, datetime.fromtimestamp(hour * _HOUR_MS // 1000, UTC) if hour else None): n
        for month, hour, n in found
    }


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _write_all(
    connection: duckdb.DuckDBPyConnection, published: Path, files: list[ParquetFile], today: date
) -> None:
    def write(file: ParquetFile) -> None:
        with connection.cursor() as own:
            _write(own, published, file, today)

    # Compression takes most of the time, and a month is too small for DuckDB's own threads.
    with ThreadPoolExecutor(2, "parquet") as threads:
        list(threads.map(write, files))


def _write(connection: duckdb.DuckDBPyConnection, published: Path, file: ParquetFile, today: date) -> None:
    target = published / file.name
    where, parameters = _rows_of(file, today)
    rows = f"FROM {file.table.name} {where}"
    if file.month and not connection.execute(f"{rows} LIMIT 1", parameters).fetchall():
        # All rows of the month have expired.
        target.unlink(missing_ok=True)
        return
    make_shared_folder(target.parent, published)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    connection.execute(
        f"COPY ({rows} ORDER BY {file.table.order}) TO {quoted(temporary)} "
        "(FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, ROW_GROUP_SIZE 40960)",
        parameters or None,
    )
    share_published(temporary, published)
    temporary.rename(target)


def _rows_of(file: ParquetFile, today: date) -> tuple[str, dict[str, object]]:
    """The condition that a table's rows in a file meet, with its parameters."""
    table = file.table
    if file.month is None:
        return "", {}
    where = f"WHERE {table.day} >= $month AND {table.day} < $month + INTERVAL 1 MONTH"
    parameters: dict[str, object] = {"month": file.month}
    if file.hour:
        parameters["hour"] = file.hour
        return (
            f"{where} AND {table.added_at} >= $hour AND {table.added_at} < $hour + INTERVAL 1 HOUR",
            parameters,
        )
    if table.added_at:
        parameters["midnight"] = _midnight(today)
        return f"{where} AND {table.added_at} < $midnight", parameters
    return where, parameters


def make_shared_folder(folder: Path, published: Path) -> None:
    """Creates a folder below `published/` with its parents, for the readers of `published/`."""
    make_folder(folder)
    for one in (folder, *folder.parents):
        if one == published:
            break
        share_published(one, published)
