"""The documentation's worked examples reproduce the published figures."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

from finora_pipeline.reading import connect
from tests.conftest import Installation

TEXT = (Path(__file__).parent.parent.parent / "docs" / "kpis.md").read_text()
EXAMPLES = re.findall(r"^## (\w+)\n.*?^```sql\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
KPIS = {
    "total_spend",
    "average_daily_cost",
    "cost_per_1k_tokens",
    "top_model_share",
    "tokens_per_hour",
    "cost_per_request",
    "provider_share",
    "month_over_month",
}


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Installation:
    from tests.small_openai import small_openai

    with small_openai(organizations=1, days=75) as openai:
        installation = Installation(tmp_path_factory.mktemp("kpis") / "home", openai)
        installation.connect(plan="growth", users=["acme"])
        assert installation.refresh().failed_users == []
        return installation


def test_every_kpi_has_a_worked_example():
    assert {metric for metric, _ in EXAMPLES} == KPIS


@pytest.mark.parametrize(("metric", "query"), EXAMPLES, ids=[metric for metric, _ in EXAMPLES])
def test_each_worked_example_equals_the_published_figure(metric: str, query: str, figures: Installation):
    with connect(figures.settings.published_database) as connection:
        ((by_hand,),) = connection.execute(query, {"today": figures.today}).fetchall()
        ((published, previous, spark),) = connection.execute(
            "SELECT value, previous_value, sparkline FROM user_metrics WHERE period = '30d' AND metric = ?",
            [metric],
        ).fetchall()
    assert isinstance(by_hand, Decimal)
    assert by_hand == published
    assert published != 0
    assert len(spark) == 14
    # The previous growth would need three periods of data.
    assert (previous is None) == (metric == "month_over_month")


def test_every_kpi_is_published_for_every_period(figures: Installation):
    found = figures.sql(
        "SELECT metric, period, count(*) FROM user_metrics WHERE user_id = 'acme' GROUP BY ALL"
    )
    assert {(metric, period) for metric, period, _ in found} >= {
        (metric, period) for metric in KPIS for period in ("7d", "30d", "90d", "month")
    }
    assert {count for _, _, count in found} == {1}
