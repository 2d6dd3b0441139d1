"""Folds old revisions to one row per UTC day, since each refresh of a running day adds a row per charge."""

from datetime import UTC, date, datetime, time, timedelta

import duckdb

from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.periods import EXACT_DAYS
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.statements import execute_with, transaction
from finora_pipeline.warehouse.tables import GRAIN

# Bounds the memory of a fold: about 200 bytes a row.
ROWS_AT_ONCE = 500_000
# Placeholders of the section that folds a table.
_REVISIONS = {"cost_revisions": {}, "usage_revisions": {"grain": GRAIN["daily_usage"]}}
# Views of a table, whose Parquet files change with it.
_MADE_FROM = {"cost_revisions": ("restatements",), "usage_revisions": ()}


def fold_revisions(warehouse: Warehouse, now: datetime) -> int:
    """Folds the revisions of UTC days that ended more than `EXACT_DAYS` days ago.

    Returns the number of rows saved. A fold that is interrupted is completed by the next one.
    """
    until = _midnight((now - timedelta(days=EXACT_DAYS)).astimezone(UTC).date())
    saved = 0
    with warehouse.writing() as connection:
        for table in _REVISIONS:
            for day, count in _unfolded_days(connection, table, until):
                saved += count - _fold_day(connection, table, day, count)
            with transaction(connection):
                connection.execute(
                    "DELETE FROM pipeline.folded_revisions WHERE table_name = $table", {"table": table}
                )
                connection.execute(
                    "INSERT INTO pipeline.folded_revisions VALUES ($table, $until)",
                    {"table": table, "until": until},
                )
        if saved:
            # Frees the space of the folded rows.
            connection.execute("CHECKPOINT")
    return saved


def _unfolded_days(
    connection: duckdb.DuckDBPyConnection, table: str, until: datetime
) -> list[tuple[date, int]]:
    """UTC days of observation that are not folded yet, with their numbers of rows."""
    return connection.execute(
        f"SELECT (observed_at AT TIME ZONE 'UTC')::DATE AS day, count(*) FROM {table} "
        "WHERE observed_at < $until AND observed_at >= coalesce((SELECT max(observed_before) "
        "FROM pipeline.folded_revisions WHERE table_name = $table), '-infinity') GROUP BY day ORDER BY day",
        {"until": until, "table": table},
    ).fetchall()


def _fold_day(connection: duckdb.DuckDBPyConnection, table: str, day: date, count: int) -> int:
    """Folds what was observed on a UTC day, in portions of users; returns the rows that remain."""
    statements = section(table, "fold", **_REVISIONS[table])
    start, end = _midnight(day), _midnight(day + timedelta(days=1))
    portions = 1 + count // ROWS_AT_ONCE
    left = 0
    for name in (table, *_MADE_FROM[table]):
        connection.execute(
            f"INSERT INTO pipeline.unpublished_months SELECT DISTINCT '{name}', "
            f"date_trunc('month', date)::DATE FROM {table} "
            "WHERE observed_at >= $start AND observed_at < $end EXCEPT FROM pipeline.unpublished_months",
            {"start": start, "end": end},
        )
    for portion in range(portions):
        with transaction(connection):
            execute_with(connection, statements, start=start, end=end, portion=portion, portions=portions)
            left += connection.execute("SELECT count(*) FROM folded").fetchall()[0][0]
    return left


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
