"""From raw pages to facts: the pages that have landed replace the days they cover.

Exactly once: the ledger of loaded files is written in the transaction that writes the rows. Newest wins: a
page set does not replace a day that a later read has already filled. A crash between landing and loading
is healed by whoever loads next.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from threading import Event

import duckdb
import pyarrow as pa

from finora_pipeline.openai_admin.endpoints import BILLED_KIND, COSTS, DIRECTORY_KIND, USAGE_KIND
from finora_pipeline.openai_admin.line_items import parse_line_item
from finora_pipeline.openai_admin.service_names import SERVICE_NAMES, ServiceName
from finora_pipeline.warehouse.clock import end_of_present, forget_future_moments
from finora_pipeline.warehouse.database import Warehouse, run, transaction
from finora_pipeline.warehouse.portions import load_or_halve, portions
from finora_pipeline.warehouse.raw import Quarantined, RawFile, RawPages, cut_long_pages
from finora_pipeline.warehouse.schema import MONTHLY_TABLES
from finora_pipeline.warehouse.sql import section

# Raw files of a kind that are worth a transaction of their own before all have landed.
FILES_AHEAD = 6
# Unparsed line items that a run reports, the dearest first.
UNPARSED_SHOWN = 100
# Distinct line items that are parsed again at a time.
LINE_ITEMS_AT_ONCE = 10_000
# By then OpenAI has booked and corrected a day; what changes later is worth a look.
SETTLED_AFTER = 7
_GRAIN = {
    "daily_costs": "user_id, provider, date, project_id, line_item",
    "daily_usage": "user_id, provider, date, service, project_id, member_id, api_key_id, model, batch, "
    "service_tier",
}
# The tables of the directory, each with the column of its ids.
ID_COLUMN = {"projects": "project_id", "members": "member_id", "api_keys": "api_key_id"}
# What one list of each covers, of a row that is held: service accounts are listed by project.
_LIST_SCOPE = {
    "projects": "''",
    "members": "CASE WHEN email IS NULL THEN 'service accounts' ELSE 'members' END",
    "api_keys": "project_id",
}
# The tables that the pages of a kind become.
TABLES_OF_KIND = {
    COSTS.kind: ("daily_costs",),
    USAGE_KIND: ("daily_usage",),
    BILLED_KIND: ("billed_costs",),
    DIRECTORY_KIND: tuple(ID_COLUMN),
}
KINDS = tuple(TABLES_OF_KIND)


@dataclass(frozen=True, slots=True)
class UnparsedCharge:
    """A line item that is not understood in full: its sum in USD, and its number of UTC days and of users."""

    line_item: str
    amount_usd: Decimal
    days: int
    users: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run's pages are in the facts now.

    `unparsed_charges` are the dearest of the line items that have words unknown to the grammar, of which
    there are `unparsed_count`; they and the amount are those of costs. `repeated` counts duplicate rows
    (expected 0). `late_revisions` are the user-days that OpenAI changed `SETTLED_AFTER` or more days after,
    with the sum of the changes in USD. `quarantined` are the run's files that cannot be loaded.
    """

    files: int
    pages: int
    users: int
    cost_rows: int = 0
    usage_rows: int = 0
    unparsed_charges: list[UnparsedCharge] = field(default_factory=list)
    unparsed_count: int = 0
    amount_usd: Decimal = Decimal(0)
    repeated: dict[str, int] = field(default_factory=dict)
    late_revisions: list[tuple[str, date, Decimal]] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    @property
    def unparsed(self) -> list[str]:
        """The texts of `unparsed_charges`, in their order as texts."""
        return sorted(charge.line_item for charge in self.unparsed_charges)


def load_pending(
    warehouse: Warehouse, kinds: Iterable[str], run_id: str, now: datetime | None = None
) -> Loaded:
    """Loads every landed file of these kinds, some files a transaction, under the warehouse's lock.

    Returns what the pages that the run fetched became, whoever loaded them.
    """
    kinds = list(kinds)
    with warehouse.writing() as connection:
        with transaction(connection):
            forget_future_moments(connection, now)
        for kind in kinds:
            _load_all(connection, warehouse, kind, now)
        loaded = _loaded_by(connection, run_id, kinds)
    of_run = [one for one in RawPages(warehouse.raw).quarantined() if one.file.run_id == run_id]
    return replace(loaded, quarantined=of_run)


def newest_sets(warehouse: Warehouse, user_ids: Iterable[str]) -> dict[tuple[str, str], str]:
    """What tells the newest page set of each of the users' endpoints (`PageSet.sha256`)."""
    if not warehouse.database.exists():
        return {}
    with warehouse.writing() as connection:
        rows = connection.execute(
            "SELECT user_id, endpoint, sha256 FROM pipeline.loaded_sets WHERE user_id IN (SELECT unnest(?))",
            [list(user_ids)],
        ).fetchall()
    return {(user_id, endpoint): sha256 for user_id, endpoint, sha256 in rows}


