"""Figures end with the last complete day, and unknown days are neither zero nor part of an average."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest

from finora_pipeline.dashboard.known_days import DaySet
from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.reading import connect as connect_reader
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.publish import publish
from tests.dashboard.served import Node, Served, dashboard
from tests.dashboard.test_figures import note, tiles, value
from tests.warehouse.landing import bucket, cost_day, cost_row, land, load, page_of

# The first of a month, a quarter of an hour after its begin.
TODAY = date(2025, 10, 1)
NOW = datetime(2025, 10, 1, 0, 15, tzinfo=UTC)
YESTERDAY = TODAY - timedelta(1)
MODEL = "gpt-5.5-2026-04-23"
TILES = {
    "Total spend": "total_spend",
    "Average daily cost": "average_daily_cost",
    "Cost per 1k tokens": "cost_per_1k_tokens",
    "Tokens in": "input_tokens",
    "Tokens out": "output_tokens",
    "Top model share": "top_model_share",
}
# The figures of user_metrics that have a change, without credits, of which there are none.
PUBLISHED = (
    *TILES.values(),
    *("charges", "tokens", "requests", "tokens_per_hour", "cost_per_request", "provider_share"),
)


@dataclass(frozen=True)
class History:
    """The days that were read of a user, and the fetch time of the last ones."""

    days: Sequence[date]
    fetched_at: datetime
    plan: str = "enterprise"
    spends: bool = True

    def usd(self, day: date) -> Decimal:
        """About ten dollars a day, of which a quarter of an hour has passed today."""
        if not self.spends:
            return Decimal(0)
        whole = Decimal("9.87") + Decimal(day.day % 5) / 10
        return whole / 96 if day == TODAY else whole

    def total(self, days: Sequence[date]) -> Decimal:
        return sum((self.usd(day) for day in days if day in self.days), Decimal(0))


def day_range(first: date, last: date) -> list[date]:
    return [first + timedelta(n) for n in range((last - first).days + 1)]


MORNING = datetime.combine(TODAY, time(0, 10), UTC)
GAP = day_range(date(2025, 9, 10), date(2025, 9, 12))
OUTAGE_SINCE = date(2025, 9, 20)
USERS = {
    "steady": History(day_range(date(2025, 4, 1), TODAY), MORNING),
    # Yesterday was last read ten minutes before its end.
    "waiting": History(day_range(date(2025, 4, 1), YESTERDAY), MORNING - timedelta(minutes=20)),
    "trial": History(day_range(TODAY - timedelta(6), TODAY), MORNING, "trial"),
    "gap": History([day for day in day_range(date(2025, 7, 1), TODAY) if day not in GAP], MORNING),
    "outage": History(
        day_range(date(2025, 4, 1), OUTAGE_SINCE), datetime.combine(OUTAGE_SINCE, time(8), UTC)
    ),
    "quiet": History(day_range(date(2025, 4, 1), TODAY), MORNING, spends=False),
}


def land_history(warehouse: Warehouse, user_id: str, history: History) -> None:
    charged, used = [], []
    for day in history.days:
        usd = history.usd(day)
        row = cost_row(f'"{usd}"', f"{MODEL}, input")[:-1] + ',"quantity":1,"quantity_unit":"tokens"}'
        charged.append(cost_day([row] if usd else [], day))
        tokens = {"project_id": "proj_a", "model": MODEL, "input_tokens": int(usd * 10**6),
                  "output_tokens": int(usd * 10**5), "num_model_requests": 9}  # fmt: skip
        used.append(bucket([tokens] if usd else [], day))
    land(warehouse, page_of(*charged), user_id=user_id, fetched_at=history.fetched_at)
    land(
        warehouse,
        page_of(*used),
        endpoint=ENDPOINTS["completions"],
        user_id=user_id,
        fetched_at=history.fetched_at,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The dashboard at 00:15 UTC on the first of a month."""
    home = tmp_path_factory.mktemp("known-days") / "home"
    warehouse = Warehouse(home)
    for user_id, history in USERS.items():
        land_history(warehouse, user_id, history)
    load(warehouse)
    load(warehouse, "completions")
    refresh_metrics(warehouse, TODAY)
    publish(warehouse, list, TODAY)
    with dashboard(Settings.from_environment({"FINORA_HOME": str(home)}), now=lambda: NOW) as served:
        for user_id, history in USERS.items():
            served.accounts.users.add(user_id, history.plan)
        yield served


def figures(served: Served, user_id: str, metric: str, column: str = "value") -> dict[str, Decimal | None]:
    """A metric's column of user_metrics by period."""
    with connect_reader(served.settings.published_database) as connection:
        return dict(
            connection.execute(
                f"SELECT period, {column} FROM user_metrics WHERE user_id = ? AND metric = ?",
                [user_id, metric],
            ).fetchall()
        )


