"""The worked questions of docs/analysts.md, answered again from the simulator's truth in decimals."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import date, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb
import pytest

from finora_pipeline.openai_simulator.organization import SimulatedMember
from tests import tables_page
from tests.reading.analysts_world import (
    CORRECTION,
    CREDIT,
    DEARER,
    NEW_MODEL,
    TUNED,
    USERS,
    Charge,
    World,
    analysts_world,
    month_before,
)

TEXT = (Path(__file__).parents[2] / "docs" / "analysts.md").read_text()
QUESTIONS = re.findall(r"^### (\d+)\. (.*?)\n.*?^```sql\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
ZERO = Decimal(0)
Rows = list[tuple[Any, ...]]
# What the simulator's line items are, apart from those of models: model, token type, service, category.
SERVICES = {
    "text-embedding-3-small, input": ("text-embedding-3-small", "input", "embeddings"),
    "gpt-image-1 image, output": ("gpt-image-1", "output", "image"),
    "tts-1 speech synthesis": ("tts-1", None, "speech"),
    "whisper-1, audio": ("whisper-1", None, "transcription"),
    "assistants api | file search": (None, None, "storage"),
    "code interpreter": (None, None, "code_interpreter"),
    "web search tool calls": (None, None, "web_search"),
    CREDIT: (None, None, "other"),
    CORRECTION: (None, None, "other"),
}
CATEGORIES = {CREDIT: "credit", CORRECTION: "adjustment"}
FAMILIES = {
    "gpt-4o-mini-2024-07-18": "gpt-4o",
    "gpt-4o-2024-08-06": "gpt-4o",
    "gpt-4.1-2025-04-14": "gpt-4.1",
    "gpt-5-mini-2025-08-07": "gpt-5",
    "gpt-5-2025-08-07": "gpt-5",
    TUNED.name: "gpt-4o",
    "gpt-6-astra": "gpt-6-astra",
    "text-embedding-3-small": "text-embedding-3",
    "chat-latest": "chat",
}
# What OpenAI counts by project alone, and what no usage explains.
NOT_BY_MEMBER = ("assistants api | file search", "code interpreter")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with analysts_world(tmp_path_factory.mktemp("analysts") / "home") as made:
        yield made


def meaning(text: str) -> tuple[str | None, str | None, str]:
    """The model, token type and service of a line item."""
    if text in SERVICES:
        return SERVICES[text]
    model, token_type = text.removeprefix("priority | ").replace(" ,", ",").split(", ")
    return model, token_type.removesuffix("_tokens").replace(" ", "_"), "model_tokens"


def cost_model(charge: Charge) -> str:
    return meaning(charge.line.text)[0] or charge.line.text


def cut(amount: Decimal, by: int, per: int = 1) -> Decimal | None:
    """A ratio cut after the 18th decimal."""
    with localcontext(prec=80):
        return (amount * per / by).quantize(Decimal("1e-18"), ROUND_DOWN) if by else None


def share(part: Decimal, whole: Decimal) -> Decimal:
    with localcontext(prec=80):
        return (part / whole).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)


def sums(pairs: Iterable[tuple[Any, Decimal]]) -> dict[Any, Decimal]:
    found: dict[Any, Decimal] = defaultdict(Decimal)
    for key, usd in pairs:
        found[key] += usd
    return found


def positive(charges: Iterable[Charge]) -> Decimal:
    """The charges without credits: rows of a day, project and line item above zero."""
    rows = sums(((c.day, c.key.project.id, c.line.text), c.usd) for c in charges)
    return sum((usd for usd in rows.values() if usd > 0), ZERO)


def last_month(world: World, user_id: str = "acme") -> list[Charge]:
    days = set(world.known(user_id))
    return world.charges(user_id, [day for day in world.days(world.last_month) if day in days])


def tokens(world: World) -> Iterator[tuple[date, str, Any, int]]:
    """Day, cost model, API key and tokens of each cell of last month that is not free."""
    for day, cell in world.cells("acme", world.days(world.last_month)):
        count = cell.measures.get("input_tokens", 0) + cell.measures.get("output_tokens", 0)
        if count and cell.service != "moderations":
            yield day, meaning(cell.lines[0].text)[0] or "", cell.api_key, count


def state(world: World, first: date) -> str:
    if first == world.this_month:
        return "open"
    return "closing" if first == world.last_month and world.today.day <= 7 else "closed"


def spend_by_day(world: World, user_id: str = "acme") -> Rows:
    known, by_day = world.known(user_id), sums((c.day, c.usd) for c in last_month(world, user_id))
    return [
        (day, by_day[day] if day in known else None, day in known, day in known and day < world.today)
        for day in world.days(world.last_month)
    ]


def month_to_date(world: World) -> Rows:
    through = world.today - timedelta(days=1)
    days = [through.replace(day=number) for number in range(1, through.day + 1)]
    first = month_before(through.replace(day=1))
    before = [day for day in world.days(first) if day.day <= through.day]
    usd, usd_before = (sum((c.usd for c in world.charges("acme", span)), ZERO) for span in (days, before))
    change = pytest.approx((usd - usd_before) / abs(usd_before), abs=Decimal("1e-9"))
    return [(through, len(days), usd, usd_before, change)]


def by_month(world: World) -> Rows:
    rows: Rows = []
    for first in (world.month_before, world.last_month, world.this_month):
        charges = world.charges("acme", world.days(first))
        net, above = sum((c.usd for c in charges), ZERO), positive(charges)
        rows.append((first, above, net - above, net, 0, state(world, first)))
    return rows


def movers(world: World) -> Rows:
    months = (world.last_month, world.month_before)
    now, before = (
        sums(((c.key.project.name, cost_model(c)), c.usd) for c in world.charges("acme", world.days(first)))
        for first in months
    )
    rows = [(*key, now[key], before[key], now[key] - before[key]) for key in {**now, **before}]
    return sorted(rows, key=lambda row: (-abs(row[4]), row[0], row[1]))


def unit_cost(world: World, group: Callable[[str, Any], Any]) -> Rows:
    """Per group of model and key: all USD, those above zero, tokens, and USD by the token ÷ 1,000 tokens."""
    counts: dict[Any, int] = defaultdict(int)
    counted: set[tuple[date, str, str]] = set()
    for day, model, key, count in tokens(world):
        counts[group(model, key)] += count
        counted.add((day, model, key.project.id))
    charges = last_month(world)
    by_token = sums(
        (group(cost_model(c), c.key), c.usd)
        for c in charges
        if c.line.unit == "tokens" and (c.day, cost_model(c), c.key.project.id) in counted
    )
    usd = sums((group(cost_model(c), c.key), c.usd) for c in charges)
    return [(one, usd[one], counts[one], cut(by_token[one], counts[one], 1000)) for one in usd]


def by_project(world: World) -> Rows:
    rows = unit_cost(world, lambda _, key: key.project.name)
    return sorted(rows, key=lambda row: -row[1])


def by_family(world: World) -> Rows:
    rows = unit_cost(world, lambda model, _: FAMILIES.get(model))
    return sorted((row for row in rows if row[0]), key=lambda row: -row[1])


def output_by_member(world: World) -> Rows:
    usd = sums(
        (
            ("member" if isinstance(c.key.owner, SimulatedMember) else "service_account", c.key.owner.name),
            c.usd,
        )
        for c in last_month(world)
        if meaning(c.line.text)[1] == "output"
    )
    return sorted(((*who, amount, False) for who, amount in usd.items()), key=lambda row: -row[2])


def output_price(world: World) -> Rows:
    charges = [
        c for c in last_month(world) if meaning(c.line.text)[1] == "output" and c.line.unit == "tokens"
    ]
    charges = [c for c in charges if c.line.measure == "output_tokens"]
    usd = sums(((c.key.name, cost_model(c)), c.usd) for c in charges)
    used: dict[Any, int] = defaultdict(int)
    for charge in charges:
        used[charge.key.name, cost_model(charge)] += charge.quantity
    rows = [(*key, amount, cut(amount, used[key], 1_000_000)) for key, amount in usd.items()]
    return sorted(rows, key=lambda row: -row[2])


def principals(world: World) -> Rows:
    def principal(charge: Charge) -> tuple[str, str | None]:
        if charge.line.text in CATEGORIES:
            return "none", "no_usage"
        if charge.line.text in NOT_BY_MEMBER:
            return "none", "no_dimension"
        return ("member" if isinstance(charge.key.owner, SimulatedMember) else "service_account"), None

    charges = sums((principal(c), max(c.usd, ZERO)) for c in last_month(world))
    whole = sum(charges.values(), ZERO)
    return sorted(((*who, usd, share(usd, whole)) for who, usd in charges.items()), key=lambda row: -row[2])


def cache_savings(world: World) -> Rows:
    saved: dict[str, Decimal] = defaultdict(Decimal)
    for _, cell in world.cells("acme", world.days(world.last_month)):
        if cell.service == "completions" and len(cell.lines) == 3:
            uncached, cached, _output = cell.lines
            difference = uncached.price - cached.price
            saved[meaning(cached.text)[0] or ""] += cell.measures["input_cached_tokens"] * difference
    return sorted(saved.items(), key=lambda row: -row[1])


def price_changes(world: World) -> Rows:
    price = next(m.output_price for m in world.openai.organizations[0].spec.models if m.name == DEARER)
    before, after = (pytest.approx(float(1000 * times * price), abs=1e-9) for times in (1, 2))
    return [(f"{DEARER}, output", world.price_day, before, after)]


def restated(world: World) -> Rows:
    complete = [day for day in world.known("acme") if day < world.today]
    before, after = (
        sums(((c.day, c.key.project.id, c.line.text), c.usd) for c in charges)
        for charges in (world.before, world.charges("acme", complete))
    )
    changes = {
        key: after[key] - before[key]
        for key in {**before, **after}
        if key[0] < world.today and after[key] != before[key]
    }
    groups: dict[tuple[date, str], list[tuple[date, Decimal]]] = defaultdict(list)
    for (day, _, text), usd in changes.items():
        stage = "closed_month" if text == CORRECTION else "settling"
        groups[day.replace(day=1), stage].append((day, usd))
    return [
        (*key, sum((usd for _, usd in found), ZERO), len({day for day, _ in found}))
        for key, found in sorted(groups.items())
    ]


def known_then(world: World) -> Rows:
    days = world.days(world.month_before)
    then = sum((c.usd for c in world.before if c.day in days), ZERO)
    now = sum((c.usd for c in world.charges("acme", days)), ZERO)
    assert then - now == Decimal("0.75")
    return [(then, now)]


def by_service(world: World) -> Rows:
    usd = sums(
        ((meaning(c.line.text)[2], CATEGORIES.get(c.line.text, "usage")), c.usd) for c in last_month(world)
    )
    return sorted(((*key, amount) for key, amount in usd.items()), key=lambda row: -row[2])


def images(world: World) -> Rows:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for _, cell in world.cells("acme", world.days(world.last_month)):
        for dimensions, measures in cell.parts():
            if cell.service == "images":
                counts[dimensions["size"], dimensions["source"]] += measures["images"]
    return sorted(((*key, count) for key, count in counts.items()), key=lambda row: -row[2])


def fine_tunes(world: World) -> Rows:
    usd = sums((cost_model(c), c.usd) for c in last_month(world))
    base = TUNED.name.removeprefix("ft-")
    return [(base, usd[TUNED.name], usd[base], [TUNED.usage_name])]


def new_models(world: World) -> Rows:
    usd = sums((cost_model(c), c.usd) for c in world.charges("acme", world.known("acme")))
    first_day = {NEW_MODEL: world.new_model_day, "chat-latest": world.today - timedelta(days=1)}
    rows = [(model, FAMILIES[model], day, usd[model]) for model, day in first_day.items()]
    return sorted(rows, key=lambda row: row[2])


def run_rate(world: World) -> Rows:
    days = [day for day in world.days(world.last_month) if day < world.today]
    usd = sum((c.usd for c in last_month(world)), ZERO)
    length = (world.this_month - timedelta(days=1)).day
    return [(usd, len(days), cut(usd, len(days), length))]


def reconciled(world: World) -> Rows:
    usd = sum((c.usd for c in last_month(world)), ZERO)
    return [(usd, usd, ZERO, len(world.days(world.last_month)), 0, state(world, world.last_month))]


def totals(world: World) -> Rows:
    moments = dict(world.installation.sql("SELECT user_id, last_refresh_at FROM connections"))
    rows = [
        (
            user,
            "scale",
            sum((c.usd for c in last_month(world, user)), ZERO),
            int(user == "initech"),
            moments[user],
            False,
        )
        for user in USERS
    ]
    return sorted(rows, key=lambda row: -row[2])


ANSWERS: dict[int, Callable[[World], Rows]] = {
    1: spend_by_day,
    2: month_to_date,
    3: by_month,
    4: movers,
    5: by_project,
    6: by_family,
    7: output_by_member,
    8: output_price,
    9: principals,
    10: cache_savings,
    11: price_changes,
    12: restated,
    13: known_then,
    14: by_service,
    15: images,
    16: fine_tunes,
    17: new_models,
    18: run_rate,
    19: reconciled,
    20: totals,
}


def ask(world: World, query: str) -> Rows:
    """The rows of a query of the document, with its moment and months in the time of the test."""
    months = {
        "2026-11-08 12:00:00+00": world.between.isoformat(),
        "2026-11-01": str(world.this_month),
        "2026-10-01": str(world.last_month),
        "2026-09-01": str(world.month_before),
    }
    for written, meant in months.items():
        query = query.replace(written, meant)
    return world.installation.sql(query)


def test_there_are_twenty_questions_of_at_most_ten_lines():
    assert [int(number) for number, _, _ in QUESTIONS] == list(ANSWERS) == list(range(1, 21))
    for _, title, query in QUESTIONS:
        assert len(query.strip().splitlines()) <= 10, title
        assert len(duckdb.extract_statements(query)) == 1
        assert "current_date" not in query


@pytest.mark.parametrize(("number", "query"), [(int(one[0]), one[2]) for one in QUESTIONS])
def test_the_answer_equals_the_simulators_truth(number: int, query: str, world: World):
    expected = ANSWERS[number](world)
    assert expected
    assert ask(world, query) == expected


def test_an_unknown_day_is_shown_as_unknown(world: World):
    query = QUESTIONS[0][2].replace("'acme'", "'initech'")
    expected = spend_by_day(world, "initech")
    assert [row[1] for row in expected].count(None) == 1
    assert ask(world, query) == expected


@pytest.mark.parametrize("table", [one for _, tables in tables_page.GROUPS.values() for one in tables])
def test_rows_are_unique_on_the_documented_grain(table: str, world: World):
    grain = tables_page.grain(table)
    names = "" if grain == "one row" else re.sub(r"^user\b", "user_id", grain)
    distinct = f"count(DISTINCT ({names}))" if names else "1"
    ((rows, groups),) = world.installation.sql(f"SELECT count(*), {distinct} FROM {table}")
    assert rows == groups > 0


CUTS = {
    "daily_costs": ("line_item", "project_id", "cost_model", "cost_service", "charge_category"),
    "named_costs": ("project_name", "model_key"),
    "daily_model_costs": ("model", "cost_service"),
    "daily_attributed_costs": (
        *("line_item", "project_id", "member_id", "api_key_id", "principal_type", "unattributed_reason"),
        *("cost_model", "cost_service", "charge_category", "method"),
    ),
    "daily_member_costs": ("member_id", "project_id", "model", "principal_type"),
    "daily_key_costs": ("api_key_id", "project_id", "model", "method"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "cut"), [(table, cut) for table, cuts in CUTS.items() for cut in cuts], ids=lambda name: name
)
def test_the_parts_of_every_cut_add_up_to_the_bill(table: str, cut: str, world: World):
    parts = world.installation.sql(
        f"SELECT user_id, date, {cut}, sum(amount_usd) FROM {table} GROUP BY ALL HAVING sum(amount_usd) <> 0"
    )
    bills: dict[tuple[str, date], Decimal] = defaultdict(lambda: ZERO)
    for user_id, day, _, usd in parts:
        bills[user_id, day] += usd
    assert len({part for *_, part, _ in parts}) > 1 or table == "daily_key_costs"
    for user_id in USERS:
        days = world.known(user_id)
        expected: dict[date, Decimal] = defaultdict(lambda: ZERO)
        for charge in world.charges(user_id, days):
            expected[charge.day] += charge.usd
        assert {day: bills[user_id, day] for day in days} == {day: expected[day] for day in days}
