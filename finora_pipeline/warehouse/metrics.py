"""Metrics from facts: costs by model, member and API key, reconciliation and key figures."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal

import duckdb
import pyarrow as pa

from finora_pipeline.warehouse.clock import delete_future_days
from finora_pipeline.warehouse.database import PartsUnequal, Warehouse
from finora_pipeline.warehouse.kpis import LENGTHS, MONTH, period_of
from finora_pipeline.warehouse.portions import CAUSED_BY_PAGES
from finora_pipeline.warehouse.reparse import service_names_table
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.statements import run_section, transaction

_log = logging.getLogger("finora_pipeline.warehouse")
# Rows of costs and usage whose days one transaction computes. Each transaction scans the tables again, but
# until it ends DuckDB keeps the memory of temporary tables that were replaced.
ROWS_AT_ONCE = 150_000
# Computed by day from the facts, in this order.
REFRESHED_TABLES = (
    "daily_model_costs",
    "daily_attributed_costs",
    "daily_member_costs",
    "daily_key_costs",
    "reconciliation",
)
# Users whose figures one transaction computes.
USERS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What a computation did, and how well the days reconcile.

    `days`: user-days computed. `unequal`: (user, day) whose costs by model, member or API key do not add up
    to daily_costs. `residuals`: by severity, how many of all days do not reconcile with OpenAI's totals, and
    their residual in USD. `metric_rows`: rows of `user_metrics`. `failed`: (user, day) that could not be
    computed and keep their rows. `token_residuals`: by kind, the days with costs without usage or usage
    without costs, and their tokens; both are normal.
    """

    days: int
    unequal: list[tuple[str, date]]
    residuals: dict[str, tuple[int, Decimal]]
    metric_rows: int = 0
    failed: list[tuple[str, date]] = field(default_factory=list)
    token_residuals: dict[str, tuple[int, Decimal]] = field(default_factory=dict)


def refresh_metrics(warehouse: Warehouse, today: date) -> Recomputed:
    """Computes all metrics up to a UTC day: those of stale days, then `user_metrics`."""
    # A connection each: the second does not need the memory that DuckDB keeps for the first.
    with warehouse.lock():
        with warehouse.connect() as connection:
            with transaction(connection):
                delete_future_days(connection, today)
            computed = _refresh_costs(connection, today)
        with warehouse.connect() as connection:
            _refresh_user_metrics(connection, today)
            return replace(computed, metric_rows=_count(connection, "user_metrics"))


def catch_up(connection: duckdb.DuckDBPyConnection, today: date) -> None:
    """Computes what another run's load has left stale, so that facts and metrics agree.

    The caller holds the lock. Raises `PartsUnequal` if a day does not add up, now or in an earlier run.
    """
    with transaction(connection):
        delete_future_days(connection, today)
    if _count(connection, "pipeline.stale_days"):
        unequal = _refresh_costs(connection, today).unequal
        if unequal:
            user_id, day = min(unequal)
            raise PartsUnequal(
                f"Costs by model, member or API key do not add up to daily_costs on {len(unequal)} "
                f"user-days, the first of {user_id} on {day}: nothing is published and readers keep the "
                "last good snapshot. Run finora rebuild and report what it shows."
            )
    _refresh_user_metrics(connection, today)


