"""Every figure on the pages equals the simulated OpenAI's truth exactly."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from typing import NamedTuple
from urllib.parse import urlencode

import duckdb
import pytest

from finora_pipeline.dashboard import snapshots as copies_module
from finora_pipeline.dashboard.figures import formats
from finora_pipeline.dashboard.figures.export import export_rows
from finora_pipeline.dashboard.figures.overview import compute_overview
from finora_pipeline.dashboard.figures.periods import view_of
from finora_pipeline.dashboard.figures.tiles import Tile
from finora_pipeline.dashboard.known_days import KnownDays
from finora_pipeline.dashboard.snapshots import Snapshots
from finora_pipeline.openai_admin.line_items import parse_line_item
from finora_pipeline.openai_simulator.catalog import SERVICES
from finora_pipeline.openai_simulator.organization import Truth
from finora_pipeline.plans import PLANS
from finora_pipeline.reading import connect as connect_reader
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.publish import publish
from tests.conftest import Installation
from tests.dashboard.served import DAYS_OF, Node, Served, dashboard, read_html
from tests.warehouse.landing import cost_day, cost_row, land, load, page_of

UNIT = Decimal("1e-18")
NUMBER_OF = {user_id: number for number, user_id in enumerate(DAYS_OF)}
METRICS = {
    "Total spend": "total_spend",
    "Average daily cost": "average_daily_cost",
    "Cost per 1k tokens": "cost_per_1k_tokens",
    "Tokens in": "input_tokens",
    "Tokens out": "output_tokens",
    "Top model share": "top_model_share",
}
Row = tuple[date, str, str]


class Published(NamedTuple):
    """A figure of user_metrics."""

    value: Decimal | None
    change: Decimal | None
    detail: str | None
    covered_share: Decimal | None


@dataclass(frozen=True)
class Days:
    """A period of a request, and the days that must be shown."""

    query: str
    first: date
    last: date

    @property
    def number(self) -> int:
        return (self.last - self.first).days + 1


def spans(today: date) -> dict[str, Days]:
    """Return the tested periods up to yesterday, the last complete day: named ones, chosen days, one day."""
    through = today - timedelta(1)
    lengths = {name: Days(f"period={name}", through - timedelta(n - 1), through) for name, n in
               (("7d", 7), ("30d", 30))}  # fmt: skip
    some = Days("", today - timedelta(53), today - timedelta(17))
    asked = urlencode({"period": "custom", "from": some.first, "to": some.last})
    ended = through.replace(day=1) - timedelta(1)
    return lengths | {
        # The plan keeps 90 days with today.
        "90d": Days("period=90d", today - timedelta(89), through),
        "month": Days("period=month", through.replace(day=1), through),
        "custom": Days(asked, some.first, some.last),
        "whole month": Days(f"from={ended.replace(day=1)}&to={ended}", ended.replace(day=1), ended),
        "yesterday": Days(f"from={through}&to={today}", through, through),
    }


def truth_of(installation: Installation, user_id: str, days: Days) -> dict[Row, Decimal]:
    """Return USD by day, project and model (the line item where it names none)."""
    number = NUMBER_OF[user_id]
    organization = installation.openai.organizations[number]
    truth = organization.truth(days.first, days.last + timedelta(1), installation.openai.simulator.now)
    found: dict[Row, Decimal] = defaultdict(Decimal)
    for (day, project, text), amount in truth.by_row.items():
        found[day, project, parse_line_item(text).model or text] += amount
    return found


NOT_BY_TOKEN = {
    line.text
    for service in SERVICES
    for line in service.lines
    if line.unit != "tokens" or line.measure.startswith("_")
}


def unit_cost(truth: Truth, project: str | None = None) -> Decimal:
    """Return USD per 1,000 tokens, of a project if given: charges for tokens by those that are not free."""
    charged = sum(
        amount
        for (_, of_project, text), amount in truth.by_row.items()
        if text not in NOT_BY_TOKEN and project in (None, of_project)
    )
    tokens = sum(
        used.get("input_tokens", 0) + used.get("output_tokens", 0)
        for (_, service, of_project, *_), used in truth.usage.items()
        if service != "moderations" and project in (None, of_project)
    )
    with localcontext(prec=80):
        return (charged * 1000 / tokens).quantize(UNIT, ROUND_DOWN)


def added(rows: dict[Row, Decimal], by: Callable[[Row], str]) -> dict[str, Decimal]:
    """Return the sums of rows by a part of their keys."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for row, amount in rows.items():
        sums[by(row)] += amount
    return dict(sums)


