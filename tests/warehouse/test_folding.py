"""Folded revisions: one per charge and UTC day, and the same past."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.warehouse import folding
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.folding import fold_revisions
from finora_pipeline.warehouse.periods import EXACT_DAYS
from finora_pipeline.warehouse.schema import create_or_migrate
from tests.warehouse.landing import DAY, bucket, land, load, page_of, rows

FIRST = datetime(2026, 6, 1, tzinfo=UTC)
LAST_MOMENT = timedelta(days=1) - timedelta(microseconds=1)
# The moments of fetches are within so many days, the days of charges are the first ones.
FETCHED_DAYS, CHARGED_DAYS = 14, 4
RESTATED = (
    "SELECT user_id, date, project_id, line_item, stage, sum(change_usd) FROM restatements "
    "GROUP BY ALL HAVING sum(change_usd) <> 0 ORDER BY ALL"
)
REPEATED = (
    "SELECT count(*) FROM cost_revisions LEFT JOIN pipeline.loaded_days USING (user_id, provider, date) "
    "GROUP BY user_id, date, project_id, line_item, date_trunc('day', observed_at), "
    "coalesce(observed_at > completed_at, false)"
)


@dataclass(frozen=True)
class Charge:
    """What a fetch of a charge finds: no charge at all, or its amount and quantity."""

    is_there: bool
    amount: Decimal | None = None
    quantity: Decimal | None = None


NO_CHARGE = Charge(False)
cents = st.integers(-3, 3).map(lambda number: Decimal(number) / 100)
charges = st.one_of(
    st.just(NO_CHARGE),
    st.builds(Charge, st.just(True), st.one_of(st.none(), cents), st.one_of(st.none(), cents)),
)
# Midnights, and the microseconds around them, are among the moments.
moments = st.builds(
    lambda day, offset: FIRST + timedelta(days=day) + offset,
    st.integers(0, FETCHED_DAYS - 1),
    st.one_of(
        st.sampled_from([timedelta(0), timedelta(microseconds=1), LAST_MOMENT]),
        st.integers(0, 1439).map(lambda minutes: timedelta(minutes=minutes)),
    ),
)
# Per user and day the fetches, each with the charges of two lines.
histories = st.dictionaries(
    st.tuples(st.sampled_from(["acme", "zeta"]), st.integers(0, CHARGED_DAYS - 1)),
    st.dictionaries(moments, st.tuples(charges, charges), min_size=1, max_size=12),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """A warehouse whose rows each example replaces."""
    return Warehouse(tmp_path_factory.mktemp("folded"))


def store(connection: Any, user_id: str, day: date, fetches: dict[datetime, Sequence[Charge]]) -> None:
    """Store what loads of these fetches leave, from the day's start on."""
    start = datetime.combine(day, datetime.min.time(), UTC)
    known = sorted((at, lines) for at, lines in fetches.items() if at >= start)
    if not known:
        return
    complete = [at for at, _ in known if at >= start + timedelta(days=1)]
    connection.execute(
        "INSERT INTO pipeline.loaded_days (user_id, provider, endpoint, date, first_fetched_at, fetched_at, "
        "raw_file, completed_at, checked_at) VALUES (?, 'openai', 'costs', ?, ?, ?, 'one', ?, ?)",
        [user_id, day, known[0][0], known[-1][0], min(complete, default=None), known[-1][0]],
    )
    for number in range(2):
        project, item = ("proj_a", "a") if number else (None, None)
        states = [(at, lines[number]) for at, lines in known]
        for (_, old), (at, new) in pairwise(states):
            if old != new:
                values = [old.amount, new.amount, old.quantity, new.quantity, old.is_there, new.is_there]
                connection.execute(
                    "INSERT INTO cost_revisions VALUES (?, 'openai', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    [user_id, day, project, item, at, *values],
                )
        at, newest = states[-1]
        if newest.is_there:
            connection.execute(
                "INSERT INTO daily_costs (user_id, provider, date, project_id, line_item, amount_usd, "
                "quantity, is_long_context, is_parsed, fetched_at, raw_file, is_sample) "
                "VALUES (?, 'openai', ?, ?, ?, ?, ?, false, true, ?, 'one', false)",
                [user_id, day, project, item, newest.amount, newest.quantity, at],
            )


@dataclass(frozen=True)
class Seen:
    """What readers see: the past, the restatements and all revisions."""

    past: dict[datetime, list[tuple[Any, ...]]]
    baselines: dict[tuple[str, date], tuple[Decimal, Decimal]]
    restated: list[tuple[Any, ...]]
    revisions: list[tuple[Any, ...]]


def seen(warehouse: Warehouse, moments: Sequence[datetime]) -> Seen:
    """Return what readers see, with the past at these moments.

    Per complete user-day the baselines are the USD known at its first complete fetch, and those that the
    restatements leave of today's.
    """
    with warehouse.writing() as connection:
        past = {
            moment: connection.execute("FROM costs_as_of(?) ORDER BY ALL", [moment]).fetchall()
            for moment in moments
        }
        days = connection.execute(
            "SELECT user_id, date, completed_at FROM pipeline.loaded_days WHERE completed_at IS NOT NULL"
        ).fetchall()
        baselines = {
            (user_id, day): usd_at_baseline(connection, user_id, day, at) for user_id, day, at in days
        }
        restated = connection.execute(RESTATED).fetchall()
        revisions = connection.execute("FROM cost_revisions ORDER BY ALL").fetchall()
    return Seen(past, baselines, restated, revisions)


