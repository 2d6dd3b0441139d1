"""Every figure of user_metrics equals one made by hand from the rows, for todays around ends of months."""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal, localcontext

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.warehouse.landing import bucket, cost_day, cost_row, land, load, page_of, rows

TODAYS = [
    date(2024, 1, 1),
    date(2024, 2, 29),
    date(2024, 3, 1),
    date(2024, 3, 31),
    date(2024, 5, 1),
    date(2024, 5, 31),
    date(2023, 3, 1),
    date(2023, 12, 31),
    date(2024, 7, 9),
]
FREE = "omni-moderation-latest"
MODELS = ("gpt-4o", "gpt-5", FREE)
ZERO = Decimal(0)


@dataclass
class Day:
    """What OpenAI has for a day: USD and tokens by model, and credits without a model."""

    usd: dict[str, Decimal] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    credit: Decimal | None = None

    @property
    def amounts(self) -> list[Decimal]:
        return [*self.usd.values(), *([self.credit] if self.credit is not None else [])]


@st.composite
def histories(draw: st.DrawFn) -> tuple[date, dict[date, Day]]:
    """A today and the days that were read: whole or in part, with gaps, credits and days of zero."""
    today = draw(st.sampled_from(TODAYS))
    length = draw(st.sampled_from([2, 6, 8, 35, 70]))
    missing = draw(st.sets(st.integers(0, length - 1), max_size=3))
    money = st.decimals("0.000000000000000001", "90", places=18)
    days: dict[date, Day] = {}
    for ago in range(length):
        if ago in missing:
            continue
        day = Day()
        for model in draw(st.sets(st.sampled_from(MODELS), max_size=3)):
            if model != FREE:
                day.usd[model] = draw(money)
            day.tokens[model] = draw(st.integers(1, 10**9))
        if draw(st.integers(0, 9)) == 0:
            day.credit = -draw(money)
        days[today - timedelta(days=ago)] = day
    return today, days


def read_days(warehouse: Warehouse, today: date, days: dict[date, Day]) -> None:
    """Land past days as read on the next morning, and today as read at noon."""
    for read in ([day for day in days if day < today], [day for day in days if day == today]):
        if not read:
            continue
        fetched_at = datetime(today.year, today.month, today.day, 12, tzinfo=UTC)
        costs: list[str] = []
        usage: dict[str, list[dict[str, object]]] = {"completions": [], "moderations": []}
        for at in sorted(read):
            lines = [cost_row(f'"{usd}"', f"{model}, input") for model, usd in days[at].usd.items()]
            lines = [line[:-1] + ',"quantity":1,"quantity_unit":"tokens"}' for line in lines]
            if days[at].credit is not None:
                lines.append(cost_row(f'"{days[at].credit}"', "promotional credit"))
            costs.append(cost_day(lines, at))
            for endpoint, is_free in (("completions", False), ("moderations", True)):
                used = [
                    {"project_id": "proj_a", "model": model, "input_tokens": tokens, "num_model_requests": 2}
                    for model, tokens in days[at].tokens.items()
                    if (model == FREE) == is_free
                ]
                usage[endpoint].append(bucket(used, at))
        land(warehouse, page_of(*costs), fetched_at=fetched_at)
        for endpoint, buckets in usage.items():
            land(warehouse, page_of(*buckets), endpoint=ENDPOINTS[endpoint], fetched_at=fetched_at)
    load(warehouse)
    load(warehouse, "completions")


def spans(name: str, through: date) -> tuple[list[date], list[date]]:
    """The days of a period and of the one before."""
    if name == "month":
        first = through.replace(day=1)
        before = first - timedelta(days=1)
        same = [before.replace(day=number) for number in range(1, through.day + 1) if number <= before.day]
        return [first + timedelta(days=n) for n in range(through.day)], same
    length = int(name.removesuffix("d"))
    return (
        [through - timedelta(days=n) for n in range(length)],
        [through - timedelta(days=length + n) for n in range(length)],
    )