def rounded(amount: Decimal) -> str:
    """Format an amount of a cent and more as the tables do."""
    return f"${amount.quantize(Decimal('0.01'), ROUND_HALF_UP):,}"


def tiles(page: Node) -> dict[str, Node]:
    return {tile.one("h2").text: tile for tile in page.all("div", class_="tile")}


def value(tile: Node) -> Decimal | None:
    text = tile.one("p", class_="value").title
    return Decimal(text) if text else None


def note(tile: Node) -> str:
    return tile.one("p", class_="note").text


def breakdown(page: Node, title: str) -> dict[str, Decimal]:
    """Return names and exact amounts of a breakdown, with the rows behind `Show more`."""
    (card,) = [card for card in page.all("section", class_="card") if card.one("h2").text == title]
    rows = [row for table in card.all("table") for row in table.one("tbody").all("tr")]
    found = [(row.one("th").text, Decimal(row.all("td")[0].title)) for row in rows]
    assert len(dict(found)) == len(found)
    # Usage without costs has a row, too.
    return {name: amount for name, amount in found if amount}


def csv_rows(text: str) -> dict[Row, Decimal]:
    rows = list(csv.DictReader(io.StringIO(text)))
    found = {
        (date.fromisoformat(row["date"]), row["project_id"], row["model"]): Decimal(row["amount_usd"])
        for row in rows
    }
    assert len(found) == len(rows)
    return found


@pytest.mark.parametrize("name", spans(date(2026, 1, 1)))
def test_overview_equals_the_simulators_truth(name: str, installation: Installation, local: Served) -> None:
    today = installation.today
    days = spans(today)[name]
    truth = truth_of(installation, "acme", days)
    total = sum(truth.values(), Decimal(0))
    page = local.page(f"/users/acme/overview?{days.query}")
    shown = tiles(page)

    assert value(shown["Total spend"]) == total
    average = Decimal(Fraction(total).numerator) / Decimal(Fraction(total).denominator * days.number)
    assert value(shown["Average daily cost"]) == average.quantize(UNIT, ROUND_DOWN)
    by_model = added(truth, lambda row: row[2])
    top = max(by_model, key=lambda model: by_model[model])
    assert note(shown["Top model share"]) == top
    used = installation.openai.organizations[0].truth(
        days.first, days.last + timedelta(1), installation.openai.simulator.now
    )
    for label, measure in (("Tokens in", "input_tokens"), ("Tokens out", "output_tokens")):
        assert value(shown[label]) == sum(use.get(measure, 0) for use in used.usage.values())
    assert value(shown["Cost per 1k tokens"]) == unit_cost(used)

    names = {project.id: project.name for project in installation.openai.organizations[0].projects}
    members = {member.id: member.name for member in installation.openai.organizations[0].members}
    keys = {key.id: key.name for key in installation.openai.organizations[0].api_keys}
    assert breakdown(page, "Cost by model") == by_model
    assert breakdown(page, "Cost by project") == added(truth, lambda row: names[row[1]])
    by_member: dict[str, Decimal] = defaultdict(Decimal)
    for (_, member), amount in used.by_member.items():
        by_member[members[member] if member else "Unattributed"] += amount
    assert breakdown(page, "Cost by member") == by_member
    by_key: dict[str, Decimal] = defaultdict(Decimal)
    for (_, key), amount in used.by_key.items():
        by_key[keys[key]] += amount
    assert breakdown(page, "Cost by API key") == by_key
    for title in ("model", "project", "member", "API key"):
        assert sum(breakdown(page, f"Cost by {title}").values()) == total

    assert csv_rows(local.get(f"/users/acme/overview.csv?{days.query}").text) == truth
    assert_chart(page, truth, days)


