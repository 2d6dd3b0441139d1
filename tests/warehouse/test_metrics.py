"""Metrics: each figure equals a sum made by hand from the facts."""

from datetime import date, timedelta
from decimal import ROUND_DOWN, Decimal, localcontext

import pytest

from finora_pipeline.openai_admin.pages import Window
from tests.conftest import Installation

DAYS = 75


@pytest.fixture
def refreshed(start_openai, install) -> Installation:
    installation = install(start_openai(days=DAYS, keys_per_project=1))
    installation.connect(plan="growth")
    assert installation.refresh().failed_users == []
    return installation


def test_metrics_equal_sums_made_by_hand(refreshed: Installation):
    through = refreshed.today - timedelta(days=1)
    costs = refreshed.costs("user-0")
    metrics = {
        (metric, period): row
        for metric, period, *row in refreshed.sql(
            "SELECT metric, period, value, previous_value, change, sparkline "
            "FROM user_metrics WHERE user_id = 'user-0'"
        )
    }

    def spend(first: date, last: date) -> Decimal:
        return sum((amount for (day, _, _), amount in costs.items() if first <= day <= last), Decimal(0))

    def ago(days: int) -> date:
        return through - timedelta(days=days)

    for period, days in (("7d", 7), ("30d", 30)):
        value, previous, change, sparkline = metrics["total_spend", period]
        assert value == spend(ago(days - 1), through)
        assert previous == spend(ago(2 * days - 1), ago(days))
        assert abs(change - (value - previous) / previous) < Decimal("1e-9")
        assert sparkline == [spend(ago(n), ago(n)) for n in range(13, -1, -1)]
        average = metrics["average_daily_cost", period][0]
        with localcontext(prec=60):
            assert average == (value / days).quantize(Decimal("1e-18"), rounding=ROUND_DOWN)
    # Not every day of the previous 90 days is known.
    assert metrics["total_spend", "90d"][1] is None
    assert metrics["total_spend", "90d"][0] == spend(date.min, through)
    assert metrics["today_so_far", "today"][0] == spend(refreshed.today, refreshed.today) > 0

    month = through.replace(day=1)
    before = (month - timedelta(days=1)).replace(day=1)
    last = min(before + (through - month), month - timedelta(days=1))
    growth = metrics["month_over_month", "month"][0]
    this, other = spend(month, through), spend(before, last)
    assert abs(growth - (this - other) / other) < Decimal("1e-9")


@pytest.mark.slow
def test_cost_per_1k_tokens_is_token_priced_cost_by_tokens(refreshed: Installation):
    days = Window(refreshed.today - timedelta(days=30), refreshed.today)
    truth = refreshed.openai.truth(0, days)
    ((tokens,),) = refreshed.sql(
        "SELECT sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) FROM daily_usage "
        "WHERE date >= ? AND date < ? AND service <> 'moderations'",
        days.start,
        days.end,
    )
    assert tokens > sum(asked + written for asked, written in truth.tokens_by_model.values())
    (row,) = refreshed.sql(
        "SELECT value, covered_share FROM user_metrics WHERE metric = 'cost_per_1k_tokens' AND period = '30d'"
    )
    # The image model is priced by token, but its usage counts images.
    models = set(truth.tokens_by_model) | {"gpt-4o-2024-08-06", "text-embedding-3-small", "gpt-6-astra"}
    covered = sum(
        (
            amount
            for item, amount in truth.by_line_item.items()
            if item.removeprefix("priority | ").split(",")[0].strip() in models
        ),
        Decimal(0),
    )
    with localcontext(prec=60):
        expected = (covered * 1000 / tokens).quantize(Decimal("1e-18"), rounding=ROUND_DOWN)
    assert row[0] == expected
    assert abs(row[1] - covered / truth.total) < Decimal("1e-9")


@pytest.mark.slow
def test_models_add_up_to_total_cost_and_match_their_usage(refreshed: Installation):
    by_day = refreshed.sql("SELECT date, sum(amount_usd) FROM daily_costs GROUP BY date ORDER BY date")
    assert by_day == refreshed.sql(
        "SELECT date, sum(amount_usd) FROM daily_model_costs GROUP BY date ORDER BY date"
    )
    # Usage has gpt-4o, costs gpt-4o-2024-08-06: one row holds both.
    query = "SELECT count(*), count(input_tokens), min(amount_usd) > 0 FROM daily_model_costs WHERE model = ?"
    assert refreshed.sql(query, "gpt-4o") == [(0, 0, None)]
    ((days, with_tokens, costly),) = refreshed.sql(query, "gpt-4o-2024-08-06")
    assert (days, costly) == (with_tokens, True)
    # A charge without a model is listed under its line item.
    assert refreshed.sql("SELECT count(*) > 0 FROM daily_model_costs WHERE model = 'web search tool calls'")[
        0
    ][0]


def test_a_ratio_without_a_denominator_has_no_value(start_openai, install):
    installation = install(start_openai(days=3))
    installation.connect(plan="trial")
    installation.refresh()
    # Three days of data have no previous month.
    query = "SELECT value, previous_value, change FROM user_metrics WHERE metric = ? AND period = 'month'"
    assert installation.sql(query, "month_over_month") == [(None, None, None)]
    ((value, previous, change),) = installation.sql(query, "total_spend")
    assert (value > 0, previous, change) == (True, None, None)
    # A search is not priced by token.
    query = "SELECT DISTINCT cost_per_1k_tokens FROM daily_model_costs WHERE model = 'web search tool calls'"
    assert installation.sql(query) == [(None,)]
