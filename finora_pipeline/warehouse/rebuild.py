"""Rebuilds facts from raw pages, offline, to compare them with the warehouse or replace it."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from finora_pipeline.data_folder.disk import DatabaseDamaged
from finora_pipeline.warehouse.database import Warehouse, open_to_write, replay_log
from finora_pipeline.warehouse.load import KINDS, archive_loaded, load_files
from finora_pipeline.warehouse.portions import load_or_halve, portions
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.schema import RebuildIncomplete, WarehouseOutdated
from finora_pipeline.warehouse.snapshot import quoted
from finora_pipeline.warehouse.statements import run_section, transaction
from finora_pipeline.warehouse.tables import ID_COLUMN

_log = logging.getLogger("finora.warehouse")
# Compared in all that OpenAI sent, but not in which fetch it came from.
COMPARED = ("main.daily_costs", "main.daily_usage", "pipeline.billed_costs")
ROWS_COMPARED_AT_ONCE = 500_000
# Called with the number of raw files loaded, and of all.
Progress = Callable[[int, int], None]
# Columns that do not come from OpenAI's pages alone: our parse of a line item, and what costs and usage say
# together. Days loaded by an earlier version have no name of the organization.
_OURS = {
    "main.daily_costs": ", model, direction, modality, tier, is_long_context, is_parsed, cost_service, "
    "charge_category, cost_model, organization_name",
    "main.daily_usage": ", cost_model",
}
_WANTED = (
    "($user_id IS NULL OR user_id = $user_id) AND ($first IS NULL OR date >= $first) "
    "AND ($last IS NULL OR date <= $last)"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A user-day whose facts and raw pages differ, with the rows that only one of them has."""

    table: str
    user_id: str
    date: date
    rows_only_held: int
    rows_only_raw: int


