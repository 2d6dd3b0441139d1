"""Metrics from facts: each function brings one table up to date, under the warehouse's lock."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal

import duckdb
import pyarrow as pa

from finora_pipeline.warehouse.clock import forget_future_days
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.warehouse import PartsUnequal, Warehouse, run, transaction

# What the sample organization uses: tokens on a working day, USD per million tokens in and out.
SAMPLE_MODELS = pa.table(
    {
        "model": ["gpt-5-2025-08-07", "gpt-5-mini-2025-08-07", "gpt-4o-mini-2024-07-18"],
        "tokens_a_day": pa.array([620_000, 1_450_000, 900_000], pa.int64()),
        "input_price_per_million": ["1.25", "0.25", "0.15"],
        "output_price_per_million": ["10.00", "2.00", "0.60"],
    }
)
# Rows of costs and usage whose days are computed in one transaction: each reads the tables anew, but memory
# grows with them, and until a transaction's end DuckDB keeps what a replaced temporary table held.
ROWS_AT_ONCE = 150_000
# Users whose figures are computed in one transaction.
USERS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class Recomputed:
    """How many user-days were computed; those (user, day) whose parts do not add up to the bill; and by
    severity how many of all days do not reconcile with OpenAI's totals, with their residual in USD; and the
    rows of `user_metrics`."""

    days: int
    unequal: list[tuple[str, date]]
    residuals: dict[str, tuple[int, Decimal]]
    metric_rows: int = 0


def refresh_metrics(warehouse: Warehouse, user_ids: Iterable[str], today: date) -> Recomputed:
    """Brings all metrics up to the facts and to a UTC day: the costs by model, member and API key of the days
    whose facts changed, then `user_metrics`.

    Users among `user_ids`, which are asked for under the lock, get sample rows while they have no real one.
    """
    # A connection each: what DuckDB holds for the first is not needed by the second.
    with warehouse.lock():
        with warehouse.connect() as connection:
            with transaction(connection):
                forget_future_days(connection, today)
            computed = _refresh_costs(connection, user_ids, today)
        with warehouse.connect() as connection:
            _refresh_user_metrics(connection, today)
            return replace(computed, metric_rows=_count(connection, "user_metrics"))


def catch_up(connection: duckdb.DuckDBPyConnection, user_ids: Iterable[str], today: date) -> None:
    """Computes, under the lock, what another run's load has left to be computed, so that facts and metrics
    are of one moment. Raises `PartsUnequal` where a day does not add up, now or in a run before."""
    with transaction(connection):
        forget_future_days(connection, today)
    if _count(connection, "pipeline.stale_days"):
        unequal = _refresh_costs(connection, user_ids, today).unequal
        if unequal:
            user_id, day = min(unequal)
            raise PartsUnequal(
                f"Costs by model, member or API key do not add up to the bill on {len(unequal)} user-days, "
                f"the first of {user_id} on {day}: nothing is published and readers keep the last good copy. "
                "Run finora rebuild and report what it shows."
            )
    if _count(connection, "pipeline.stale_users"):
        _refresh_user_metrics(connection, today)


def _refresh_user_metrics(connection: duckdb.DuckDBPyConnection, today: date) -> None:
    outdated = connection.execute(section("user_metrics", "outdated"), {"today": today}).to_arrow_table()
    for users in _portions(outdated, USERS_AT_ONCE):
        connection.register("users_to_compute", users)
        with transaction(connection):
            run(connection, "user_metrics", "refresh", today=today)


def _refresh_costs(connection: duckdb.DuckDBPyConnection, user_ids: Iterable[str], today: date) -> Recomputed:
    users = pa.table({"user_id": pa.array(list(user_ids), pa.string())})
    connection.register("sample_users", users)
    connection.register("sample_models", SAMPLE_MODELS)
    with transaction(connection):
        run(connection, "sample_data", "refresh", today=today)
    connection.execute(section("attribution", "portion"), {"rows_at_once": ROWS_AT_ONCE})
    portions = connection.execute(
        "SELECT portion, count(*) FROM portioned_days GROUP BY portion ORDER BY portion"
    ).fetchall()
    unequal: list[tuple[str, date]] = []
    for portion, _ in portions:
        with transaction(connection):
            run(connection, "attribution", "prepare", portion=portion)
            for table in ("daily_model_costs", "daily_member_costs", "daily_key_costs", "reconciliation"):
                run(connection, table, "refresh", today=today)
            run(connection, "attribution", "check")
            unequal += connection.execute("SELECT user_id, date FROM unequal_days").fetchall()
            run(connection, "attribution", "finish")
    open_days = connection.execute(section("reconciliation", "check")).fetchall()
    residuals = {severity: (days, usd) for severity, days, usd in open_days}
    return Recomputed(sum(days for _, days in portions), unequal, residuals)


def _portions(rows: pa.Table, most: int) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, most):
        yield rows.slice(start, most)


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
