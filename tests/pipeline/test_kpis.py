"""The documentation's worked examples reproduce the published figures."""

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.openai_simulator import OrganizationSpec, Simulator, running
from finora_pipeline.openai_simulator.catalog import MODELS
from finora_pipeline.openai_simulator.organization import Cell
from finora_pipeline.reading import connect
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.kpis import KPIS, TODAY_SO_FAR
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.conftest import Installation, OpenAI, now_in_the_middle_of_today
from tests.reading.analysts_world import CREDIT, extra
from tests.warehouse.landing import bucket, cost_day, cost_row, land, load, page_of, rows

TEXT = (Path(__file__).parent.parent.parent / "docs" / "kpis.md").read_text()
SECTIONS = {
    found[1]: found[2]
    for found in re.finditer(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    if "```sql" in found[2]
}
METRICS = {*(kpi.metric for kpi in KPIS), TODAY_SO_FAR}
# The only figures of another period than the 30 days of the examples.
PERIODS = {"month_over_month": "month", TODAY_SO_FAR: "today"}


def query_of(section: str) -> str:
    (query,) = re.findall(r"^```sql\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return query


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """An organization of 75 days with every service and a credit each week."""
    now = now_in_the_middle_of_today()
    spec = OrganizationSpec(0, now.date() - timedelta(days=74), keys_per_project=1, models=MODELS[:3])
    simulator = Simulator([spec], now=now)
    (organization,) = simulator.organizations
    simulated = organization.cells

    def with_credits(day: date, now: datetime) -> list[Cell]:
        credits = [extra(organization, CREDIT, "-1.25")] if day.weekday() == 0 else []
        return [*simulated(day, now), *credits]

    # In place of the method, as the simulator's answers and its truth call it.
    vars(organization)["cells"] = with_credits
    with running(simulator) as base_url:
        home = tmp_path_factory.mktemp("kpis") / "home"
        installation = Installation(home, OpenAI(simulator, base_url))
        installation.connect(plan="growth", users=["acme"])
        assert installation.refresh().failed_users == []
        return installation


def in_days_of(today: date, query: str) -> str:
    """A query of the document, whose today is November 28, 2026, with the days of this today."""
    through = today - timedelta(days=1)
    month = through.replace(day=1)
    before = month - timedelta(days=1)
    days = {
        "2026-11-28": today,
        "2026-11-27": through,
        "2026-11-01": month,
        "2026-10-29": through - timedelta(days=29),
        "2026-10-27": before.replace(day=min(through.day, before.day)),
        "2026-10-01": before.replace(day=1),
    }
    return re.sub(r"2026-\d\d-\d\d", lambda found: str(days[found[0]]), query)


def test_every_figure_has_a_worked_example():
    assert SECTIONS.keys() == METRICS
    for section in SECTIONS.values():
        assert len(query_of(section).strip().splitlines()) <= 10


@pytest.mark.parametrize("metric", SECTIONS)
def test_each_query_equals_the_published_figure(metric: str, figures: Installation):
    with connect(figures.settings.published_database) as connection:
        query = in_days_of(figures.today, query_of(SECTIONS[metric]))
        ((by_hand,),) = connection.execute(query).fetchall()
        ((published, previous, spark),) = connection.execute(
            "SELECT value, previous_value, sparkline FROM user_metrics WHERE period = ? AND metric = ?",
            [PERIODS.get(metric, "30d"), metric],
        ).fetchall()
    assert isinstance(by_hand, Decimal)
    assert by_hand == published
    assert published != 0
    if metric in PERIODS:
        assert (previous, spark) == (None, None)
    else:
        assert previous is not None
        assert len(spark) == 14


def test_every_figure_is_published_for_every_period(figures: Installation):
    found = figures.sql(
        "SELECT metric, period, count(*) FROM user_metrics WHERE user_id = 'acme' GROUP BY ALL"
    )
    expected = {
        (metric, period) for metric in METRICS - PERIODS.keys() for period in ("7d", "30d", "90d", "month")
    }
    assert {(metric, period) for metric, period, _ in found} == expected | PERIODS.items()
    assert {count for _, _, count in found} == {1}


def test_the_history_of_a_figure_begins_with_the_published_one(figures: Installation):
    query = TEXT[TEXT.index("## As published then") :]
    ((as_of, through, value),) = figures.sql(query_of(query))
    assert [(as_of, through, value)] == [
        (figures.today, *row)
        for row in figures.sql(
            "SELECT through_date, value FROM user_metrics WHERE metric = 'total_spend' AND period = '30d'"
        )
    ]


# The example's numbers


@pytest.fixture
def example(tmp_path: Path) -> dict[tuple[str, str], tuple[Decimal, Decimal]]:
    """Value and change of each figure of the example's table, landed as one of the seven days."""
    warehouse, today = Warehouse(tmp_path), date(2026, 11, 28)
    lines = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in TEXT.splitlines() if line[:1] == "|"
    ]
    cells = [(line[0], line[1], *line[4:]) for line in lines if len(line) == 7 and line[1][-1:].isdigit()]
    assert len(cells) == 5
    costs, usage = [], {"completions": [], "moderations": []}
    for model, usd, *counts in cells:
        requests, read, written = (int(count.replace(",", "") or 0) for count in counts)
        if Decimal(usd):
            line = cost_row(f'"{usd}"', f"{model}, input" if requests else model)
            costs.append(line[:-1] + ',"quantity":1,"quantity_unit":"tokens"}' if requests else line)
        if requests:
            used = {"project_id": "proj_a", "model": model, "num_model_requests": requests}
            counted = {"input_tokens": read, "output_tokens": written} if written else {"input_tokens": read}
            usage["moderations" if "moderation" in model else "completions"].append({**used, **counted})
    days = [today - timedelta(days=n) for n in range(15)]
    charges = {days[3]: costs, days[9]: [cost_row('"28.00"')], days[0]: [cost_row('"1.20"')]}
    for days_read in (days[:1], days[1:]):
        land(
            warehouse,
            page_of(*(cost_day(charges.get(day, []), day) for day in sorted(days_read))),
            fetched_at=datetime(2026, 11, 28, 9, tzinfo=UTC),
        )
    for endpoint, used in usage.items():
        page = page_of(*(bucket(used if day == days[3] else [], day) for day in sorted(days)))
        land(warehouse, page, endpoint=ENDPOINTS[endpoint], fetched_at=datetime(2026, 11, 28, 9, tzinfo=UTC))
    load(warehouse)
    load(warehouse, "completions")
    refresh_metrics(warehouse, today)
    found = rows(warehouse, "SELECT metric, period, value, change FROM user_metrics")
    return {(metric, period): (value, change) for metric, period, value, change in found}


def test_the_examples_numbers_are_those_of_its_table(example: dict[tuple[str, str], tuple[Decimal, Decimal]]):
    for metric, section in SECTIONS.items():
        if metric == "month_over_month":
            continue
        (bold,) = re.findall(r"\*\*(-?\d[\d.,]*)", section.split("```sql")[0])
        value, _ = example[metric, PERIODS.get(metric, "7d")]
        assert value == Decimal(bold.replace(",", "")), metric
    assert example["total_spend", "7d"][1] == Decimal("0.25")