@dataclass(frozen=True, slots=True)
class Unloadable:
    """A raw file whose pages cannot be loaded, and a sentence why."""

    file: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Raw files read, rows built, and their differences from the warehouse.

    `unloadable`: files that could not be loaded or are in quarantine.
    """

    files: int
    rows: int
    differences: list[Difference]
    unloadable: list[Unloadable]


@dataclass(frozen=True, slots=True)
class _Built:
    """A warehouse built from so many raw files, and the files that could not be loaded."""

    warehouse: Warehouse
    files: int
    unloadable: list[Unloadable]


def rebuild(
    warehouse: Warehouse,
    *,
    user_id: str | None = None,
    first: date | None = None,
    last: date | None = None,
    on_progress: Progress | None = None,
) -> Rebuilt:
    """Rebuilds all facts in a separate database and compares them with the warehouse.

    Compares the UTC days from `first` to `last` (both included) of a user, or of all users. Changes no fact.
    Raises `WarehouseOutdated`.
    """
    filters = {"user_id": user_id, "first": first, "last": last}
    with warehouse.lock():
        with warehouse.connect() as connection:
            raw = RawPages(warehouse.raw)
            archive_loaded(connection, raw, raw.pending())
        with (
            _built_from_raw(warehouse, on_progress) as built,
            warehouse.storage_errors(),
            open_to_write(built.warehouse.database) as connection,
        ):
            _attach_held(connection, warehouse)
            rows, differences = 0, []
            for table in COMPARED:
                query = f"SELECT count(*) FROM {table} WHERE {_WANTED}"
                count = connection.execute(query, filters).fetchall()[0][0]
                differences += _differences(connection, table, filters, 1 + count // ROWS_COMPARED_AT_ONCE)
                rows += count
    quarantined = [Unloadable(one.file.name, one.reason) for one in RawPages(warehouse.raw).quarantined()]
    return Rebuilt(built.files, rows, differences, built.unloadable + quarantined)


def bring_up_to_date(warehouse: Warehouse, on_progress: Progress | None = None) -> bool:
    """Migrates the warehouse of an earlier version, or rebuilds it if it cannot be migrated.

    Returns whether it was rebuilt. Readers keep the published snapshot until the next one. Raises
    `WarehouseTooNew` and `DiskFull`.
    """
    if not warehouse.database.exists():
        return False
    with warehouse.lock():
        try:
            with warehouse.connect():
                return False
        except WarehouseOutdated as reason:
            _log.warning("%s", reason)
        _replace(warehouse, on_progress)
    return True


def replace_warehouse(warehouse: Warehouse, on_progress: Progress | None = None) -> int:
    """Replaces the warehouse by one built from all raw pages; returns their number of files.

    For a warehouse of another version, or a damaged one. Revisions, published figures and moments of days,
    which raw pages do not hold, are copied where the new tables have the old ones' columns. The next publish
    computes the metrics; expired days may be back until the next prune. A database that cannot be read is
    kept as `damaged.duckdb`.
    """
    with warehouse.lock():
        return _replace(warehouse, on_progress)


def _replace(warehouse: Warehouse, on_progress: Progress | None) -> int:
    with _set_aside_if_damaged(warehouse):
        replay_log(warehouse.database)
        _archive_held(warehouse)
    with _built_from_raw(warehouse, on_progress) as built:
        if built.unloadable:
            first = built.unloadable[0]
            raise RebuildIncomplete(
                f"{len(built.unloadable)} of {built.files} raw files could not be loaded, the first "
                f"{first.file}: {first.reason} The warehouse is unchanged. To rebuild without a "
                "file, move it to raw/quarantine."
            )
        with _set_aside_if_damaged(warehouse):
            _copy_records(warehouse, built.warehouse)
        warehouse.database.parent.mkdir(parents=True, exist_ok=True)
        built.warehouse.database.replace(warehouse.database)
    return built.files


@contextmanager
def _set_aside_if_damaged(warehouse: Warehouse) -> Iterator[None]:
    """Sets the held database aside if reading it in the block shows that it is damaged.

    Raises `StorageError` for other failures, such as another program that has it open.
    """
    try:
        with warehouse.storage_errors():
            yield
    except (DatabaseDamaged, duckdb.InternalException, duckdb.IOException, duckdb.FatalException) as error:
        _log.info("The warehouse cannot be read: %s", error.__cause__ or error)
        _set_aside(warehouse.database)


def _set_aside(database: Path) -> None:
    aside = database.with_name("damaged.duckdb")
    database.replace(aside)
    log = database.with_name(f"{database.name}.wal")
    if log.exists():
        log.replace(aside.with_name(f"{aside.name}.wal"))
    _log.warning("The warehouse is damaged. It is kept as %s; its record of revisions is lost.", aside)


def _archive_held(warehouse: Warehouse) -> None:
    """Archives pending raw files that the held database, of any version, has loaded already.

    Loaded again after its revisions are copied, such a file would be compared with them a second time.
    """
    if not warehouse.database.exists():
        return
    raw = RawPages(warehouse.raw)
    # An early version may have no such ledger.
    with (
        duckdb.connect(warehouse.database, read_only=True) as connection,
        suppress(duckdb.CatalogException, duckdb.BinderException),
    ):
        archive_loaded(connection, raw, raw.pending())


def _copy_records(warehouse: Warehouse, built: Warehouse) -> None:
    """Copies revisions and first fetches from the held database, if any, into the built one."""
    if not warehouse.database.exists():
        return
    with open_to_write(built.database) as connection:
        _attach_held(connection, warehouse)
        with transaction(connection):
            _copy_revisions_and_first_fetches(connection)
        connection.execute("DETACH held")


def _copy_revisions_and_first_fetches(connection: duckdb.DuckDBPyConnection) -> None:
    # What was published then cannot be computed again.
    for table in ("main.cost_revisions", "main.usage_revisions", "main.daily_user_metrics"):
        if _has_columns_of(connection, table):
            connection.execute(f"DELETE FROM {table}")
            connection.execute(f"INSERT INTO {table} BY NAME FROM held.{table}")
    _copy_moments(connection)
    for table, key in ID_COLUMN.items():
        if _has_columns_of(connection, f"main.{table}"):
            connection.execute(
                f"UPDATE {table} AS one SET first_seen_at = known.first_seen_at "
                f"FROM held.{table} AS known WHERE known.user_id = one.user_id "
                f"AND known.provider = one.provider AND known.{key} = one.{key}"
            )


def _copy_moments(connection: duckdb.DuckDBPyConnection) -> None:
    """Copies the moments of days that the held database knows better than the raw pages do."""
    held = _columns(connection, "pipeline.loaded_days", is_held=True)
    if "first_fetched_at" not in held:
        return
    moments = "first_fetched_at = known.first_fetched_at, completed_at = NULL"
    if {"completed_at", "checked_at"} <= held.keys():
        moments = (
            "first_fetched_at = known.first_fetched_at, "
            "completed_at = coalesce(known.completed_at, day.completed_at), "
            "checked_at = greatest(known.checked_at, day.checked_at)"
        )
    connection.execute(
        f"UPDATE pipeline.loaded_days AS day SET {moments} "
        "FROM held.pipeline.loaded_days AS known WHERE known.user_id = day.user_id "
        "AND known.provider = day.provider AND known.endpoint = day.endpoint "
        "AND known.date = day.date"
    )
    run_section(connection, "pipeline", "infer_moments")


@contextmanager
def _built_from_raw(warehouse: Warehouse, on_progress: Progress | None) -> "Iterator[_Built]":
    """A database with all archived raw pages loaded, for the length of the block.

    The caller holds the lock, so that no raw file moves in between.
    """
    built = Warehouse(warehouse.home / "rebuild")
    shutil.rmtree(built.home, ignore_errors=True)
    try:
        files = list(RawPages(warehouse.raw).archived())
        loaded = 0
        unloadable: list[Unloadable] = []
        with built.writing() as connection:
            for kind in KINDS:
                for portion in portions([file for file in files if file.kind == kind]):
                    load_or_halve(
                        connection,
                        portion,
                        lambda some, kind=kind: load_files(connection, kind, some, built.cut_pages),
                        # The ledger knows an archived file by its name, so it is never split.
                        lambda file: [file],
                        lambda file, reason: unloadable.append(Unloadable(file.name, reason)),
                    )
                    loaded += len(portion)
                    if on_progress:
                        on_progress(loaded, len(files))
        yield _Built(built, len(files), unloadable)
    finally:
        shutil.rmtree(built.home, ignore_errors=True)


def _attach_held(connection: duckdb.DuckDBPyConnection, warehouse: Warehouse) -> None:
    connection.execute(f"ATTACH {quoted(warehouse.database)} AS held (READ_ONLY)")


def _has_columns_of(connection: duckdb.DuckDBPyConnection, table: str) -> bool:
    """Whether the built database has all columns of the held one's table; false if that does not exist."""
    held, built = (_columns(connection, table, is_held=is_held) for is_held in (True, False))
    return bool(held) and held.items() <= built.items()


