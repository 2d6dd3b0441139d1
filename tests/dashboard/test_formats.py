"""Formatting of figures: rounding never misleads, exact values stay exact."""

import xml.etree.ElementTree as ET
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from urllib.parse import parse_qsl

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finora_pipeline.dashboard.figures import charts, formats
from finora_pipeline.dashboard.figures.periods import BadPeriod, view_of
from finora_pipeline.dashboard.known_days import KnownDays
from finora_pipeline.openai_admin.provider import FIRST_DAY
from finora_pipeline.plans import PLANS, Plan

# The same examples in every run, without a time limit on a busy machine.
REPEATABLE = settings(derandomize=True, deadline=None, max_examples=30)
# All that DECIMAL(38, 18) holds.
DIGITS = st.integers(-(10**38) + 1, 10**38 - 1) | st.integers(-(10**21), 10**21) | st.integers(-2000, 2000)
AMOUNTS = DIGITS.map(lambda digits: Decimal(digits).scaleb(-18, context=formats._EXACT))
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
TODAY = date(2026, 11, 24)


def read(text: str) -> Fraction:
    """Return the value that a formatted figure shows."""
    text = text.replace("−", "-").replace("$", "").replace(",", "").removesuffix("%").removeprefix("+")
    unit = UNITS.get(text[-1], 1)
    return Fraction(text.rstrip("KMBT")) * unit


def assert_rounds(text: str, exact: Fraction, share: Fraction, least: Fraction = Fraction(0)) -> None:
    """Assert that rounding is within a share of the figure, or within its last shown digit."""
    assert abs(read(text) - exact) <= max(abs(exact) * share, least)
    assert read(text) * exact >= 0


@REPEATABLE
@given(amount=AMOUNTS)
def test_dollars(amount: Decimal) -> None:
    text = formats.usd(amount)
    exact = Fraction(amount)
    if abs(exact) >= Fraction(1, 100):
        assert_rounds(text, exact, Fraction(0), Fraction(1, 200))
        assert text[-3] == "."
    else:
        assert_rounds(text, exact, Fraction(1, 200))
    assert (read(text) == 0) == (amount == 0)
    assert "E" not in text


@REPEATABLE
@given(amount=AMOUNTS)
def test_prices(amount: Decimal) -> None:
    text = formats.price(amount)
    exact = Fraction(amount)
    assert_rounds(text, exact, Fraction(1, 2000))
    assert abs(read(text) - exact) <= Fraction(1, 200)
    assert (read(text) == 0) == (amount == 0)
    assert len(text.partition(".")[2]) >= 2


@REPEATABLE
@given(amount=AMOUNTS)
def test_the_exact_amount_is_exact(amount: Decimal) -> None:
    text = formats.exact(amount)
    assert Fraction(text) == Fraction(amount)
    assert "E" not in text
    assert not (text.endswith("0") and "." in text)


@REPEATABLE
@given(share=AMOUNTS, signed=st.booleans())
def test_percents(share: Decimal, signed: bool) -> None:
    text = formats.percent(share, signed)
    exact = Fraction(share) * 100
    assert_rounds(text, exact, Fraction(1, 2000), Fraction(1, 20))
    assert text.startswith("+") == (signed and read(text) > 0)


@REPEATABLE
@given(number=st.integers(0, 10**16) | st.integers(0, 2000))
def test_counts(number: int) -> None:
    text = formats.count(number)
    assert_rounds(text, Fraction(number), Fraction(1, 200))
    digits = text.rstrip("KMBT").replace(".", "")
    assert len(digits) <= 3 or text.endswith("T")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formats.usd(Decimal("0.00996")), "$0.00996"),
        (formats.usd(Decimal("0.009999")), "$0.0100"),
        (formats.usd(Decimal("-1234.505")), "−$1,234.51"),
        (formats.price(Decimal("123.456")), "$123.46"),
        (formats.price(Decimal("12345.678")), "$12,345.68"),
        (formats.price(Decimal("0.0022270")), "$0.002227"),
        (formats.price(Decimal("1.25")), "$1.25"),
        (formats.count(999_499), "999K"),
        (formats.count(999_999), "1.00M"),
        (formats.count(1_236_000), "1.24M"),
        (formats.percent(Decimal("0.9996")), "100.0%"),
        (formats.percent(Decimal("12.345"), signed=True), "+1,235%"),
        (formats.percent(Decimal("-0.0001"), signed=True), "0.0%"),
        (formats.exact(Decimal("100.00")), "100"),
        (formats.duration(timedelta(hours=47)), "47 h"),
        (formats.duration(timedelta(days=2)), "2 days"),
        (formats.duration(timedelta(seconds=-5)), "less than a minute"),
    ],
)
def test_numbers_at_the_edges_of_their_units(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize(
    "format_value", [formats.usd, formats.price, formats.count, formats.percent, formats.moment]
)
def test_a_missing_figure_is_a_dash(format_value: object) -> None:
    assert callable(format_value)
    assert format_value(None) == "–"
    assert formats.exact(None) == ""


@REPEATABLE
@given(part=AMOUNTS, whole=st.integers(-5, 10**15), per=st.sampled_from([1, 1000, 1_000_000]))
def test_a_ratio_is_cut_after_the_18th_decimal(part: Decimal, whole: int, per: int) -> None:
    text = formats.ratio(part, whole, per)
    if whole <= 0:
        assert text is None
        return
    assert text is not None
    units = Fraction(part) * per * 10**18 / whole
    assert Fraction(text) * 10**18 == int(units)


DAYS = st.dates(date(2019, 1, 1), date(2027, 1, 1))
TEXTS = st.text(max_size=20)
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "period": st.sampled_from(["7d", "30d", "90d", "month", "custom", ""]) | TEXTS,
        "from": DAYS.map(date.isoformat) | TEXTS,
        "to": DAYS.map(date.isoformat) | TEXTS,
        "model": TEXTS,
        "project": TEXTS,
    },
)


