"""The tiles of Overview: a figure each, its change against the previous period, a note."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal

from markupsafe import Markup

from finora_pipeline.dashboard.figures import charts, formats
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.figures.sums import Months, OverviewSums, Sums
from finora_pipeline.warehouse.periods import SPARKLINE_DAYS

NOT_BY_PROJECT = "Not available for a single project"


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
    metric: str | None
    format_value: Callable[[Decimal | None], str]

    def value_of(self, sums: Sums | None) -> Decimal | None:
        """The figure of a span; None for an unknown span or a figure that does not exist."""
        return sums.values[self.metric] if sums and self.metric else None


SPEND = Measure("Total spend", "total_spend", formats.usd)
DAILY_COST = Measure("Average daily cost", "average_daily_cost", formats.usd)
TOKEN_PRICE = Measure("Cost per 1k tokens", "cost_per_1k_tokens", formats.price)
TOKENS_IN = Measure("Tokens in", "input_tokens", formats.count)
TOKENS_OUT = Measure("Tokens out", "output_tokens", formats.count)
TOP_SHARE = Measure("Top model share", "top_model_share", formats.percent)


def make_tiles(view: View, sums: OverviewSums, months: Months) -> list[Tile]:
    """All tiles of a view, in the order of the page."""
    period = sums.period
    token_price, tokens_in, tokens_out = TOKEN_PRICE, TOKENS_IN, TOKENS_OUT
    token_note, price_note = "", _price_note(period)
    if view.project_id:
        # Tokens are matched with costs over all projects together.
        token_price, tokens_in, tokens_out = map(_without_value, (TOKEN_PRICE, TOKENS_IN, TOKENS_OUT))
        token_note = price_note = NOT_BY_PROJECT
    has_share = period.values["top_model_share"] is not None
    top_note = next(iter(sums.models)) if has_share else _no_share_note(period)
    return [
        _tile(view, sums, SPEND),
        _tile(view, sums, DAILY_COST, _average_note(view, sums)),
        _tile(view, sums, token_price, price_note),
        _tile(view, sums, tokens_in, token_note),
        _tile(view, sums, tokens_out, token_note),
        _tile(view, sums, TOP_SHARE, top_note),
        _growth_tile(sums, months),
    ]


def _without_value(measure: Measure) -> Measure:
    return replace(measure, metric=None)


def _tile(view: View, sums: OverviewSums, measure: Measure, note: str = "") -> Tile:
    value, before = measure.value_of(sums.period), measure.value_of(sums.previous)
    change = sums.period.changes[measure.metric] if measure.metric and sums.previous else None
    spark = charts.sparkline(
        [measure.value_of(day) for day in sums.daily], f"{measure.label}, last {SPARKLINE_DAYS} days"
    )
    return Tile(
        measure.label,
        measure.format_value(value),
        formats.exact(value),
        formats.percent(change, signed=True),
        _change_note(view, sums.previous, before, change),
        spark,
        note,
    )


def _change_note(view: View, previous: Sums | None, before: Decimal | None, change: Decimal | None) -> str:
    if change is not None:
        return f"vs {formats.day_range(view.previous_first, view.previous_last)}"
    if previous is None:
        return "No data for the previous period"
    if before is None:
        return "No figure for the previous period"
    if before > 0:
        return "No figure for this period"
    return "Zero in the previous period" if before == 0 else "Below zero in the previous period"


def _average_note(view: View, sums: OverviewSums) -> str:
    days = f"average of {view.days} day{'s' if view.days > 1 else ''}"
    if sums.known_since and sums.known_since > view.first:
        return f"{days}; data since {formats.short_day(sums.known_since)}"
    return days


def _price_note(period: Sums) -> str:
    if period.values["cost_per_1k_tokens"] is None:
        return "No spend with known token counts"
    return f"based on {formats.percent(period.covered_share)} of spend (billed by token)"


def _no_share_note(period: Sums) -> str:
    return "Only credits in this period" if period.usd < 0 else "No spend in this period"


def _growth_tile(sums: OverviewSums, months: Months) -> Tile:
    """This month so far against the same days of the last month."""
    growth = None
    if sums.known_since is None or sums.known_since > months.before_first:
        note = "Needs data from all of last month"
    else:
        growth = sums.month.growth
        note = _growth_note(months, sums.month_before.usd)
    value = formats.percent(growth, signed=True)
    return Tile("Month over month", value, formats.exact(growth), "", "", Markup(""), note)


def _growth_note(months: Months, before: Decimal) -> str:
    if before < 0:
        return "Credits exceeded spend in the same days of last month"
    if before == 0:
        return "No spend in the same days of last month"
    this = formats.day_range(months.first, months.last, with_year=False)
    return f"{this} vs {formats.day_range(months.before_first, months.before_last, with_year=False)}"