def assert_chart(page: Node, truth: dict[Row, Decimal], days: Days) -> None:
    """Assert each day's total and its models' amounts, the smaller ones together."""
    table = page.one("section", class_="chart").one("details").one("table")
    names = [cell.text for cell in table.one("thead").all("th")]
    rows = [[row.one("th").text, *(td.text for td in row.all("td"))] for row in table.one("tbody").all("tr")]
    assert [row[0] for row in rows] == [(days.first + timedelta(n)).isoformat() for n in range(days.number)]
    by_model = added(truth, lambda row: row[2])
    named = {name for name in names[2:] if name in by_model}
    assert named == set(sorted(by_model, key=lambda model: -by_model[model])[: len(named)])
    for row in rows:
        of_day = {key: amount for key, amount in truth.items() if key[0].isoformat() == row[0]}
        expected = added(of_day, lambda key: key[2] if key[2] in named else "Other")
        assert row[1] == rounded(sum(of_day.values(), Decimal(0)))
        for name, text in zip(names[2:], row[2:], strict=True):
            amount = expected.get(name, Decimal(0))
            if not amount or amount >= Decimal("0.01"):
                assert text == rounded(amount)
            else:
                assert abs(Decimal(text.removeprefix("$")) / amount - 1) < Decimal("0.01")


@pytest.mark.parametrize("period", ["7d", "30d", "90d", "month"])
def test_tiles_agree_with_the_published_metrics(
    period: str, installation: Installation, local: Served
) -> None:
    published = metrics_of(installation, "acme", period)
    shown = tiles(local.page(f"/users/acme/overview?period={period}"))
    assert_tiles(shown, published)
    ((growth,),) = installation.sql(
        "SELECT value FROM user_metrics WHERE user_id = 'acme' AND metric = 'month_over_month'"
    )
    assert growth is not None
    assert value(shown["Month over month"]) == growth


def metrics_of(installation: Installation, user_id: str, period: str) -> dict[str, Published]:
    """Return value, change, detail and covered share of each metric of a period."""
    return {
        metric: Published(*rest)
        for metric, *rest in installation.sql(
            "SELECT metric, value, change, detail, covered_share FROM user_metrics "
            "WHERE user_id = ? AND period = ?",
            user_id,
            period,
        )
    }


def assert_tiles(shown: dict[str, Node], published: dict[str, Published]) -> None:
    """Assert that each tile has the published value to the last digit, its change and its coverage."""
    for label, metric in METRICS.items():
        assert value(shown[label]) == published[metric].value, metric
        change = change_text(published[metric].change, in_points=metric == "top_model_share")
        assert shown[label].one("p", class_="change").text.startswith(change)
    covered = change_text(published["cost_per_1k_tokens"].covered_share).lstrip("+")
    assert note(shown["Cost per 1k tokens"]) == f"based on {covered} of charges (billed by token)"
    assert note(shown["Top model share"]) == published["top_model_share"].detail


def change_text(share: Decimal | None, *, in_points: bool = False) -> str:
    """Format a change as a tile does."""
    if share is None:
        return "–"
    number = (share * 100).quantize(Decimal("0.1"), ROUND_HALF_UP)
    return (
        f"{'−' if number < 0 else '+' if number > 0 else ''}{abs(number):,}{' points' if in_points else '%'}"
    )


def test_a_model_is_shown_alone(installation: Installation, local: Served) -> None:
    days = spans(installation.today)["30d"]
    truth = truth_of(installation, "acme", days)
    model = sorted(added(truth, lambda row: row[2]))[3]
    mine = {row: amount for row, amount in truth.items() if row[2] == model}
    query = urlencode({"period": "30d", "model": model})
    page = local.page(f"/users/acme/overview?{query}")
    assert value(tiles(page)["Total spend"]) == sum(mine.values())
    assert breakdown(page, "Cost by model") == {model: sum(mine.values())}
    for title in ("project", "member", "API key"):
        assert sum(breakdown(page, f"Cost by {title}").values()) == sum(mine.values())
    assert csv_rows(local.get(f"/users/acme/overview.csv?{query}").text) == mine
    assert_chart(page, mine, days)


