"""The sample is an ordinary published file of an imaginary organization, exact to the last digit."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from finora_pipeline.dashboard.sample import MODELS, SAMPLE_DAYS, make_sample
from finora_pipeline.dashboard.snapshots import SAMPLE_USER

TODAY = datetime.now(UTC).date()
DAYS = [TODAY - timedelta(days=number) for number in range(SAMPLE_DAYS, -1, -1)]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sample") / "sample.duckdb"
    make_sample(file, TODAY)
    return file


def rows(sample: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(sample, read_only=True) as connection:
        return connection.execute(query).fetchall()


def test_each_charge_is_its_tokens_times_their_price(sample: Path) -> None:
    price_of = {
        (model.name, direction): price
        for model in MODELS
        for direction, price in (("input", model.input_price), ("output", model.output_price))
    }
    charges = rows(sample, "SELECT model, direction, quantity, amount_usd FROM daily_costs")
    assert len(charges) == len(price_of) * len(DAYS)
    for model, direction, quantity, amount in charges:
        assert amount == quantity * price_of[model, direction] / 1_000_000
        assert amount > 0


def test_its_days_are_ordinary_known_days(sample: Path) -> None:
    known = rows(
        sample, "SELECT endpoint, min(date), max(date), count(*) FROM pipeline.loaded_days GROUP BY 1"
    )
    assert sorted(known) == [(name, DAYS[0], TODAY, len(DAYS)) for name in ("completions", "costs")]
    for table in ("daily_costs", "daily_usage", "daily_model_costs", "user_metrics"):
        assert rows(sample, f"SELECT DISTINCT user_id, is_sample FROM {table}") == [(SAMPLE_USER, False)]


def test_costs_by_model_have_the_tokens_that_were_used(sample: Path) -> None:
    query = "SELECT date, model, input_tokens, output_tokens FROM daily_model_costs"
    assert sorted(rows(sample, query)) == sorted(
        (day, model.name, model.input_tokens(day), model.output_tokens(day))
        for day in DAYS
        for model in MODELS
    )
    total = "SELECT sum(amount_usd) FROM {}"
    assert rows(sample, total.format("daily_model_costs")) == rows(sample, total.format("daily_costs"))


def test_weekends_are_quieter() -> None:
    for model in MODELS:
        working = [model.input_tokens(day) for day in DAYS if day.weekday() < 5]
        free = [model.input_tokens(day) for day in DAYS if day.weekday() >= 5]
        assert max(free) < min(working) / 2
        assert len(set(working)) > 5
        assert Decimal(max(working)) / model.tokens_a_day <= Decimal("1.1")