def _columns(connection: duckdb.DuckDBPyConnection, table: str, *, is_held: bool) -> dict[str, str]:
    """The columns of a table in their order, with their types."""
    return dict(
        connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE (database_name = 'held') = ? "
            "AND schema_name || '.' || table_name = ? ORDER BY column_index",
            [is_held, table],
        ).fetchall()
    )


def _differences(
    connection: duckdb.DuckDBPyConnection, table: str, filters: dict[str, object], portions: int
) -> list[Difference]:
    """Compares rows in so many portions of users, since a comparison holds them in memory."""
    columns = f"* EXCLUDE (fetched_at, raw_file{_OURS.get(table, '')})"
    portion = f"hash(user_id) % {portions} = $number"
    query = f"""
        WITH held_rows AS (SELECT {columns} FROM held.{table} WHERE {_WANTED} AND {portion}),
        -- A raw file with days that are kept may hold expired days too.
        raw_rows AS (
            SELECT {columns} FROM {table} SEMI JOIN held.pipeline.loaded_days USING (user_id, provider, date)
            WHERE {_WANTED} AND {portion}
        ),
        differing AS (
            SELECT user_id, date, true AS is_held FROM (FROM held_rows EXCEPT ALL FROM raw_rows)
            UNION ALL
            SELECT user_id, date, false FROM (FROM raw_rows EXCEPT ALL FROM held_rows)
        )
        SELECT user_id, date, count(*) FILTER (is_held), count(*) FILTER (NOT is_held)
        FROM differing GROUP BY ALL"""
    found = [
        row
        for number in range(portions)
        for row in connection.execute(query, filters | {"number": number}).fetchall()
    ]
    return [Difference(table.partition(".")[2], *row) for row in sorted(found)]
