"""Builds the facts again from the raw pages, offline, and compares them with those that are held."""

import shutil
from dataclasses import dataclass
from datetime import date

from finora_pipeline.warehouse.load import KINDS, batches, load_files
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.warehouse import Warehouse

# What is told apart: all that OpenAI said, not which read of the same it came from.
COMPARED = ("daily_costs", "daily_usage", "pipeline.billed_costs")


@dataclass(frozen=True, slots=True)
class Difference:
    """A day of a user whose facts and raw pages do not say the same, and by how many rows."""

    table: str
    user_id: str
    date: date
    rows_only_held: int
    rows_only_raw: int


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Raw files read, rows built, and where they differ from those held."""

    files: int
    rows: int
    differences: list[Difference]


def rebuild(
    warehouse: Warehouse,
    *,
    user_id: str | None = None,
    first: date | None = None,
    last: date | None = None,
) -> Rebuilt:
    """Loads all raw pages into an empty database beside the warehouse and compares, by user and UTC day.

    The days from `first` to `last` (both included) of a user, or of everybody. Changes nothing.
    """
    beside = Warehouse(warehouse.home / "rebuild")
    shutil.rmtree(beside.home, ignore_errors=True)
    raw = RawPages(warehouse.raw)
    try:
        # Under the lock nothing moves between landed, loaded and archived.
        with warehouse.lock(), beside.writing() as connection:
            files = list(raw.archived())
            for kind in KINDS:
                of_kind = [file for file in files if file.kind == kind]
                for batch in batches(of_kind):
                    load_files(connection, kind, batch)
            name = str(warehouse.database).replace("'", "''")
            connection.execute(f"ATTACH '{name}' AS held (READ_ONLY)")
            filters = {"user_id": user_id, "first": first, "last": last}
            where = "($user_id IS NULL OR user_id = $user_id) AND ($first IS NULL OR date >= $first) "
            where += "AND ($last IS NULL OR date <= $last)"
            rows, differences = 0, []
            for table in COMPARED:
                held_name = f"held.{table}" if "." in table else f"held.main.{table}"
                columns = "* EXCLUDE (fetched_at, raw_file)"
                sample = " AND NOT is_sample" if table in ("daily_costs", "daily_usage") else ""
                query = f"""
                    WITH held_rows AS (SELECT {columns} FROM {held_name} WHERE {where}{sample}),
                    raw_rows AS (SELECT {columns} FROM {table} WHERE {where}{sample}),
                    apart AS (
                        SELECT user_id, date, true AS is_held
                        FROM (FROM held_rows EXCEPT ALL FROM raw_rows)
                        UNION ALL
                        SELECT user_id, date, false FROM (FROM raw_rows EXCEPT ALL FROM held_rows)
                    )
                    SELECT user_id, date, count(*) FILTER (is_held), count(*) FILTER (NOT is_held)
                    FROM apart GROUP BY ALL ORDER BY ALL"""
                found = connection.execute(query, filters).fetchall()
                differences += [Difference(table.removeprefix("pipeline."), *row) for row in found]
                rows += connection.execute(f"SELECT count(*) FROM {table} WHERE {where}", filters).fetchall()[
                    0
                ][0]
    finally:
        shutil.rmtree(beside.home, ignore_errors=True)
    return Rebuilt(len(files), rows, differences)
