"""The tiles of Overview: a figure each, its change against the previous period, a note."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from markupsafe import Markup

from finora_pipeline.dashboard.figures import charts, formats
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.figures.sums import Months, OverviewSums, Sums
from finora_pipeline.warehouse.kpis import CHANGES, POINTS
from finora_pipeline.warehouse.periods import SPARKLINE_DAYS


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure with its change against the previous period and its last 14 days.

    `exact` holds all digits of `value`; `note` qualifies the figure or says why it is missing.
    """

    label: str
    value: str
    exact: str
    change: str
    change_note: str
    spark: Markup
    note: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """What a tile shows: its label, the metric (`warehouse.kpis`), and the format of that figure."""

    label: str
    metric: str
    format_value: Callable[[Decimal | None], str]

    def value_of(self, sums: Sums | None) -> Decimal | None:
        """The figure of a span; None for an unknown span or a figure that does not exist."""
        return sums.values[self.metric] if sums else None


SPEND = Measure("Total spend", "total_spend", formats.usd)
DAILY_COST = Measure("Average daily cost", "average_daily_cost", formats.usd)
TOKEN_PRICE = Measure("Cost per 1k tokens", "cost_per_1k_tokens", formats.price)
TOKENS_IN = Measure("Tokens in", "input_tokens", formats.count)
TOKENS_OUT = Measure("Tokens out", "output_tokens", formats.count)
TOP_SHARE = Measure("Top model share", "top_model_share", formats.percent)


def make_tiles(view: View, sums: OverviewSums, months: Months) -> list[Tile]:
    """All tiles of a view, in the order of the page."""
    period = sums.period
    return [
        _tile(view, sums, SPEND, _spend_note(view, period)),
        _tile(view, sums, DAILY_COST, _average_note(view, period)),
        _tile(view, sums, TOKEN_PRICE, _price_note(view, period)),
        _tile(view, sums, TOKENS_IN, _usage_note(view, period)),
        _tile(view, sums, TOKENS_OUT, _usage_note(view, period)),
        _tile(view, sums, TOP_SHARE, _top_note(view, period)),
        _growth_tile(sums, months),
    ]


def _tile(view: View, sums: OverviewSums, measure: Measure, note: str = "") -> Tile:
    value, before = measure.value_of(sums.period), measure.value_of(sums.previous)
    change = sums.period.changes[measure.metric]
    spark = charts.sparkline(
        [measure.value_of(day) for day in sums.daily], f"{measure.label}, last {SPARKLINE_DAYS} days"
    )
    is_share = CHANGES[measure.metric] == POINTS
    return Tile(
        measure.label,
        measure.format_value(value),
        formats.exact(value),
        formats.points(change) if is_share else formats.percent(change, signed=True),
        _change_note(view, sums, value, before, change),
        spark,
        note,
    )


def _change_note(
    view: View, sums: OverviewSums, value: Decimal | None, before: Decimal | None, change: Decimal | None
) -> str:
    if change is not None:
        return f"vs {formats.day_range(view.previous_first, view.previous_last)}"
    if sums.previous.known_days < (view.previous_last - view.previous_first).days + 1:
        return "The previous period is not wholly known"
    if before == 0:
        return "Zero in the previous period"
    if before is None:
        return "No figure for the previous period"
    if value is None:
        return "No figure for this period"
    return "Some days of this period are unknown"


def _spend_note(view: View, period: Sums) -> str:
    """The charges and credits behind the total, where there are credits, and how many days it is of."""
    notes = []
    if period.credits:
        credits = formats.usd(abs(period.credits))
        notes.append(f"{formats.usd(period.charges)} of charges less {credits} of credits")
    if period.known_days < view.days:
        notes.append(f"{period.known_days} of {view.days} days known")
    return "; ".join(notes)


def _average_note(view: View, period: Sums) -> str:
    if not period.known_days:
        return view.no_spend_text(0)
    unknown = view.days - period.known_days
    known = "known " if unknown else ""
    days = f"average of {period.known_days} {known}day{'s' if period.known_days > 1 else ''}"
    return f"{days}; {unknown} unknown" if unknown else days


def _price_note(view: View, period: Sums) -> str:
    if not period.known_days:
        return view.no_spend_text(0)
    if period.values["cost_per_1k_tokens"] is None:
        return "No spend with known token counts"
    return f"based on {formats.percent(period.covered_share)} of charges (billed by token)"


def _usage_note(view: View, period: Sums) -> str:
    unknown = view.days - period.usage_days
    return f"usage of {unknown} day{'s' if unknown > 1 else ''} unknown" if unknown else ""


def _top_note(view: View, period: Sums) -> str:
    if period.values["top_model_share"] is not None:
        return period.top_model or ""
    return "Only credits in this period" if period.credits else view.no_spend_text(period.known_days)


def _growth_tile(sums: OverviewSums, months: Months) -> Tile:
    """The month up to the last complete day against the same days of the month before."""
    growth = sums.month.growth
    value = formats.percent(growth, signed=True)
    note = _growth_note(sums, months, growth)
    return Tile("Month over month", value, formats.exact(growth), "", "", Markup(""), note)


def _growth_note(sums: OverviewSums, months: Months, growth: Decimal | None) -> str:
    this = formats.day_range(months.first, months.last, with_year=False)
    before = formats.day_range(months.before_first, months.before_last, with_year=False)
    if growth is None and sums.month_before.net == 0:
        return f"No spend on {before}"
    if growth is None:
        return f"Needs every day of {this} and {before}"
    return f"{this} vs {before}"