def _refresh_user_metrics(connection: duckdb.DuckDBPyConnection, today: date) -> None:
    run_section(connection, "user_metrics", "through", today=today)
    outdated = connection.execute(section("user_metrics", "outdated")).to_arrow_table()
    waiting = list(_portions(outdated, USERS_AT_ONCE))
    while waiting:
        users = waiting.pop(0)
        connection.register("users_to_compute", users)
        ends = connection.execute(
            "SELECT DISTINCT through_date FROM user_through SEMI JOIN users_to_compute USING (user_id)"
        ).fetchall()
        connection.register("metric_periods", _metric_periods([through for (through,) in ends]))
        try:
            with transaction(connection):
                run_section(connection, "user_metrics", "refresh", today=today)
        except CAUSED_BY_PAGES as error:
            _log.warning("Failed to compute the figures of %d users at once: %s", users.num_rows, error)
            if users.num_rows > 1:
                waiting[:0] = list(_portions(users, -(-users.num_rows // 2)))
    with transaction(connection):
        run_section(connection, "user_metrics", "today", today=today)


def _metric_periods(ends: Iterable[date]) -> pa.Table:
    """The named periods that end with each of these last complete days, with the span before."""
    periods = [(through, name, period_of(name, through)) for through in ends for name in (*LENGTHS, MONTH)]
    return pa.table(
        {
            "through_date": pa.array([through for through, _, _ in periods], pa.date32()),
            "period": pa.array([name for _, name, _ in periods], pa.string()),
            "period_start": pa.array([period.first for _, _, period in periods], pa.date32()),
            "previous_start": pa.array([period.previous_first for _, _, period in periods], pa.date32()),
            "previous_end": pa.array([period.previous_last for _, _, period in periods], pa.date32()),
        }
    )


def _refresh_costs(connection: duckdb.DuckDBPyConnection, today: date) -> Recomputed:
    connection.register("service_names", service_names_table())
    connection.execute(section("attribution", "macros"))
    connection.execute(section("attribution", "portion"), {"rows_at_once": ROWS_AT_ONCE})
    days, unequal, failed = _compute_portions(connection, today)
    open_days = connection.execute(section("reconciliation", "check")).fetchall()
    differing = connection.execute(section("reconciliation", "token_check")).fetchall()
    return Recomputed(
        days,
        unequal,
        {severity: (days, usd) for severity, days, usd in open_days},
        failed=failed,
        token_residuals={kind: (days, tokens) for kind, days, tokens in differing},
    )


def _compute_portions(
    connection: duckdb.DuckDBPyConnection, today: date
) -> tuple[int, list[tuple[str, date]], list[tuple[str, date]]]:
    """Computes every portion, halved where it fails; returns days computed, unequal and failed."""
    portions = connection.execute(
        "SELECT portion, count(*) FROM portioned_days GROUP BY portion ORDER BY portion"
    ).fetchall()
    unequal: list[tuple[str, date]] = []
    failed: list[tuple[str, date]] = []
    waiting = [portion for portion, _ in portions]
    last = max(waiting, default=0)
    while waiting:
        portion = waiting.pop(0)
        try:
            unequal += _compute_portion(connection, portion, today)
        except CAUSED_BY_PAGES as error:
            days = connection.execute(
                "SELECT user_id, date FROM portioned_days WHERE portion = ?", [portion]
            ).fetchall()
            _log.warning("Failed to compute the metrics of %d user-days at once: %s", len(days), error)
            if len(days) == 1:
                failed += days
                continue
            last += 1
            run_section(connection, "attribution", "halve", portion=portion, later=last)
            waiting[:0] = [portion, last]
    return sum(days for _, days in portions) - len(failed), unequal, failed


def _compute_portion(
    connection: duckdb.DuckDBPyConnection, portion: int, today: date
) -> list[tuple[str, date]]:
    """Computes the days of a portion in one transaction; returns the days that do not add up."""
    with transaction(connection):
        run_section(connection, "attribution", "prepare", portion=portion)
        run_section(connection, "daily_model_costs", "match")
        run_section(connection, "daily_attributed_costs", "split")
        for table in REFRESHED_TABLES:
            run_section(connection, table, "refresh", today=today)
        run_section(connection, "attribution", "check")
        unequal = connection.execute("SELECT user_id, date FROM unequal_days").fetchall()
        run_section(connection, "attribution", "finish")
    return unequal


def _portions(rows: pa.Table, most: int) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, most):
        yield rows.slice(start, most)


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