LONGEST_OUTAGE = 200
# How many days ago the first known and the last complete day were.
KNOWN = st.none() | st.tuples(st.integers(1, 400), st.integers(1, LONGEST_OUTAGE)).map(
    lambda ago: (max(ago), min(ago))
)


@REPEATABLE
@given(query=QUERIES, plan=st.sampled_from(list(PLANS.values())), today=DAYS, known=KNOWN)
def test_the_address_of_a_view_restores_it(
    query: dict[str, str], plan: Plan, today: date, known: tuple[int, int] | None
) -> None:
    assume(today > FIRST_DAY + timedelta(days=LONGEST_OUTAGE))
    since, through = [today - timedelta(days=ago) for ago in known] if known else (None, None)
    days = KnownDays(since, through, None)
    try:
        view = view_of(query, plan, today, days)
    except BadPeriod:
        return
    assert view.through == (through or today - timedelta(days=1))
    assert max(plan.first_day_kept(view.through) or FIRST_DAY, FIRST_DAY) <= view.first
    assert view.first <= view.last <= view.through
    assert view.previous_first <= view.previous_last < view.first
    assert view.previous_last - view.previous_first <= view.last - view.first
    again = view_of(dict(parse_qsl(view.query()[1:])), plan, today, days)
    for name in ("period", "first", "last", "previous_first", "previous_last", "model", "project_id"):
        assert getattr(again, name) == getattr(view, name)
    alone = view_of(dict(parse_qsl(view.query(model=None, project="p")[1:])), plan, today, days)
    assert (alone.first, alone.last, alone.model, alone.project_id) == (view.first, view.last, None, "p")


def numbers(svg: str) -> list[float]:
    """Return every number of a drawing's shapes; fail for invalid XML."""
    found: list[float] = []
    for element in ET.fromstring(svg).iter():
        for name in ("x", "y", "width", "height"):
            if name in element.attrib:
                found.append(float(element.attrib[name]))
        for step in element.attrib.get("d", "").replace("M", " ").replace("L", " ").replace("H", " ").split():
            found.append(float(step))
    return found


# Characters invalid in XML never come from OpenAI's names, which are printed otherwise.
NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=12
)
SERIES = st.lists(st.none() | AMOUNTS, max_size=8)


@REPEATABLE
@given(bars=st.lists(st.tuples(NAMES, st.lists(AMOUNTS, min_size=2, max_size=2)), max_size=8), title=NAMES)
def test_bars_are_drawn_within_their_box(bars: list[tuple[str, list[Decimal]]], title: str) -> None:
    drawn = charts.stacked_bars([charts.Bar(name, parts, name) for name, parts in bars], title)
    assert all(-0.01 <= number <= charts.WIDTH + 0.01 for number in numbers(drawn))
    root = ET.fromstring(drawn)
    assert root.attrib["aria-label"] == title
    assert [g.attrib["data-tip"] for g in root] == [name for name, _ in bars]


@REPEATABLE
@given(values=st.lists(AMOUNTS, max_size=5))
def test_no_value_exceeds_the_scale(values: list[Decimal]) -> None:
    scale = charts.scale_of(values)
    assert all(scale.bottom <= value <= scale.top for value in [Decimal(0), *values])
    assert scale.bottom < scale.top
    top, middle, bottom = scale.steps
    assert top - middle == middle - bottom
    # Where values lie on both sides, zero has a label.
    assert 0 in scale.steps


def heights(svg: str) -> list[list[tuple[str, float, float]]]:
    """Return the parts of each bar: class, distance from the top, height."""
    bars = [[one.attrib for one in group if one.attrib["class"] != "room"] for group in ET.fromstring(svg)]
    return [[(one["class"], float(one["y"]), float(one["height"])) for one in bar] for bar in bars]


def test_bars_end_at_their_sum_and_credits_go_below_zero() -> None:
    parts = [("2", "-5"), ("1", "0"), ("0.25", "0"), ("4", "-1"), ("3", "-3")]
    drawn = heights(charts.stacked_bars([charts.Bar("", [*map(Decimal, p)], "") for p in parts], "Costs"))
    # From 3 to -3: zero is in the middle, a dollar a sixth of the height.
    assert drawn == [
        [("s1", 120.0, 120.0)],
        [("s0", 80.0, 40.0)],
        [("s0", 110.0, 10.0)],
        [("s0", 0.0, 120.0)],
        [],
    ]


