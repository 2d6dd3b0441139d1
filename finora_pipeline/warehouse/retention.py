"""Deletes expired days, replaced raw pages and the data of purged users."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from finora_pipeline.openai_admin.endpoints import DIRECTORY_KIND
from finora_pipeline.warehouse.database import Warehouse, open_to_write, replay_log
from finora_pipeline.warehouse.manifest import SNAPSHOTS, withdraw_snapshots
from finora_pipeline.warehouse.parquet_files import PARQUET, parquet_below
from finora_pipeline.warehouse.raw import RawFile, RawPages
from finora_pipeline.warehouse.raw.files import raw_file_errors, write_whole
from finora_pipeline.warehouse.snapshot import DATABASE, attach, quoted
from finora_pipeline.warehouse.statements import transaction
from finora_pipeline.warehouse.tables import MONTHLY_TABLES

# Every raw page is kept for so long, even if newer pages have replaced its days.
RAW_PAGES_KEPT = timedelta(days=7)
# After so many days of the next month, a month is written only for corrections.
SETTLING_DAYS = 8


@dataclass(slots=True)
class Removed:
    """Rows deleted by table, raw files deleted and rewritten, and the bytes freed in raw pages."""

    rows: dict[str, int] = field(default_factory=dict)
    files_removed: int = 0
    files_rewritten: int = 0
    bytes_freed: int = 0


def prune(warehouse: Warehouse, kept_from: Callable[[], Mapping[str, date]]) -> Removed:
    """Deletes each user's days before `kept_from` from every table with days.

    `kept_from` is called under the lock: during the wait for it, a user's plan may change to one that keeps
    more, and its history be loaded.
    """
    removed = Removed()
    with warehouse.writing() as connection, transaction(connection):
        first_days = kept_from()
        limits = pa.table(
            {
                "user_id": pa.array(list(first_days), pa.string()),
                "kept_from": pa.array(list(first_days.values()), pa.date32()),
            }
        )
        connection.register("limits", limits)
        # Their first known day moves, and with it which figures have a previous period.
        connection.execute(
            "INSERT INTO pipeline.stale_users SELECT DISTINCT user_id, provider FROM pipeline.loaded_days "
            "JOIN limits USING (user_id) WHERE date < kept_from EXCEPT FROM pipeline.stale_users"
        )
        for table, day in _tables_with_days(connection):
            connection.execute(
                f"INSERT INTO pipeline.unpublished_months SELECT DISTINCT '{table}', "
                f"date_trunc('month', {day})::DATE FROM {table} JOIN limits USING (user_id) "
                f"WHERE {day} < kept_from EXCEPT FROM pipeline.unpublished_months"
            )
            ((count,),) = connection.execute(
                f"DELETE FROM {table} AS old USING limits "
                f"WHERE old.user_id = limits.user_id AND old.{day} < limits.kept_from"
            ).fetchall()
            if count:
                removed.rows[table] = count
        if removed.rows:
            # An equal page set that is fetched later must be loaded again, to restore what is deleted here.
            connection.execute(
                "DELETE FROM pipeline.loaded_sets WHERE user_id IN (SELECT user_id FROM limits)"
            )
    return removed


def cluster(warehouse: Warehouse, today: date) -> int:
    """Orders the rows of this month by user; returns their number.

    In its first week also those of the month before. Refreshes write the same day of all users together,
    which scatters a user's rows. Readers want one user's, and DuckDB skips the row groups without any.
    """
    first = (today - timedelta(days=SETTLING_DAYS)).replace(day=1)
    rows = 0
    with warehouse.writing() as connection:
        connection.execute("SET GLOBAL preserve_insertion_order = true")
        for table in MONTHLY_TABLES:
            with transaction(connection):
                connection.execute(
                    f"CREATE OR REPLACE TEMP TABLE ordered AS FROM {table} WHERE date >= $first",
                    {"first": first},
                )
                connection.execute(f"DELETE FROM {table} WHERE date >= $first", {"first": first})
                ((count,),) = connection.execute(
                    f"INSERT INTO {table} FROM ordered ORDER BY user_id, date"
                ).fetchall()
            rows += count
            # Frees the space of the old rows for the next table.
            connection.execute("DROP TABLE ordered")
            connection.execute("CHECKPOINT")
    return rows


def thin(warehouse: Warehouse, fetched_before: date) -> Removed:
    """Deletes raw pages that were fetched before a day and that no fact depends on.

    The newest page set of every day stays, so that all facts can be rebuilt; so does the newest list of each
    kind of the directory, and older lists that are the last to hold an id.
    """
    removed = Removed()
    with warehouse.lock():
        RawPages(warehouse.raw).delete_temp_files()
        files = list(RawPages(warehouse.raw).archived())
        with warehouse.connect() as connection:
            needed = connection.execute(
                "SELECT DISTINCT raw_file, user_id, endpoint FROM pipeline.loaded_days"
            ).fetchall()
            needed += _needed_lists(connection, [file for file in files if file.kind == DIRECTORY_KIND])
        by_file: dict[str, set[tuple[str, str]]] = {}
        for name, user_id, endpoint in needed:
            by_file.setdefault(name, set()).add((user_id, endpoint))
        for file in files:
            if date.fromisoformat(file.path.parent.name) >= fetched_before:
                continue
            wanted = by_file.get(file.name, set())
            pages = pq.read_table(file.path, columns=["user_id", "endpoint"])
            pairs = zip(pages["user_id"].to_pylist(), pages["endpoint"].to_pylist(), strict=True)
            _keep_rows(file.path, [pair in wanted for pair in pairs], removed)
    return removed


def _needed_lists(connection: duckdb.DuckDBPyConnection, files: list[RawFile]) -> list[tuple[str, str, str]]:
    """Raw file, user and endpoint of each list that is the newest, or the newest with some id."""
    if not files:
        return []
    return connection.execute(
        """
        WITH lists AS (
            SELECT
                parse_filename(filename) AS raw_file,
                user_id,
                endpoint,
                fetched_at,
                from_json(coalesce(canonical, body), '{"data": [{"id": "VARCHAR"}]}').data AS items
            FROM read_parquet($files, filename = true)
        )
        SELECT arg_max(raw_file, fetched_at), user_id, endpoint FROM lists GROUP BY user_id, endpoint
        UNION
        SELECT arg_max(raw_file, fetched_at), user_id, endpoint
        FROM (SELECT *, unnest(items).id AS id FROM lists)
        GROUP BY user_id, endpoint, id""",
        {"files": [str(file.path) for file in files]},
    ).fetchall()


def purge(warehouse: Warehouse, user_id: str) -> Removed:
    """Deletes a user from every table and raw file; the database is rewritten without them."""
    removed = Removed()
    with warehouse.lock():
        # Temp files of killed processes may hold their pages too.
        shutil.rmtree(warehouse.cut_pages, ignore_errors=True)
        RawPages(warehouse.raw).delete_temp_files()
        for file in [*RawPages(warehouse.raw).pending(), *RawPages(warehouse.raw).archived()]:
            _keep_rows(file.path, [one != user_id for one in _user_ids(file.path)], removed)
        # A file that cannot be read may hold their pages.
        for one in RawPages(warehouse.raw).quarantined():
            if user_id in one.user_ids or not one.sets:
                one.remove()
                removed.files_removed += 1
        withdraw_snapshots(warehouse.published)
        if warehouse.database.exists():
            _write_without(warehouse, user_id, removed)
    return removed


def count_user_rows(warehouse: Warehouse, user_id: str) -> dict[str, int]:
    """A user's rows by table, and by folder of raw and published files."""
    found: dict[str, int] = {}
    raw = RawPages(warehouse.raw)
    if warehouse.database.exists():
        with warehouse.writing() as connection:
            found = _rows_by_table(connection, user_id)
    snapshot = warehouse.published_database
    if snapshot.exists():
        with duckdb.connect(":memory:") as connection:
            attach(connection, snapshot)
            connection.execute(f"USE {DATABASE}")
            found[str(snapshot.relative_to(warehouse.home))] = sum(
                _rows_by_table(connection, user_id).values()
            )
    readable = [file.path for file in (*raw.pending(), *raw.archived())]
    found["raw"] = sum(_user_ids(file).count(user_id) for file in readable)
    # A publish removes snapshots.
    with warehouse.lock():
        for part in (PARQUET, SNAPSHOTS):
            files = parquet_below(warehouse.published / part)
            found[f"published/{part}"] = sum(_user_ids(file).count(user_id) for file in files)
    found["raw/quarantine"] = sum(one.user_ids.count(user_id) for one in raw.quarantined())
    return found