def notes(page: Node) -> list[str]:
    """The notes between the heading and the tiles."""
    return [one.text for one in page.all("p", class_="note")]


def shown_change(tile: Node) -> Decimal | None:
    """The change that a tile shows, in percent or points; the growth is a figure itself."""
    is_growth = tile.one("h2").text == "Month over month"
    text = tile.one("p", class_="value" if is_growth else "change").text
    found = re.match(r"([+−]?)([\d,.]+)(%| points)", text)
    if found is None:
        assert text.startswith("–")
        return None
    number = Decimal(found[2].replace(",", ""))
    return -number if found[1] == "−" else number


@pytest.mark.parametrize("user_id", ["steady", "waiting"])
def test_the_first_minutes_of_a_month_are_compared_with_nothing(user_id: str, served: Served) -> None:
    for period in ("7d", "30d", "90d", "month"):
        shown = tiles(served.page(f"/users/{user_id}/overview?period={period}"))
        changes = {label: shown_change(tile) for label, tile in shown.items()}
        assert {label: change for label, change in changes.items() if change is None or change < -20} == {}
        for metric in PUBLISHED:
            change = figures(served, user_id, metric, "change")[period]
            assert change is not None
            assert change > Decimal("-0.2"), metric


def test_the_month_on_its_first_day_is_the_one_that_ended(served: Served) -> None:
    page = served.page("/users/steady/overview?period=month")
    today = "Today so far, not part of these figures: $0.10 as of Oct 1, 2025, 00:10 UTC"
    assert notes(page)[0] == f"Sep 1–30, 2025 (UTC days), compared with Aug 1–30, 2025 · {today}"
    assert page.one("nav", class_="periods").all("a")[-1].text == "September"
    shown = tiles(page)
    september = USERS["steady"].total(day_range(date(2025, 9, 1), date(2025, 9, 30)))
    assert value(shown["Total spend"]) == september == figures(served, "steady", "total_spend")["month"]
    assert shown["Total spend"].one("p", class_="change").text.endswith("vs Aug 1–30, 2025")
    assert note(shown["Month over month"]) == "Sep 1–30 vs Aug 1–30"


def test_a_day_that_has_not_ended_in_the_fetch_is_no_part_of_the_figures(served: Served) -> None:
    history = USERS["waiting"]
    page = served.page("/users/waiting/overview?period=7d")
    assert notes(page)[:2] == [
        "Sep 23–29, 2025 (UTC days), compared with Sep 16–22, 2025 · Today is not known yet",
        "Figures end with Sep 29, 2025. Later days have not been fetched completely.",
    ]
    week = day_range(date(2025, 9, 23), date(2025, 9, 29))
    assert value(tiles(page)["Total spend"]) == history.total(week)
    assert figures(served, "waiting", "total_spend", "through_date")["7d"] == date(2025, 9, 29)


def test_after_an_outage_figures_end_with_the_last_complete_day(served: Served) -> None:
    history, through = USERS["outage"], OUTAGE_SINCE - timedelta(1)
    for period, days in (("7d", 7), ("30d", 30), ("month", 19)):
        page = served.page(f"/users/outage/overview?period={period}")
        span = day_range(through - timedelta(days - 1), through)
        assert notes(page)[0].endswith(" · Today is not known yet")
        assert notes(page)[1] == "Figures end with Sep 19, 2025. Later days have not been fetched completely."
        shown = tiles(page)
        assert value(shown["Total spend"]) == history.total(span)
        assert note(shown["Average daily cost"]) == f"average of {days} days"
        assert page.all("rect", class_="unknown") == []
        assert figures(served, "outage", "total_spend")[period] == history.total(span)
    answer = served.get("/users/outage/overview?from=2025-09-20&to=2025-09-30")
    assert answer.status_code == 400
    assert "The last complete day is Sep 19, 2025." in answer.text


def test_a_trial_has_the_same_average_over_all_periods(served: Served) -> None:
    # The plan's seven days count today, which is not complete, and nothing is known of those before.
    days = day_range(TODAY - timedelta(6), YESTERDAY)
    average = figures(served, "trial", "average_daily_cost")
    for period in ("7d", "30d", "90d"):
        shown = tiles(served.page(f"/users/trial/overview?period={period}"))
        found = value(shown["Average daily cost"])
        assert found is not None
        assert found == average[period]
        assert shown["Total spend"].one("p", class_="change").text.startswith("–")
        assert abs(found - USERS["trial"].total(days) / 6) < Decimal("1e-18")
        assert note(shown["Average daily cost"]) == "average of 6 days"
    assert figures(served, "trial", "average_daily_cost", "known_days") == {
        "7d": 6, "30d": 6, "90d": 6, "month": 6,
    }  # fmt: skip