def test_bars_of_credits_alone_hang_from_zero() -> None:
    drawn = heights(charts.stacked_bars([charts.Bar("", [Decimal("-1"), Decimal("-1")], "")], "Credits"))
    assert drawn == [[("s0", 0.0, 120.0), ("s1", 120.0, 120.0)]]


@REPEATABLE
@given(values=SERIES, title=NAMES)
def test_sparklines_are_drawn(values: list[Decimal | None], title: str) -> None:
    drawn = charts.sparkline(values, title)
    if len([value for value in values if value is not None]) < 2:
        assert drawn == ""
    else:
        assert all(0 <= number <= 100 for number in numbers(drawn))


@REPEATABLE
@given(series=st.lists(st.tuples(NAMES, SERIES), max_size=3), tips=st.lists(NAMES, max_size=3))
def test_lines_are_drawn(series: list[tuple[str, list[Decimal | None]]], tips: list[str]) -> None:
    drawn = charts.lines(series, tips, "Prices")
    if drawn:
        assert all(number == number and abs(number) != float("inf") for number in numbers(drawn))


@REPEATABLE
@given(share=AMOUNTS)
def test_a_share_is_drawn_within_its_row(share: Decimal) -> None:
    assert 0 <= numbers(charts.share_bar(share))[0] <= 100


def known(since: date, through: date) -> KnownDays:
    return KnownDays(since, through, None)


def test_a_month_that_the_plan_cuts_is_compared_with_the_same_days() -> None:
    today = date(2026, 11, 25)
    view = view_of({"period": "month"}, PLANS["trial"], today, known(date(2026, 11, 1), date(2026, 11, 24)))
    assert (view.first, view.last) == (date(2026, 11, 18), date(2026, 11, 24))
    assert (view.previous_first, view.previous_last) == (date(2026, 10, 18), date(2026, 10, 24))
    today = date(2026, 4, 1)
    shorter = view_of({"period": "month"}, PLANS["growth"], today, known(FIRST_DAY, date(2026, 3, 31)))
    assert (shorter.first, shorter.last, shorter.month_label) == (
        date(2026, 3, 1),
        date(2026, 3, 31),
        "March",
    )
    assert (shorter.previous_first, shorter.previous_last) == (date(2026, 2, 1), date(2026, 2, 28))


def test_a_whole_month_is_compared_with_the_month_before() -> None:
    query = {"from": "2026-10-01", "to": "2026-10-31"}
    through = date(2026, 11, 24)
    view = view_of(query, PLANS["scale"], date(2026, 11, 25), known(FIRST_DAY, through))
    assert (view.first, view.last) == (date(2026, 10, 1), date(2026, 10, 31))
    assert (view.previous_first, view.previous_last) == (date(2026, 9, 1), date(2026, 9, 30))
    assert (view.month_label, view.is_behind) == ("This month", False)


def test_a_plan_shows_as_many_complete_days_as_it_keeps_once_they_are_known() -> None:
    """The first fetch is of the days that the plan keeps, today included."""
    today, through = date(2026, 11, 25), date(2026, 11, 24)
    first_fetch = known(date(2026, 11, 19), through)
    assert view_of({"period": "7d"}, PLANS["trial"], today, first_fetch).first == date(2026, 11, 19)
    later = known(date(2026, 11, 12), through)
    week = view_of({"period": "7d"}, PLANS["trial"], today, later)
    assert (week.first, week.last, week.clipped_from) == (date(2026, 11, 18), through, None)
    assert view_of({"period": "30d"}, PLANS["trial"], today, later).first == date(2026, 11, 18)


def test_after_an_outage_the_days_before_it_are_shown() -> None:
    outage = known(date(2026, 10, 1), date(2026, 10, 20))
    view = view_of({"period": "7d"}, PLANS["trial"], date(2026, 11, 25), outage)
    assert (view.first, view.last, view.is_behind) == (date(2026, 10, 14), date(2026, 10, 20), True)


@pytest.mark.parametrize(
    ("days", "sentence"),
    [
        (known(FIRST_DAY, date(2026, 11, 20)), "The last complete day is Nov 20, 2026."),
        (KnownDays(date(2026, 11, 25), None, None), "No day is complete yet."),
    ],
)
def test_days_that_are_not_complete_are_not_replaced_by_others(days: KnownDays, sentence: str) -> None:
    with pytest.raises(BadPeriod, match=f"^These days are not complete. {sentence}$"):
        view_of({"from": "2026-11-25"}, PLANS["growth"], date(2026, 11, 25), days)


def test_an_empty_part_says_zero_or_unknown() -> None:
    view = view_of(
        {"period": "7d"}, PLANS["growth"], date(2026, 11, 25), known(FIRST_DAY, date(2026, 11, 24))
    )
    assert [view.no_spend_text(days) for days in (0, 3, 7)] == [
        "No day of this period is known",
        "No spend on the known days of this period",
        "No spend in this period",
    ]
