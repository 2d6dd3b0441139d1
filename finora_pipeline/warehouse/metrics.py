"""Metrics from facts: each function brings one table up to date, under the warehouse's lock."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from decimal import Decimal

import duckdb
import pyarrow as pa

from finora_pipeline.warehouse.clock import forget_future_days
from finora_pipeline.warehouse.database import PartsUnequal, Warehouse, run, transaction
from finora_pipeline.warehouse.load import service_names_table
from finora_pipeline.warehouse.portions import CAUSED_BY_PAGES
from finora_pipeline.warehouse.sql import section

_log = logging.getLogger("finora_pipeline.warehouse")
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
    severity how many of all days do not reconcile with OpenAI's totals, with their residual in USD; the rows
    of `user_metrics`; and on how many days there are costs without use, or use without costs, with their
    tokens, which is normal. `failed` are the (user, day) that could not be computed and keep their rows.
    """

    days: int
    unequal: list[tuple[str, date]]
    residuals: dict[str, tuple[int, Decimal]]
    metric_rows: int = 0
    failed: list[tuple[str, date]] = field(default_factory=list)
    token_residuals: dict[str, tuple[int, Decimal]] = field(default_factory=dict)


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
    waiting = list(_portions(outdated, USERS_AT_ONCE))
    while waiting:
        users = waiting.pop(0)
        connection.register("users_to_compute", users)
        try:
            with transaction(connection):
                run(connection, "user_metrics", "refresh", today=today)
        except CAUSED_BY_PAGES as error:
            _log.warning("The figures of %d users were not computed at once: %s", users.num_rows, error)
            if users.num_rows > 1:
                waiting[:0] = list(_portions(users, -(-users.num_rows // 2)))


def _refresh_costs(connection: duckdb.DuckDBPyConnection, user_ids: Iterable[str], today: date) -> Recomputed:
    users = pa.table({"user_id": pa.array(list(user_ids), pa.string())})
    connection.register("sample_users", users)
    connection.register("sample_models", SAMPLE_MODELS)
    connection.register("service_names", service_names_table())
    with transaction(connection):
        run(connection, "sample_data", "refresh", today=today)
    connection.execute(section("attribution", "macros"))
    connection.execute(section("attribution", "portion"), {"rows_at_once": ROWS_AT_ONCE})
    portions = connection.execute(
        "SELECT portion, count(*) FROM portioned_days GROUP BY portion ORDER BY portion"
    ).fetchall()
    unequal: list[tuple[str, date]] = []
    failed: list[tuple[str, date]] = []
    waiting = [portion for portion, _ in portions]
    later = max(waiting, default=0)
    while waiting:
        portion = waiting.pop(0)
        try:
            unequal += _compute_portion(connection, portion, today)
        except CAUSED_BY_PAGES as error:
            days = connection.execute(
                "SELECT user_id, date FROM portioned_days WHERE portion = ?", [portion]
            ).fetchall()
            _log.warning("The metrics of %d user-days were not computed at once: %s", len(days), error)
            if len(days) == 1:
                failed += days
                continue
            later += 1
            run(connection, "attribution", "halve", portion=portion, later=later)
            waiting[:0] = [portion, later]
    open_days = connection.execute(section("reconciliation", "check")).fetchall()
    residuals = {severity: (days, usd) for severity, days, usd in open_days}
    differing = connection.execute(section("reconciliation", "token_check")).fetchall()
    return Recomputed(
        sum(days for _, days in portions) - len(failed),
        unequal,
        residuals,
        failed=failed,
        token_residuals={kind: (days, tokens) for kind, days, tokens in differing},
    )


def _compute_portion(
    connection: duckdb.DuckDBPyConnection, portion: int, today: date
) -> list[tuple[str, date]]:
    """Computes the days of one portion, all or nothing; returns those that do not add up to the bill."""
    with transaction(connection):
        run(connection, "attribution", "prepare", portion=portion)
        for table in ("daily_model_costs", "daily_member_costs", "daily_key_costs", "reconciliation"):
            run(connection, table, "refresh", today=today)
        run(connection, "attribution", "check")
        unequal = connection.execute("SELECT user_id, date FROM unequal_days").fetchall()
        run(connection, "attribution", "finish")
    return unequal


def _portions(rows: pa.Table, most: int) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, most):
        yield rows.slice(start, most)


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return connection.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0]