def test_a_single_project_shows_its_costs_and_tokens(installation: Installation, local: Served) -> None:
    days = spans(installation.today)["30d"]
    truth = truth_of(installation, "acme", days)
    project = installation.openai.organizations[0].projects[1]
    mine = {row: amount for row, amount in truth.items() if row[1] == project.id}
    query = urlencode({"period": "30d", "project": project.id})
    page = local.page(f"/users/acme/overview?{query}")
    shown = tiles(page)
    assert value(shown["Total spend"]) == sum(mine.values())
    used = installation.openai.organizations[0].truth(
        days.first, days.last + timedelta(1), installation.openai.simulator.now
    )
    for label, measure in (("Tokens in", "input_tokens"), ("Tokens out", "output_tokens")):
        tokens = [use.get(measure, 0) for key, use in used.usage.items() if key[2] == project.id]
        assert value(shown[label]) == sum(tokens) > 0
    assert value(shown["Cost per 1k tokens"]) == unit_cost(used, project.id)
    assert page.one("p", class_="filters").text.startswith(f"Project: {project.name} ✕")
    assert breakdown(page, "Cost by project") == {project.name: sum(mine.values())}
    assert breakdown(page, "Cost by model") == added(mine, lambda row: row[2])
    assert csv_rows(local.get(f"/users/acme/overview.csv?{query}").text) == mine
    model = min(row[2] for row in mine)
    both = local.page(f"/users/acme/overview?{query}&{urlencode({'model': model})}")
    of_model = sum(mine[row] for row in mine if row[2] == model)
    assert value(tiles(both)["Total spend"]) == of_model
    # The model's page has the same days and project.
    alone = local.page(f"/users/acme/model?{query}&{urlencode({'model': model})}")
    total = alone.one("tfoot").all("td")[0]
    assert Decimal(total.title) == of_model


def test_a_models_page_splits_costs_by_token_type(installation: Installation, local: Served) -> None:
    days = spans(installation.today)["30d"]
    number = NUMBER_OF["bolt"]
    organization = installation.openai.organizations[number]
    truth = organization.truth(days.first, days.last + timedelta(1), installation.openai.simulator.now)
    items = {text: parse_line_item(text) for text in truth.by_line_item}
    model = next(item.model for item in items.values() if item.direction == "cached_input")
    assert model
    expected: dict[str, Decimal] = defaultdict(Decimal)
    for text, amount in truth.by_line_item.items():
        if items[text].model == model:
            expected[(items[text].direction or "not token-based").replace("_", " ")] += amount
    page = local.page(f"/users/bolt/model?{urlencode({'model': model, 'period': '30d'})}")
    table = page.all("table", class_="figures")[0]
    rows = {row.one("th").text: row.all("td") for row in table.one("tbody").all("tr")}
    assert {name: Decimal(cells[0].title) for name, cells in rows.items()} == expected
    assert Decimal(table.one("tfoot").all("td")[0].title) == sum(expected.values())
    for name, cells in rows.items():
        per_million = expected[name] * 1_000_000 / Decimal(cells[1].title)
        assert abs(Decimal(cells[2].text.removeprefix("$")) / per_million - 1) < Decimal("0.001")


@pytest.mark.parametrize(("back", "bucket"), [(109, "week"), (2000, "month")])
def test_long_periods_are_drawn_by_week_and_month(
    back: int, bucket: str, installation: Installation, local: Served
) -> None:
    today = installation.today
    # The refresh loaded the whole history, which a plan with unlimited retention shows.
    installation.accounts.users.set_plan("bolt", "enterprise")
    first = max(today - timedelta(back), date(2020, 6, 1))
    truth = truth_of(installation, "bolt", Days("", first, today - timedelta(1)))
    page = local.page(f"/users/bolt/overview?from={first}")
    table = page.one("section", class_="chart").one("details").one("table")
    rows = {row.one("th").text: row.all("td")[0].text for row in table.one("tbody").all("tr")}

    def start(day: date) -> date:
        return day - timedelta(day.weekday()) if bucket == "week" else day.replace(day=1)

    sums = added(truth, lambda row: start(row[0]).isoformat())
    days = [first + timedelta(n) for n in range((today - first).days)]
    assert list(rows) == list(dict.fromkeys(start(day).isoformat() for day in days))
    # The refresh loaded 90 days: bars without any of them are unknown.
    loaded = start(today - timedelta(89)).isoformat()
    assert rows == {at: rounded(sums.get(at, Decimal(0))) if at >= loaded else "–" for at in rows}
    hatched = page.one("svg", class_="bars").all("rect", class_="unknown")
    assert len(hatched) == len([at for at in rows if at < loaded]) > 0
    assert value(tiles(page)["Total spend"]) == sum(truth.values())