def test_unknown_days_are_hatched_and_not_zero(served: Served) -> None:
    history = USERS["gap"]
    page = served.page("/users/gap/overview?period=30d")
    shown, days = tiles(page), day_range(date(2025, 9, 1), YESTERDAY)
    assert value(shown["Total spend"]) == history.total(days)
    assert note(shown["Total spend"]) == "27 of 30 days known"
    found = value(shown["Average daily cost"])
    assert found is not None
    assert abs(found - history.total(days) / 27) < Decimal("1e-18")
    assert note(shown["Average daily cost"]) == "average of 27 known days; 3 unknown"
    assert note(shown["Tokens in"]) == "usage of 3 days unknown"
    # Sums cannot be compared, averages can.
    assert shown_change(shown["Total spend"]) is None
    assert shown_change(shown["Average daily cost"]) is not None

    chart = page.one("section", class_="chart")
    bars = chart.all("g", class_="bar")
    hatched = [bar.attributes["data-tip"] for bar in bars if bar.all("rect", class_="unknown")]
    assert hatched == [f"{day:%a}, Sep {day.day}, 2025: unknown" for day in GAP]
    rows = {row.one("th").text: row.all("td") for row in chart.one("table").one("tbody").all("tr")}
    dashed = [day for day, cells in rows.items() if all(cell.text == "–" for cell in cells)]
    assert dashed == [day.isoformat() for day in GAP]
    assert not any(cell.text == "$0.00" for cells in rows.values() for cell in cells)
    assert figures(served, "gap", "average_daily_cost")["30d"] == found
    assert [item.text for item in chart.one("ul", class_="legend").all("li")] == [MODEL, "unknown"]

    only = served.page(f"/users/gap/overview?from={GAP[0]}&to={GAP[-1]}")
    assert value(tiles(only)["Total spend"]) is None
    empty = [one.text for one in only.all("p", class_="empty")]
    assert empty == ["No day of this period is known"] * 5


def test_weeks_known_in_part_say_so(served: Served) -> None:
    page = served.page("/users/gap/overview?from=2025-05-01")
    chart = page.one("section", class_="chart")
    tips = [bar.attributes["data-tip"] or "" for bar in chart.all("g", class_="bar")]
    # The gap from a Wednesday to a Friday; July 1 was a Tuesday.
    assert [tip.partition(": ")[0] for tip in tips if "days known" in tip] == [
        "from Jun 30, 2025 (6 of 7 days known)",
        "from Sep 8, 2025 (4 of 7 days known)",
    ]
    assert [tip for tip in tips if tip.endswith(": unknown")] == [
        f"from {day:%b} {day.day}, 2025: unknown"
        for day in (date(2025, 4, 28) + timedelta(7 * n) for n in range(9))
    ]


def test_known_days_without_spend_are_zeros(served: Served) -> None:
    page = served.page("/users/quiet/overview?period=30d")
    shown = tiles(page)
    assert "sample" not in page.text
    for label in ("Total spend", "Average daily cost"):
        assert shown[label].one("p", class_="value").text == "$0.00"
    assert note(shown["Top model share"]) == "No spend in this period"
    assert [one.text for one in page.all("p", class_="empty")] == ["No spend in this period"] * 5
    assert note(shown["Month over month"]) == "No spend on Aug 1–30"
    assert shown["Total spend"].one("p", class_="change").text == "– Zero in the previous period"


@pytest.mark.parametrize("user_id", ["steady", "waiting", "gap", "outage", "quiet"])
@pytest.mark.parametrize("period", ["7d", "30d", "90d", "month"])
def test_tiles_of_all_histories_equal_user_metrics(user_id: str, period: str, served: Served) -> None:
    shown = tiles(served.page(f"/users/{user_id}/overview?period={period}"))
    for label, metric in TILES.items():
        assert value(shown[label]) == figures(served, user_id, metric)[period], metric
    assert value(shown["Month over month"]) == figures(served, user_id, "month_over_month")["month"]


def test_days_of_a_set_are_counted_between_its_ends_and_without_its_gaps() -> None:
    june = [date(2025, 6, number) for number in range(1, 31)]
    found = {"first_day": june[0], "last_day": june[-1], "dates": june[:9] + june[12:]}
    days = DaySet.of(found)
    assert days.gaps == set(june[9:12])
    assert days.number(date(2025, 5, 1), date(2025, 7, 31)) == 27
    assert days.number(june[8], june[10]) == 1
    assert days.number(date(2025, 7, 1), date(2025, 7, 31)) == 0
    assert DaySet.of(found | {"dates": None}).number(june[8], june[10]) == 3
    assert DaySet.of(dict.fromkeys(found)).number(june[0], june[-1]) == 0
