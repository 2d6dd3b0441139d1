"""Metrics from facts: each function brings one table up to date, under the warehouse's lock."""

from collections.abc import Iterable
from datetime import date

import duckdb
import pyarrow as pa

from finora_pipeline.warehouse.warehouse import Warehouse, run, transaction

# What the sample organization uses: tokens on a working day, USD per million tokens in and out.
SAMPLE_MODELS = pa.table(
    {
        "model": ["gpt-5-2025-08-07", "gpt-5-mini-2025-08-07", "gpt-4o-mini-2024-07-18"],
        "tokens_a_day": pa.array([620_000, 1_450_000, 900_000], pa.int64()),
        "input_price_per_million": ["1.25", "0.25", "0.15"],
        "output_price_per_million": ["10.00", "2.00", "0.60"],
    }
)


def refresh_daily_model_costs(warehouse: Warehouse, user_ids: Iterable[str], today: date) -> int:
    """Recomputes `daily_model_costs` for the days whose facts changed; returns how many user-days.

    Users among `user_ids` without any real row get sample rows, and lose them with their first real one.
    """
    with warehouse.writing() as connection, transaction(connection):
        return _model_costs(connection, user_ids, today)


def refresh_user_metrics(warehouse: Warehouse, today: date) -> int:
    """Brings `user_metrics` up to a UTC day and to changed costs; returns the number of its rows."""
    with warehouse.writing() as connection, transaction(connection):
        run(connection, "user_metrics", "refresh", today=today)
        return _count(connection, "user_metrics")


def catch_up(connection: duckdb.DuckDBPyConnection, user_ids: Iterable[str], today: date) -> None:
    """Computes what another run's load has left to be computed, so that facts and metrics are of one moment.

    Called under the lock, in a transaction.
    """
    if _count(connection, "pipeline.stale_days"):
        _model_costs(connection, user_ids, today)
    if _count(connection, "pipeline.stale_users"):
        run(connection, "user_metrics", "refresh", today=today)


def _model_costs(connection: duckdb.DuckDBPyConnection, user_ids: Iterable[str], today: date) -> int:
    users = pa.table({"user_id": pa.array(list(user_ids), pa.string())})
    connection.register("sample_users", users)
    connection.register("sample_models", SAMPLE_MODELS)
    run(connection, "sample_data", "refresh", today=today)
    stale = _count(connection, "pipeline.stale_days")
    run(connection, "daily_model_costs", "refresh")
    return stale


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