def test_a_plan_shows_its_retention(installation: Installation, local: Served) -> None:
    today = installation.today
    # The plan keeps seven days with today, which is not complete.
    week = Days("", today - timedelta(6), today - timedelta(1))
    page = local.page("/users/tiny/overview?period=30d")
    assert value(tiles(page)["Total spend"]) == sum(truth_of(installation, "tiny", week).values())
    notes = [one.text for one in page.all("p", class_="note")]
    assert (
        f"The trial plan keeps 7 days, today included: days before {formats.day(week.first)} are not shown."
        in notes
    )
    custom = local.page(f"/users/tiny/overview?from={today - timedelta(20)}&to={today - timedelta(2)}")
    kept = Days("", week.first, today - timedelta(2))
    assert value(tiles(custom)["Total spend"]) == sum(truth_of(installation, "tiny", kept).values())


def test_a_trial_has_no_csv(local: Served) -> None:
    answer = local.get("/users/tiny/overview.csv?period=7d")
    assert answer.status_code == 403
    assert "The trial plan has no CSV exports." in answer.text
    assert "Download CSV" not in local.get("/users/tiny/overview").text


def test_days_without_costs_say_so(installation: Installation, local: Served) -> None:
    today = installation.today
    query = f"from={today - timedelta(85)}&to={today - timedelta(80)}"
    page = local.page(f"/users/acme/overview?{query}")
    shown = tiles(page)
    assert value(shown["Total spend"]) == 0
    assert shown["Total spend"].one("p", class_="value").text == "$0.00"
    for label, reason in (
        ("Cost per 1k tokens", "No spend with known token counts"),
        ("Top model share", "No spend in this period"),
    ):
        assert shown[label].one("p", class_="value").text == "–"
        assert value(shown[label]) is None
        assert note(shown[label]) == reason
    empty = [one.text for one in page.all("p", class_="empty")]
    assert empty == ["No spend in this period"] * 5
    assert csv_rows(local.get(f"/users/acme/overview.csv?{query}").text) == {}
    tiny = tiles(local.page("/users/tiny/overview"))["Month over month"]
    assert note(tiny).startswith("Needs every day of ")


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("period=1y", "Unknown period “1y”. Use 7d, 30d, 90d, month, or from and to."),
        ("from=yesterday", "Invalid date “yesterday”. Use YYYY-MM-DD."),
        ("from=2026-02-30", "Invalid date “2026-02-30”. Use YYYY-MM-DD."),
        (
            "period=custom&from={today}&to={yesterday}",
            "The first day ({today}) is after the last day ({yesterday}).",
        ),
        ("from={today}&to={tomorrow}", "{tomorrow} is in the future; today is {today} in UTC."),
        ("from={today}", "These days are not complete. The last complete day is {yesterday}."),
        ("from=2020-06-01&to=2020-06-02", "The growth plan keeps costs since {kept}."),
        ("period=<b>7d</b>", "Unknown period “<b>7d</b>”. Use 7d, 30d, 90d, month, or from and to."),
    ],
)
@pytest.mark.parametrize("page", ["overview", "overview.csv", "model"])
def test_an_invalid_period_is_refused(
    page: str, query: str, sentence: str, installation: Installation, local: Served
) -> None:
    today = installation.today
    words = {"today": today, "yesterday": today - timedelta(1), "tomorrow": today + timedelta(1),
             "kept": today - timedelta(89)}  # fmt: skip
    answer = local.get(f"/users/acme/{page}?{query.format(**words)}")
    assert answer.status_code == 400
    card = read_html(answer.text).one("section", class_="card")
    assert card.one("h1").text == "We can’t show this period"
    assert card.all("p")[0].text == sentence.format(**{name: formats.day(day) for name, day in words.items()})


EXTREME = Decimal("6789012345.123456789012345678")
# Python's default context would round a sum of so many digits.
TWICE = Decimal("13578024690.246913578024691356")
SMALL = Decimal("0.000001")
MODELS = 3000