def _rows_by_table(connection: duckdb.DuckDBPyConnection, user_id: str) -> dict[str, int]:
    """The user's rows in each table with users."""
    count = "SELECT count(*) FROM {} WHERE user_id = ?"
    tables = _tables_with(connection, "user_id")
    return {table: connection.execute(count.format(table), [user_id]).fetchall()[0][0] for table in tables}


def _user_ids(file: Path) -> list[str]:
    """The user of each row of a Parquet file; none for a table without users."""
    with raw_file_errors(file):
        if "user_id" not in pq.read_schema(file).names:
            return []
        return pq.read_table(file, columns=["user_id"])["user_id"].to_pylist()


def _tables_with_days(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Every table with a UTC day a row, and the column of that day."""
    return [(table, day) for day in ("date", "as_of_date") for table in _tables_with(connection, day)]


def _tables_with(connection: duckdb.DuckDBPyConnection, column: str) -> list[str]:
    rows = connection.execute(
        "SELECT schema_name || '.' || table_name FROM duckdb_columns() SEMI JOIN duckdb_tables() "
        "USING (database_name, schema_name, table_name) WHERE column_name = ? AND NOT internal "
        "AND database_name = current_database() AND schema_name IN ('main', 'pipeline') ORDER BY ALL",
        [column],
    ).fetchall()
    return [name.removeprefix("main.") for (name,) in rows]


def _keep_rows(path: Path, kept: list[bool], removed: Removed) -> None:
    """Rewrites a Parquet file with the kept rows; deletes it if none are left."""
    if all(kept):
        return
    before = path.stat().st_size
    if any(kept):
        table = pq.read_table(path)
        write_whole(table.filter(pa.array(kept)), path)
        removed.files_rewritten += 1
        removed.bytes_freed += before - path.stat().st_size
    else:
        path.unlink()
        removed.files_removed += 1
        removed.bytes_freed += before


def _write_without(warehouse: Warehouse, user_id: str, removed: Removed) -> None:
    """Rewrites the database without a user, since the file keeps deleted rows for a while."""
    replay_log(warehouse.database)
    purged = warehouse.database.with_name("purged.duckdb")
    for old in (purged, purged.with_name(f"{purged.name}.wal")):
        old.unlink(missing_ok=True)
    with warehouse.storage_errors(), open_to_write(purged) as connection:
        connection.execute(f"ATTACH {quoted(warehouse.database)} AS old (READ_ONLY)")
        with_user = _tables_with(connection, "user_id")
        tables = [
            f"{schema}.{table}"
            for schema, table in connection.execute(
                "SELECT schema_name, table_name FROM duckdb_tables() "
                "WHERE database_name = current_database() AND NOT internal "
                "AND table_name <> 'schema_version' ORDER BY ALL"
            ).fetchall()
        ]
        with transaction(connection):
            for table in tables:
                copy = f"INSERT INTO {table} BY NAME SELECT * FROM old.{table}"
                if table.removeprefix("main.") not in with_user:
                    connection.execute(copy)
                else:
                    connection.execute(f"{copy} WHERE user_id <> ?", [user_id])
                    query = f"SELECT count(*) FROM old.{table} WHERE user_id = ?"
                    if count := connection.execute(query, [user_id]).fetchall()[0][0]:
                        removed.rows[table.removeprefix("main.")] = count
            for table, day in _tables_with_days(connection):
                connection.execute(
                    f"INSERT INTO pipeline.unpublished_months SELECT DISTINCT '{table}', "
                    f"date_trunc('month', {day})::DATE FROM old.{table} WHERE user_id = ? "
                    "EXCEPT FROM pipeline.unpublished_months",
                    [user_id],
                )
    purged.replace(warehouse.database)
