"""Loads landed pages into the facts: they replace the days they cover.

Exactly once: the transaction that writes the rows also writes the ledger of loaded files. Newest wins: a page
set does not replace a day that a later fetch has filled. What a crash leaves between landing and loading, the
next load loads.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime
from pathlib import Path
from threading import Event

import duckdb
import pyarrow as pa

from finora_pipeline.openai_admin.endpoints import BILLED_KIND, COSTS, DIRECTORY_KIND, USAGE_KIND
from finora_pipeline.warehouse.clock import end_of_present, reset_future_moments
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load_report import Loaded, loaded_by
from finora_pipeline.warehouse.portions import load_or_halve, portions
from finora_pipeline.warehouse.raw import RawFile, RawPages
from finora_pipeline.warehouse.raw.files import cut_long_pages
from finora_pipeline.warehouse.reparse import landed_line_items
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.statements import run_section, transaction
from finora_pipeline.warehouse.tables import DIRECTORY, GRAIN, ID_COLUMN, MONTHLY_TABLES

# Raw files of a kind that are worth a transaction before all have landed.
FILES_AHEAD = 6
# The tables that the pages of a kind fill.
TABLES_OF_KIND = {
    COSTS.kind: ("daily_costs",),
    USAGE_KIND: ("daily_usage",),
    BILLED_KIND: ("billed_costs",),
    DIRECTORY_KIND: tuple(DIRECTORY),
}
KINDS = tuple(TABLES_OF_KIND)
_UNCHANGED_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("endpoint", pa.string()),
        ("days", pa.list_(pa.date32())),
        ("fetched_at", pa.timestamp("us", "UTC")),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class UnchangedSet:
    """A fetched page set that is equal to the loaded one, without its pages; `days` are UTC days."""

    user_id: str
    endpoint: str
    days: Sequence[date]
    fetched_at: datetime
    sha256: str


def load_pending(
    warehouse: Warehouse, kinds: Iterable[str], run_id: str, now: datetime | None = None
) -> Loaded:
    """Loads every landed file of these kinds, under the warehouse's lock.

    Returns what the pages that the run fetched became, even if another run loaded them.
    """
    kinds = list(kinds)
    with warehouse.writing() as connection:
        with transaction(connection):
            reset_future_moments(connection, now)
        for kind in kinds:
            _load_all(connection, warehouse, kind, now)
        loaded = loaded_by(connection, run_id, kinds)
    of_run = [one for one in RawPages(warehouse.raw).quarantined() if one.file.run_id == run_id]
    return replace(loaded, quarantined=of_run)


def newest_sets(warehouse: Warehouse, user_ids: Iterable[str]) -> dict[tuple[str, str], str]:
    """Content hash (`PageSet.sha256`) of the newest loaded page set, by user and endpoint."""
    if not warehouse.database.exists():
        return {}
    with warehouse.writing() as connection:
        rows = connection.execute(
            "SELECT user_id, endpoint, sha256 FROM pipeline.loaded_sets WHERE user_id IN (SELECT unnest(?))",
            [list(user_ids)],
        ).fetchall()
    return {(user_id, endpoint): sha256 for user_id, endpoint, sha256 in rows}


def check_days(warehouse: Warehouse, unchanged: Sequence[UnchangedSet]) -> None:
    """Records when the days of unchanged page sets were fetched again.

    A day is complete from its first such fetch after its end. Sets that are no longer the loaded ones are
    skipped.
    """
    if not unchanged:
        return
    columns = {name: [getattr(one, name) for one in unchanged] for name in _UNCHANGED_SCHEMA.names}
    rows = pa.table(columns, _UNCHANGED_SCHEMA)
    with warehouse.writing() as connection, transaction(connection):
        connection.register("unchanged_sets", rows)
        run_section(connection, "pipeline", "check_days")


def load_ahead(warehouse: Warehouse, all_read: Event) -> None:
    """Loads landed files on one core while pages still arrive, if they fill a transaction.

    It stops soon after `all_read` is set: with every core the rest loads faster.
    """
    raw = RawPages(warehouse.raw)
    waiting = [kind for kind in KINDS if len(raw.pending(kind)) >= FILES_AHEAD]
    if not waiting:
        return
    with warehouse.writing() as connection:
        connection.execute("SET threads = 1")
        for kind in waiting:
            if not all_read.is_set():
                _load_all(connection, warehouse, kind)


def _load_all(
    connection: duckdb.DuckDBPyConnection, warehouse: Warehouse, kind: str, now: datetime | None = None
) -> None:
    raw = RawPages(warehouse.raw)
    archive_loaded(connection, raw, raw.pending(kind))

    def load(files: list[RawFile]) -> None:
        load_files(connection, kind, files, warehouse.cut_pages, now)
        archive_loaded(connection, raw, files)

    for portion in portions(raw.pending(kind)):
        load_or_halve(connection, portion, load, raw.split, raw.quarantine)
    _delete_replaced(connection, raw)


def _delete_replaced(connection: duckdb.DuckDBPyConnection, raw: RawPages) -> None:
    """Deletes quarantined files whose page sets the facts or quarantine hold newer."""
    quarantined = raw.quarantined()
    for one in quarantined:
        newer = [page_set for other in quarantined if other.file != one.file for page_set in other.sets]
        if one.sets and all(
            any(
                user_id == other_id and endpoint == other and at < other_at and set(days) <= set(other_days)
                for other_id, other, other_at, other_days in newer
            )
            or _is_in_facts(connection, user_id, endpoint, at, days)
            for user_id, endpoint, at, days in one.sets
        ):
            one.remove()


def _is_in_facts(
    connection: duckdb.DuckDBPyConnection, user_id: str, endpoint: str, at: datetime, days: list[date]
) -> bool:
    """Whether the facts hold pages fetched after `at` for all days, or for none any newer list."""
    if days:
        query = (
            "SELECT count(*) = len($days) FROM pipeline.loaded_days WHERE user_id = $user_id "
            "AND endpoint = $endpoint AND fetched_at > $at AND list_contains($days, date)"
        )
        values = {"user_id": user_id, "endpoint": endpoint, "at": at, "days": days}
    else:
        newer = " UNION ALL ".join(f"SELECT user_id, last_seen_at FROM {table}" for table in ID_COLUMN)
        query = f"SELECT count(*) > 0 FROM ({newer}) WHERE user_id = $user_id AND last_seen_at > $at"
        values = {"user_id": user_id, "at": at}
    return connection.execute(query, values).fetchall() == [(True,)]


def archive_loaded(connection: duckdb.DuckDBPyConnection, raw: RawPages, files: list[RawFile]) -> None:
    """Moves the files that the ledger holds, also those that a killed process did not move."""
    for file, fetched_on in _already_loaded(connection, files).items():
        raw.archive(file, fetched_on)


def _already_loaded(connection: duckdb.DuckDBPyConnection, files: list[RawFile]) -> dict[RawFile, date]:
    """The files that the ledger holds, with their fetch days."""
    query = "SELECT raw_file, fetched_on FROM pipeline.loaded_files WHERE list_contains(?, raw_file)"
    known = dict(connection.execute(query, [[file.name for file in files]]).fetchall())
    return {file: known[file.name] for file in files if file.name in known}


def load_files(
    connection: duckdb.DuckDBPyConnection,
    kind: str,
    files: list[RawFile],
    cut_pages: Path,
    now: datetime | None = None,
) -> None:
    """Replaces the days that the files' pages cover, in one transaction with the ledger.

    The folder `cut_pages` must be the caller's alone; it is gone afterwards.
    """
    tables = TABLES_OF_KIND[kind]
    parameters = {"kind": kind, "table_name": tables[0], "is_monthly": tables[0] in MONTHLY_TABLES}
    with _short_pages(files, kind, cut_pages) as texts, transaction(connection):
        connection.execute("SET VARIABLE raw_files = $files", {"files": [str(file.path) for file in files]})
        connection.execute("SET VARIABLE text_files = $files", {"files": [str(path) for path in texts]})
        run_section(connection, "pipeline", "begin_load", end_of_present=end_of_present(now))
        if kind == DIRECTORY_KIND:
            _load_directory(connection)
        else:
            _load_days(connection, kind, tables[0])
        run_section(connection, "pipeline", "end_load", **parameters)


def _load_directory(connection: duckdb.DuckDBPyConnection) -> None:
    run_section(connection, "directory", "pages")
    for table, texts in DIRECTORY.items():
        run_section(connection, table, "load")
        connection.execute(section("directory", "merge", **texts))


def _load_days(connection: duckdb.DuckDBPyConnection, kind: str, table: str) -> None:
    if kind == COSTS.kind:
        connection.register("line_items", landed_line_items(connection))
        connection.execute(section("daily_costs", "macros"))
    run_section(connection, "pipeline", "read_pages")
    run_section(connection, table, "load")
    if kind == USAGE_KIND:
        grain = GRAIN["daily_usage"]
        connection.execute(section("daily_usage", "repeated", grain=grain))
        if connection.execute("FROM repeated_usage LIMIT 1").fetchall():
            connection.execute(section("daily_usage", "merge", grain=grain))
    if connection.execute("FROM reread_days LIMIT 1").fetchall():
        if kind == USAGE_KIND:
            _regroup(connection)
        run_section(connection, table, "compare")


def _regroup(connection: duckdb.DuckDBPyConnection) -> None:
    """Makes the old and the new usage comparable where only one of them is split."""
    run_section(connection, "daily_usage", "reread")
    if connection.execute("FROM regrouped LIMIT 1").fetchall():
        for rows in ("old_usage", "reread_usage"):
            connection.execute(section("daily_usage", "regroup", rows=rows))


@contextmanager
def _short_pages(files: list[RawFile], kind: str, folder: Path) -> Iterator[list[Path]]:
    """Paths of the files, with long pages cut, for the length of the block."""
    if kind == DIRECTORY_KIND:
        yield [file.path for file in files]
        return
    # A killed process may have left its pieces.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield [cut_long_pages(file, folder) for file in files]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