def clear_names(published: duckdb.DuckDBPyConnection, today: date) -> None:
    """Load a user whose projects, keys and members have empty names."""
    of = "'nameless' AS user_id, 'openai' AS provider"
    cost = f"{of}, ?::DATE AS date, 'gpt-4o' AS model, false AS is_sample"
    listed = f"{of}, true AS is_listed, now() AS first_seen_at, now() AS last_seen_at"
    for table, columns in (
        ("daily_model_costs", "3 AS amount_usd, 3 AS token_priced_usd"),
        ("daily_member_costs", "unnest(['user_1', 'user_2', NULL]) AS member_id"),
        ("daily_key_costs", "unnest(['key_1', 'key_2', NULL]) AS api_key_id"),
    ):
        if table != "daily_model_costs":
            columns += ", 'proj_1' AS project_id, 1 AS amount_usd, 'reported' AS method"
        published.execute(f"INSERT INTO {table} BY NAME SELECT {cost}, {columns}", [today])
    for table, columns in (
        ("projects", "'proj_1' AS project_id, '' AS name"),
        ("members", "'user_1' AS member_id, ' ' AS name, 'ada@acme.example' AS email"),
        ("members", "'user_2' AS member_id, '' AS name, '' AS email"),
        ("api_keys", "unnest(['key_1', 'key_2']) AS api_key_id, unnest(['', 'nightly']) AS name"),
    ):
        published.execute(f"INSERT INTO {table} BY NAME SELECT {listed}, {columns}")


def test_an_empty_name_is_replaced_by_its_id(extremes: Served) -> None:
    page = extremes.page("/users/nameless/overview")
    assert set(breakdown(page, "Cost by project")) == {"proj_1"}
    assert set(breakdown(page, "Cost by member")) == {"ada@acme.example", "user_2", "Unattributed"}
    assert set(breakdown(page, "Cost by API key")) == {"key_1", "nightly", "Unattributed"}


def known_page(today: date, charges: dict[int, list[tuple[str, str]]]) -> str:
    """Return a page of the 90 days up to yesterday, with charges by number of days ago."""
    return page_of(
        *(
            cost_day([cost_row(f'"{usd}"', item) for usd, item in charges.get(n, [])], today - timedelta(n))
            for n in range(90, 0, -1)
        )
    )