def usd_at_baseline(connection: Any, user_id: str, day: date, at: datetime) -> tuple[Decimal, Decimal]:
    def sum_of(amount: str, table: str, *values: object) -> Decimal:
        query = f"SELECT coalesce(sum({amount}), 0) FROM {table} WHERE user_id = ? AND date = ?"
        return connection.execute(query, [*values, user_id, day]).fetchall()[0][0]

    changes = sum_of("change_usd", "restatements")
    return sum_of("amount_usd", "costs_as_of(?)", at), sum_of("amount_usd", "daily_costs") - changes


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories, ago=st.integers(0, 60 * 24 * 12))
def test_a_folded_past_is_the_same_at_the_end_of_every_day(
    history: dict[tuple[str, int], dict[datetime, Sequence[Charge]]], ago: int, warehouse: Warehouse
):
    now = FIRST + timedelta(days=EXACT_DAYS + FETCHED_DAYS) - timedelta(minutes=ago)
    exact_from = now - timedelta(days=EXACT_DAYS)
    with warehouse.writing() as connection:
        for table in ("cost_revisions", "daily_costs", "pipeline.loaded_days", "pipeline.folded_revisions"):
            connection.execute(f"TRUNCATE {table}")
        for (user_id, number), fetches in history.items():
            store(connection, user_id, (FIRST + timedelta(days=number)).date(), fetches)
    known = [FIRST + timedelta(days=day) + LAST_MOMENT for day in range(FETCHED_DAYS)]
    known += [at for fetches in history.values() for at in fetches if at >= exact_from]
    before = seen(warehouse, known)

    saved = fold_revisions(warehouse, now)

    after = seen(warehouse, known)
    assert after.past == before.past
    assert after.restated == before.restated
    assert after.baselines == before.baselines
    assert [usd for usd, _ in after.baselines.values()] == [usd for _, usd in after.baselines.values()]
    assert len(after.revisions) == len(before.revisions) - saved
    recent = [row for row in before.revisions if row[5] >= exact_from]
    assert [row for row in after.revisions if row[5] >= exact_from] == recent
    folded_before = exact_from.replace(hour=0, minute=0)
    assert rows(warehouse, f"{REPEATED} HAVING max(observed_at) < '{folded_before}' AND count(*) > 1") == []
    with warehouse.writing() as connection:
        # As after a rebuild, which begins from the first day again.
        connection.execute("TRUNCATE pipeline.folded_revisions")
    assert fold_revisions(warehouse, now) == 0
    assert seen(warehouse, known) == after


def counted(requests: int, tokens: int) -> list[dict[str, Any]]:
    """Return a usage row; it has no counts at all if there are no requests."""
    if not requests:
        return []
    return [{"project_id": "proj_a", "model": "m", "num_model_requests": requests, "input_tokens": tokens}]


def test_usage_is_folded_alike(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    end = datetime(2026, 6, 15, tzinfo=UTC)
    # Hours from the end of the day, requests and input tokens.
    fetches = [
        (-9, 0, 0),
        (-8, 1, 10),
        (-2, 2, 30),
        (1, 3, 40),
        (2, 4, 50),
        (3, 5, 60),
        (30, 0, 0),
        (31, 5, 60),
    ]
    for hours, requests, tokens in fetches:
        body = page_of(bucket(counted(requests, tokens)))
        at = end + timedelta(hours=hours)
        land(warehouse, body, endpoint=ENDPOINTS["completions"], fetched_at=at, run_id=f"run-{hours}")
        load(warehouse, "completions")
    query = (
        "SELECT observed_at, old_requests, new_requests, old_input_tokens, new_input_tokens, old_other, "
        "new_other FROM usage_revisions ORDER BY observed_at"
    )
    assert len(rows(warehouse, query)) == len(fetches) - 1
    now = end + timedelta(days=2 + EXACT_DAYS)
    assert fold_revisions(warehouse, now) == 4
    assert rows(warehouse, query) == [
        (end + timedelta(hours=-2), None, 2, None, 30, None, 0),
        (end + timedelta(hours=1), 2, 3, 30, 40, 0, 0),
        (end + timedelta(hours=3), 3, 5, 40, 60, 0, 0),
    ]
    assert fold_revisions(warehouse, now) == 0


def test_many_revisions_are_folded_in_portions_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    warehouse = Warehouse(tmp_path)
    with warehouse.writing() as connection:
        connection.execute(
            "INSERT INTO cost_revisions SELECT 'user-' || u, 'openai', ?, 'p', 'a', "
            "?::TIMESTAMPTZ + to_minutes(n), n, n + 1, NULL, NULL, true, true "
            "FROM range(40) users(u), range(5) fetches(n)",
            [DAY, FIRST],
        )
    monkeypatch.setattr(folding, "ROWS_AT_ONCE", 30)
    assert fold_revisions(warehouse, FIRST + timedelta(days=30)) == 160
    query = "SELECT count(*), count(DISTINCT user_id), min(old_amount_usd), max(new_amount_usd)"
    assert rows(warehouse, f"{query} FROM cost_revisions") == [(40, 40, Decimal(0), Decimal(5))]


def test_the_macro_says_for_which_moments_it_is_exact(memory: Any):
    create_or_migrate(memory)
    query = "SELECT comment FROM duckdb_functions() WHERE function_name = 'costs_as_of'"
    assert f"last {EXACT_DAYS} days" in memory.execute(query).fetchall()[0][0]