def load_ahead(warehouse: Warehouse, all_read: Event) -> None:
    """Loads landed files where there are enough for a transaction, on one core, while pages still arrive.

    It stops soon after `all_read` is set: the rest is better loaded with every core.
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
    _release_replaced(connection, raw)


def _release_replaced(connection: duckdb.DuckDBPyConnection, raw: RawPages) -> None:
    """Deletes quarantined files whose page sets newer ones have replaced: in the facts, or in quarantine."""
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
    """Whether newer pages than those of `at` are in the facts; lists of names have no days."""
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
    """Moves those of the files that are loaded: just now, or by a process that was killed before it did."""
    for file, fetched_on in _already_loaded(connection, files).items():
        raw.archive(file, fetched_on)


def _already_loaded(connection: duckdb.DuckDBPyConnection, files: list[RawFile]) -> dict[RawFile, date]:
    """The files that the ledger holds, with the days on which they were fetched."""
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
    """Replaces the days that the files' pages cover, and notes the files as loaded; all or nothing.

    Nobody else uses the folder `cut_pages` meanwhile; it is empty or gone afterwards.
    """
    tables = TABLES_OF_KIND[kind]
    parameters = {"kind": kind, "table_name": tables[0], "is_monthly": tables[0] in MONTHLY_TABLES}
    with _short_pages(files, kind, cut_pages) as texts, transaction(connection):
        connection.execute("SET VARIABLE raw_files = $files", {"files": [str(file.path) for file in files]})
        connection.execute("SET VARIABLE text_files = $files", {"files": [str(path) for path in texts]})
        run(connection, "pipeline", "begin_load", end_of_present=end_of_present(now))
        if kind == COSTS.kind:
            connection.register("line_items", _parsed_line_items(connection))
        for table in tables:
            run(connection, table, "load")
            if kind == DIRECTORY_KIND:
                names = {"table": table, "id": ID_COLUMN[table], "scope": _LIST_SCOPE[table]}
                connection.execute(section("directory", "merge").format(**names))
        if kind == USAGE_KIND:
            grain = _GRAIN["daily_usage"]
            connection.execute(section("daily_usage", "repeated").format(grain=grain))
            if connection.execute("FROM repeated_usage LIMIT 1").fetchall():
                connection.execute(section("daily_usage", "merge").format(grain=grain))
        if kind != DIRECTORY_KIND and connection.execute("FROM reread_days LIMIT 1").fetchall():
            run(connection, tables[0], "compare")
        run(connection, "pipeline", "end_load", **parameters)


@contextmanager
def _short_pages(files: list[RawFile], kind: str, folder: Path) -> Iterator[list[Path]]:
    """The files with no page too long to be loaded, for the length of the block."""
    if kind == DIRECTORY_KIND:
        yield [file.path for file in files]
        return
    # Whoever was killed has left something.
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield [cut_long_pages(file, folder) for file in files]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parsed_line_items(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """The distinct line items of the raw files, each with what it says."""
    return _parsed(connection.execute(section("daily_costs", "line_items")).fetchall())


def reparse_line_items(connection: duckdb.DuckDBPyConnection) -> int:
    """Parses the line items of all charges again, within the caller's transaction; returns how many distinct
    ones now mean something else. Their days are stale and their months unpublished afterwards."""
    connection.execute(section("daily_costs", "distinct_line_items"))
    ((count,),) = connection.execute("SELECT count(*) FROM distinct_line_items").fetchall()
    changed = 0
    for first in range(0, count, LINE_ITEMS_AT_ONCE):
        texts = connection.execute(
            "SELECT line_item FROM distinct_line_items WHERE number >= ? AND number < ?",
            [first, first + LINE_ITEMS_AT_ONCE],
        ).fetchall()
        connection.register("line_items", _parsed(texts))
        run(connection, "daily_costs", "reparse")
        connection.unregister("line_items")
        changed += connection.execute("SELECT count(DISTINCT line_item) FROM reparsed").fetchall()[0][0]
    connection.execute("DROP TABLE distinct_line_items")
    connection.execute("DROP TABLE IF EXISTS reparsed")
    return changed


@lru_cache(maxsize=1)
def service_names_table() -> pa.Table:
    """What costs and usage call the same service."""
    # Made at its first use: Arrow loads pandas to make a table of rows.
    return pa.Table.from_pylist(
        [asdict(name) for name in SERVICE_NAMES],
        pa.schema([(column.name, pa.string()) for column in fields(ServiceName)]),
    )


def mark_services_stale(connection: duckdb.DuckDBPyConnection) -> None:
    """Marks, within the caller's transaction, the days whose charges are matched with use by `service_names`
    or by a counter of cache writes: after a change of either they are split again."""
    connection.register("service_names", service_names_table())
    run(connection, "attribution", "mark_services_stale")
    connection.unregister("service_names")


def _parsed(texts: list[tuple[str]]) -> pa.Table:
    items = [parse_line_item(text) for (text,) in texts]
    return pa.table(
        {
            "line_item": pa.array([item.text for item in items], pa.string()),
            "model": pa.array([item.model for item in items], pa.string()),
            "direction": pa.array([item.direction for item in items], pa.string()),
            "modality": pa.array([item.modality for item in items], pa.string()),
            "tier": pa.array([item.tier for item in items], pa.string()),
            "is_long_context": pa.array([item.is_long_context for item in items], pa.bool_()),
            "is_parsed": pa.array([item.is_parsed for item in items], pa.bool_()),
        }
    )


def _loaded_by(connection: duckdb.DuckDBPyConnection, run_id: str, kinds: list[str]) -> Loaded:
    files, pages, users = connection.execute(
        "SELECT count(*), coalesce(sum(pages), 0)::BIGINT, coalesce(sum(users), 0)::BIGINT "
        "FROM pipeline.loaded_files WHERE run_id = $run_id AND list_contains($kinds, kind)",
        {"run_id": run_id, "kinds": kinds},
    ).fetchall()[0]
    of_run = "WHERE raw_file IN (SELECT raw_file FROM pipeline.loaded_files WHERE run_id = $run_id)"
    loaded = Loaded(files, pages, users)
    if USAGE_KIND in kinds:
        query = f"SELECT count(*) FROM daily_usage {of_run}"
        loaded = replace(loaded, usage_rows=connection.execute(query, {"run_id": run_id}).fetchall()[0][0])
        loaded.repeated["daily_usage"] = _repeated(connection, "daily_usage", of_run, run_id)
    if COSTS.kind in kinds:
        rows, amount, unparsed_count = connection.execute(
            "SELECT count(*), coalesce(sum(amount_usd), 0)::DECIMAL(38, 18), "
            "count(DISTINCT line_item) FILTER (NOT is_parsed) "
            f"FROM daily_costs {of_run}",
            {"run_id": run_id},
        ).fetchall()[0]
        unparsed = connection.execute(
            "SELECT line_item, coalesce(sum(amount_usd), 0)::DECIMAL(38, 18) AS usd, count(DISTINCT date), "
            f"count(DISTINCT user_id) FROM daily_costs {of_run} AND NOT is_parsed AND line_item IS NOT NULL "
            f"GROUP BY line_item ORDER BY abs(usd) DESC, line_item LIMIT {UNPARSED_SHOWN}",
            {"run_id": run_id},
        ).fetchall()
        late = connection.execute(
            "SELECT user_id, date, sum(coalesce(new_amount_usd, 0) - coalesce(old_amount_usd, 0)) "
            "FROM cost_revisions JOIN (SELECT user_id, provider, date, fetched_at AS observed_at "
            f"FROM pipeline.loaded_days {of_run} AND endpoint = '{COSTS.name}') "
            "USING (user_id, provider, date, observed_at) "
            "WHERE date <= observed_at::DATE - $settled_after GROUP BY ALL ORDER BY ALL",
            {"run_id": run_id, "settled_after": SETTLED_AFTER},
        ).fetchall()
        loaded = replace(
            loaded,
            cost_rows=rows,
            unparsed_charges=[UnparsedCharge(*charge) for charge in unparsed],
            unparsed_count=unparsed_count,
            amount_usd=amount,
            late_revisions=late,
        )
        loaded.repeated["daily_costs"] = _repeated(connection, "daily_costs", of_run, run_id)
    return loaded


def _repeated(connection: duckdb.DuckDBPyConnection, table: str, of_run: str, run_id: str) -> int:
    # By a number first, which is faster than by texts; rows are compared where two have the same.
    number = f"hash({_GRAIN[table]})"
    suspicious = f"SELECT {number} FROM {table} {of_run} GROUP BY {number} HAVING count(*) > 1"
    query = (
        f"SELECT coalesce(sum(rows - 1), 0)::BIGINT FROM (SELECT count(*) AS rows FROM {table} {of_run} "
        f"AND {number} IN ({suspicious}) GROUP BY {_GRAIN[table]} HAVING rows > 1)"
    )
    return connection.execute(query, {"run_id": run_id}).fetchall()[0][0]