@pytest.fixture(scope="module")
def extremes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A user whose last 30 days cost more than a float can hold, the days before almost nothing."""
    home = tmp_path_factory.mktemp("extremes") / "home"
    today = datetime.now(UTC).date()
    amounts = {1: EXTREME, 2: EXTREME, 41: SMALL, 71: UNIT}
    warehouse = Warehouse(home)
    land(warehouse, known_page(today, {n: [(f"{usd:f}", "gpt-4o, input")] for n, usd in amounts.items()}))
    # A second, with months of different length: a dollar a day, two in March.
    quarter = [date(2026, 1, 1) + timedelta(n) for n in range(90)]
    spent = [cost_day([cost_row('"2.0"' if day.month == 3 else '"1.0"')], day) for day in quarter]
    land(warehouse, page_of(*spent), user_id="quarter")
    # A third with credits above its charges; a fourth with credits only.
    usage, credit = "gpt-5.5-2026-04-23, input", "promotional credit"
    days = [[("0.25", usage)], [("2.00", usage), ("-5.00", credit)], [("1.00", usage)]]
    for user_id, charges in (("credited", days), ("given", [[("-3.00", credit)]])):
        land(warehouse, known_page(today, dict(enumerate(charges, 1))), user_id=user_id)
    load(warehouse)
    refresh_metrics(warehouse, today)
    publish(warehouse, list, today)
    settings = Settings.from_environment({"FINORA_HOME": str(home)})
    # Loading so many takes a minute, so they are inserted: model n costs a dollar and n units a day.
    with duckdb.connect(settings.published_database) as published:
        published.execute(
            "INSERT INTO daily_model_costs BY NAME "
            "SELECT 'many' AS user_id, 'openai' AS provider, ?::DATE - 1 - day::INT AS date, "
            "printf('ft:gpt-4.1-mini-2025-04-14:acme-corp:support-%04d:BxYz', n) AS model, "
            "1 + n * 1e-18::DECIMAL(38, 18) AS amount_usd, amount_usd AS charges_usd, "
            "amount_usd AS token_priced_usd, "
            "1 AS requests, 1000 AS input_tokens, 100 AS output_tokens, false AS is_sample "
            "FROM range(180) AS days(day), range(?) AS models(n)",
            [today, MODELS],
        )
        clear_names(published, today - timedelta(1))
        published.execute(
            "INSERT INTO pipeline.loaded_days BY NAME "
            "SELECT unnest(['many', 'nameless']) AS user_id, 'openai' AS provider, endpoint, "
            "?::DATE - day::INT AS date, now() AS first_fetched_at, now() AS fetched_at, 'made' AS raw_file "
            "FROM range(181) AS days(day), (VALUES ('costs'), ('completions')) AS endpoints(endpoint)",
            [today],
        )
    with dashboard(settings) as served:
        for user_id in ("acme", "many", "nameless", "credited", "given"):
            served.accounts.users.add(user_id, "growth")
        yield served


def test_eighteen_decimals_are_all_shown(extremes: Served) -> None:
    today = datetime.now(UTC).date()
    page = extremes.page("/users/acme/overview?period=30d")
    shown = tiles(page)
    assert value(shown["Total spend"]) == TWICE
    assert shown["Average daily cost"].one("p", class_="value").title == "452600823.008230452600823045"
    change = shown["Total spend"].one("p", class_="change").text
    # Changes have fifteen digits, as in user_metrics.
    assert change.startswith("+1,357,802,469,024,691,25")
    assert list(breakdown(page, "Cost by model").values()) == [TWICE]
    exported = csv_rows(extremes.get("/users/acme/overview.csv?period=90d").text)
    assert sorted(exported.values()) == [UNIT, SMALL, EXTREME, EXTREME]
    smallest = extremes.page(f"/users/acme/overview?from={today - timedelta(75)}&to={today - timedelta(65)}")
    assert tiles(smallest)["Total spend"].one("p", class_="value").text == "$0.000000000000000001"
    model = extremes.page("/users/acme/model?model=gpt-4o&period=90d")
    whole = model.all("table", class_="figures")[0].one("tfoot").all("td")[0].title
    assert whole == "13578024690.246914578024691357"


@pytest.mark.parametrize(("period", "days"), [("7d", 7), ("90d", 90)])
@pytest.mark.slow
def test_thousands_of_models_fit_and_add_up(period: str, days: int, extremes: Served) -> None:
    page = extremes.page(f"/users/many/overview?period={period}")
    shown = tiles(page)
    dearest = [days * (1 + n * UNIT) for n in reversed(range(MODELS))]
    total = sum(dearest, Decimal(0))
    assert value(shown["Total spend"]) == total
    assert shown["Total spend"].one("p", class_="change").text.startswith("0.0% vs ")
    assert value(shown["Top model share"]) == (dearest[0] / total).quantize(Decimal("1e-12"), ROUND_HALF_UP)
    assert note(shown["Top model share"]).endswith("support-2999:BxYz")
    assert value(shown["Tokens in"]) == days * MODELS * 1000
    by_model = breakdown(page, "Cost by model")
    assert list(by_model.values()) == [*dearest[:100], sum(dearest[100:])]
    assert list(by_model)[-1] == "2900 more"
    table = page.one("section", class_="chart").one("details").one("table")
    assert [cell.text[-17:] for cell in table.one("thead").all("th")[2:]] == [
        *(f"support-{MODELS - 1 - n}:BxYz" for n in range(6)), "Other",
    ]  # fmt: skip
    cells = [[cell.text for cell in row.all("td")] for row in table.one("tbody").all("tr")]
    assert cells == [["$3,000.00", *["$1.00"] * 6, "$2,994.00"]] * days


@pytest.mark.slow
def test_a_page_out_of_memory_is_built_again_alone_with_more(
    extremes: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "MEMORY_LIMIT", "11MB")
    users = ["many", "acme", "many", "acme"]
    with dashboard(extremes.settings) as narrow, ThreadPoolExecutor(len(users)) as readers:
        answers = list(readers.map(narrow.get, [f"/users/{user}/overview?period=90d" for user in users]))
    assert [answer.status_code for answer in answers] == [200] * len(users)
    total = value(tiles(read_html(answers[0].text))["Total spend"])
    assert total == 90 * sum(1 + n * UNIT for n in range(MODELS))


@pytest.mark.slow
def test_a_page_that_never_fits_asks_for_a_later_visit(
    extremes: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "MEMORY_LIMIT", "11MB")
    monkeypatch.setattr(copies_module, "ALONE_BYTES", 11_000_000)
    with dashboard(extremes.settings) as narrow:
        assert narrow.get("/users/acme/overview").status_code == 200
        answer = narrow.get("/users/many/overview?period=90d")
        assert answer.status_code == 503
        text = read_html(answer.text).one("section", class_="card").all("p")[0].text
        assert text == "Try again in a moment, or choose fewer days."
        assert narrow.get("/users/acme/overview").status_code == 200


def test_months_of_different_length_compare_their_own_days(extremes: Served) -> None:
    copies = Snapshots(extremes.settings.published_database)
    known = KnownDays(date(2026, 1, 1), date(2026, 3, 30), None)
    view = view_of({"period": "month"}, PLANS["growth"], date(2026, 3, 31), known)
    assert (view.previous_first, view.previous_last) == (date(2026, 2, 1), date(2026, 2, 28))
    with copies.of("quarter") as copy:
        shown: dict[str, Tile] = {tile.label: tile for tile in compute_overview(copy, view).tiles}
        exported = export_rows(copy, view)
    copies.close()
    # 60 dollars in 30 days, against 28 in 28.
    assert (shown["Total spend"].value, shown["Total spend"].change) == ("$60.00", "+114.3%")
    assert (shown["Average daily cost"].exact, shown["Average daily cost"].change) == ("2", "+100.0%")
    assert shown["Month over month"].value == "+114.3%"
    assert [row["amount_usd"] for row in exported] == ["2"] * 30


def test_a_credit_that_exceeds_the_spend_is_drawn_below_zero(extremes: Served) -> None:
    answer = extremes.get("/users/credited/overview?period=7d").text
    page = read_html(answer)
    shown = tiles(page)
    assert shown["Total spend"].one("p", class_="value").text == "−$1.75"
    assert note(shown["Total spend"]) == "$3.25 of charges less $5.00 of credits"
    assert value(shown["Average daily cost"]) == Decimal("-0.25")
    assert value(shown["Top model share"]) == 1
    assert note(shown["Top model share"]) == "gpt-5.5-2026-04-23"
    assert "No spend in this period" not in answer
    assert "Nothing was charged" not in answer
    with connect_reader(extremes.settings.published_database) as connection:
        published = connection.execute(
            "SELECT metric, value FROM user_metrics WHERE user_id = 'credited' AND period = '7d' "
            "AND metric IN ('charges', 'credits', 'total_spend')"
        ).fetchall()
    assert dict(published) == {
        "charges": Decimal("3.25"), "credits": Decimal(-5), "total_spend": Decimal("-1.75"),
    }  # fmt: skip
    costs = {"gpt-5.5-2026-04-23": Decimal("3.25"), "promotional credit": Decimal(-5)}
    assert breakdown(page, "Cost by model") == costs
    rows = page.all("table", class_="breakdown")[0].one("tbody").all("tr")
    # Shares are of the charges; a credit is none.
    assert [row.all("td")[1].text for row in rows] == ["100.0%", "0.0%"]
    chart = page.one("section", class_="chart")
    assert [step.text for step in chart.one("div", class_="scale").all("span")] == [
        "$3.00",
        "$0.00",
        "−$3.00",
    ]
    # The credit's bar hangs from zero, in the middle of 240, to the bottom.
    bars = chart.all("g", class_="bar")[-3:]
    drawn = [[(one.attributes["y"], one.attributes["height"]) for one in bar.all("rect")[1:]] for bar in bars]
    assert drawn == [[("80.00", "40.00")], [("120.00", "120.00")], [("110.00", "10.00")]]


def test_credits_without_charges_have_no_share(extremes: Served) -> None:
    answer = extremes.get("/users/given/overview?period=7d").text
    shown = tiles(read_html(answer))
    assert shown["Total spend"].one("p", class_="value").text == "−$3.00"
    assert note(shown["Total spend"]) == "$0.00 of charges less $3.00 of credits"
    assert note(shown["Top model share"]) == "Only credits in this period"
    assert "No spend in this period" not in answer