def figures(span: list[date], days: dict[date, Day]) -> dict[str, Decimal | None]:
    """The key figures of some days, from the definitions of docs/kpis.md."""
    known = [days[day] for day in span if day in days]
    amounts = [amount for day in known for amount in day.amounts]
    total, charges = sum(amounts, ZERO), sum((usd for usd in amounts if usd > 0), ZERO)
    by_model: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for day in known:
        for model, usd in day.usd.items():
            by_model[model] += usd
    tokens = sum(number for day in known for number in day.tokens.values())
    billable = [(model, number) for day in known for model, number in day.tokens.items() if model != FREE]
    unit_tokens, unit_requests = sum(number for _, number in billable), 2 * len(billable)
    return {
        "total_spend": total if known else None,
        "charges": charges if known else None,
        "credits": total - charges if known else None,
        "average_daily_cost": cut(total, len(known)),
        "cost_per_1k_tokens": cut(1000 * charges, unit_tokens) if charges else None,
        "cost_per_request": cut(total, unit_requests),
        "top_model_share": share(max(by_model.values()), charges) if by_model else None,
        "tokens": Decimal(tokens) if known else None,
        "tokens_per_hour": cut(Decimal(tokens), 24 * len(known)),
    }


def cut(amount: Decimal, by: int) -> Decimal | None:
    """A ratio cut after the 18th decimal."""
    with localcontext(prec=80):
        return (amount / by).quantize(Decimal("1e-18"), ROUND_DOWN) if by else None


def share(part: Decimal, whole: Decimal) -> Decimal | None:
    with localcontext(prec=80):
        return (part / whole).quantize(Decimal("1e-12"), ROUND_HALF_EVEN) if whole else None


SUMS = ("total_spend", "charges", "credits", "tokens")


# Each example is a warehouse of its own: shrinking one takes minutes.
@settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow],
)
@given(history=histories())
def test_every_figure_equals_one_made_by_hand(
    history: tuple[date, dict[date, Day]], tmp_path_factory: pytest.TempPathFactory
):
    today, days = history
    warehouse = Warehouse(tmp_path_factory.mktemp("home"))
    read_days(warehouse, today, days)
    refresh_metrics(warehouse, today)
    through = max((day for day in days if day < today), default=today - timedelta(days=1))
    found = {
        (metric, period): row
        for metric, period, *row in rows(
            warehouse,
            "SELECT metric, period, value, previous_value, change, change_unit, known_days, through_date, "
            "period_start, sparkline FROM user_metrics WHERE period <> 'today'",
        )
    }
    if not days:
        assert found == {}
        return
    for period in ("7d", "30d", "90d", "month"):
        span, before = spans(period, through)
        now, then = figures(span, days), figures(before, days)
        is_known_before = all(day in days for day in before)
        known_days = sum(day in days for day in span)
        for metric, value in now.items():
            row = found[metric, period]
            got, previous, change, unit, known, ended, start, sparkline = row
            assert got == value, (metric, period)
            assert (known, ended, start) == (known_days, through, min(span))
            assert previous == (then[metric] if is_known_before else None), (metric, period)
            is_comparable = known_days == len(span) if metric in SUMS else 2 * known_days >= len(span)
            expected = None
            if is_known_before and is_comparable:
                assert unit == ("points" if metric == "top_model_share" else "relative")
                expected = change_by_hand(metric, value, then[metric])
            assert is_close(change, expected), (metric, period)
            a_day = [figures([through - timedelta(days=n)], days)[metric] for n in range(13, -1, -1)]
            assert sparkline == a_day, (metric, period)
    assert_growth(found, through, days)


def assert_growth(found: dict[tuple[str, str], list], through: date, days: dict[date, Day]) -> None:
    """month_over_month is of the month alone, and has no change."""
    growth, previous, change, unit, *_ = found["month_over_month", "month"]
    assert (previous, change, unit) == (None, None, None)
    assert [period for metric, period in found if metric == "month_over_month"] == ["month"]
    span, before = spans("month", through)
    expected = None
    if all(day in days for day in (*span, *before)):
        metric = "total_spend"
        expected = change_by_hand(metric, figures(span, days)[metric], figures(before, days)[metric])
    assert is_close(growth, expected)


def change_by_hand(metric: str, value: Decimal | None, before: Decimal | None) -> Decimal | None:
    """The change relative to the size of the value before; of a share, the difference."""
    if value is None or before is None:
        return None
    with localcontext(prec=80):
        if metric == "top_model_share":
            return value - before
        return (value - before) / abs(before) if before else None


def is_close(found: Decimal | None, expected: Decimal | None) -> bool:
    """Changes are rounded to twelve decimals, of numbers with fifteen digits."""
    if found is None or expected is None:
        return found is expected
    with localcontext(prec=80):
        return abs(found - expected) <= (abs(expected) + 1) * Decimal("1e-9")
