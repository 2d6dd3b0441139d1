"""The key figures, each defined once in SQL over the sums of a span of UTC days, and the named periods.

`user_metrics` and the dashboard's Overview fill these definitions into their queries. A definition reads the
sums of its span as `this`, and of the span before as `prior`:

    days, known_days, usage_days          days of the span; with known costs; with known usage
    total, charges, credits               Σ of all amounts, of those above zero, of those below
    top_usd                               the charges of the model with the highest
    covered                               billed by the token, of models with tokens, without moderation
    requested                             charges of models with requests, without moderation
    input_tokens, output_tokens, requests all usage
    unit_tokens, unit_requests            without moderation, which is free

`everywhere` has the charges of all providers. Money in USD.
"""

from dataclasses import dataclass
from datetime import date, timedelta

from finora_pipeline.warehouse.periods import USAGE_KNOWN_BY

# Figures that a page shows as tiles, in the order of the page.
OVERVIEW = (
    *("total_spend", "average_daily_cost", "cost_per_1k_tokens", "input_tokens", "output_tokens"),
    "top_model_share",
)
# The named periods that end with the last complete day, by their number of days; the others are months and
# chosen days.
LENGTHS = {"7d": 7, "30d": 30, "90d": 90}
MONTH = "month"
# Spend of today; the only figure of a day that is not complete.
TODAY_SO_FAR = "today_so_far"
# How a change is given: relative to the size of the previous value, or as a difference of shares.
RELATIVE, POINTS = "relative", "points"


@dataclass(frozen=True, slots=True)
class Kpi:
    """A key figure: its name in `user_metrics`, its unit, and its definition in SQL.

    `change` is RELATIVE, POINTS or None. A sum changes only between wholly known spans.
    """

    metric: str
    unit: str
    sql: str
    change: str | None = RELATIVE
    is_sum: bool = False


def _sum(metric: str, unit: str, sql: str, known: str = "this.known_days") -> Kpi:
    return Kpi(metric, unit, f"CASE WHEN {known} > 0 THEN ({sql})::DECIMAL(38, 18) END", is_sum=True)


_USED = "this.usage_days"
TOKENS = "this.input_tokens + this.output_tokens"
KPIS = (
    _sum("total_spend", "usd", "this.total"),
    _sum("charges", "usd", "this.charges"),
    _sum("credits", "usd", "this.credits"),
    Kpi(
        "average_daily_cost",
        "usd",
        # A day's average is its total, which a ratio of very large numbers could not hold.
        "CASE this.known_days WHEN 1 THEN this.total::DECIMAL(38, 18) "
        "ELSE try(exact_ratio(this.total, this.known_days)) END",
    ),
    Kpi(
        "cost_per_1k_tokens",
        "usd_per_1k_tokens",
        "try(exact_ratio(this.covered, this.unit_tokens, per := 1000))",
    ),
    _sum("input_tokens", "tokens", "this.input_tokens", _USED),
    _sum("output_tokens", "tokens", "this.output_tokens", _USED),
    _sum("tokens", "tokens", TOKENS, _USED),
    _sum("requests", "requests", "this.requests", _USED),
    Kpi("tokens_per_hour", "tokens_per_hour", f"try(exact_ratio({TOKENS}, 24 * {_USED}))"),
    Kpi("cost_per_request", "usd_per_request", "try(exact_ratio(this.total, this.unit_requests))"),
    Kpi("top_model_share", "ratio", "share_of(this.top_usd, this.charges)", POINTS),
    Kpi("provider_share", "ratio", "share_of(this.charges, everywhere.charges)", POINTS),
    # A growth has no change of its own. NULL unless both spans are wholly known.
    Kpi(
        "month_over_month",
        "ratio",
        "CASE WHEN this.known_days = this.days AND prior.known_days = prior.days "
        "THEN change_of(this.total, prior.total) END",
        None,
    ),
)
DEFINITIONS = {kpi.metric: kpi.sql for kpi in KPIS}
CHANGES = {kpi.metric: kpi.change for kpi in KPIS}
# The share of the charges that a unit cost covers.
COVERED_SHARES = {
    "cost_per_1k_tokens": "share_of(this.covered, this.charges)",
    "cost_per_request": "share_of(this.requested, this.charges)",
}


def _change(kpi: Kpi) -> str:
    """The change of a figure since the span before, if that is wholly known, and this one enough."""
    if kpi.change is None:
        return "NULL::DECIMAL(38, 18)"
    known = "this.known_days = this.days" if kpi.is_sum else "2 * this.known_days >= this.days"
    change = (
        f"this.{kpi.metric} - prior.{kpi.metric}"
        if kpi.change == POINTS
        else f"change_of(this.{kpi.metric}, prior.{kpi.metric})"
    )
    return f"CASE WHEN prior.known_days = prior.days AND {known} THEN {change} END"


def _definitions(metrics: tuple[str, ...] | None = None) -> str:
    wanted = [kpi for kpi in KPIS if metrics is None or kpi.metric in metrics]
    return ",\n    ".join(f"{kpi.sql} AS {kpi.metric}" for kpi in wanted)


def _figure(kpi: Kpi) -> str:
    unit = f"'{kpi.change}'" if kpi.change else "NULL"
    covered = f"this.covered_{kpi.metric}" if kpi.metric in COVERED_SHARES else "NULL"
    previous = (
        f"CASE WHEN prior.known_days = prior.days THEN prior.{kpi.metric} END" if kpi.change else "NULL"
    )
    sparkline = f"[day.{kpi.metric} FOR day IN sparks.days]" if kpi.change else "NULL::DECIMAL(38, 18)[]"
    return (
        f"{{'metric': '{kpi.metric}', 'unit': '{kpi.unit}', 'change_unit': {unit}::VARCHAR, "
        f"'value': this.{kpi.metric}, 'previous_value': ({previous})::DECIMAL(38, 18), "
        f"'change': {_change(kpi)}, 'covered_share': {covered}::DECIMAL(38, 18), "
        f"'sparkline': {sparkline}}}"
    )


_SHOWN = [kpi for kpi in KPIS if kpi.metric in OVERVIEW]
# What stands for `{name}` in the queries.
KPI_TEXTS = {
    "today_so_far": TODAY_SO_FAR,
    "covered_share": COVERED_SHARES["cost_per_1k_tokens"],
    "covered_shares": ",\n    ".join(
        f"CASE this.side WHEN 1 THEN {sql} END AS covered_{metric}" for metric, sql in COVERED_SHARES.items()
    ),
    "kpi_values": _definitions(),
    "kpi_figures": ",\n            ".join(map(_figure, KPIS)),
    "overview_values": _definitions(OVERVIEW),
    "growth": DEFINITIONS["month_over_month"],
    "overview_columns": ", ".join(f"this.{kpi.metric}" for kpi in _SHOWN),
    "overview_changes": ", ".join(map(_change, _SHOWN)),
    # Days, days with usage, covered share and growth, then a value and a change of each figure.
    "overview_nulls": ", ".join(["NULL"] * (2 * len(OVERVIEW) + 4)),
    "usage_known_by": USAGE_KNOWN_BY,
}


@dataclass(frozen=True, slots=True)
class Period:
    """Some UTC days, both ends included, and those that they are compared with."""

    first: date
    last: date
    previous_first: date
    previous_last: date


def period_of(name: str, through: date, kept_from: date = date.min) -> Period:
    """The period of a name that ends with the last complete day, without days before `kept_from`.

    A month is compared with the same days of the month before, others with the equally long span before.
    Raises `KeyError`.
    """
    first = through.replace(day=1) if name == MONTH else through - timedelta(days=LENGTHS[name] - 1)
    first = max(first, kept_from)
    return same_days_of_month_before(first, through) if name == MONTH else _equal_spans(first, through)


def span_of(first: date, last: date) -> Period:
    """Chosen days, compared with the equally long span before; a calendar month with the month before."""
    if first.day == 1 and last == _last_of_month(first):
        previous_last = first - timedelta(days=1)
        return Period(first, last, previous_last.replace(day=1), previous_last)
    return _equal_spans(first, last)


def _equal_spans(first: date, last: date) -> Period:
    previous_last = first - timedelta(days=1)
    return Period(first, last, previous_last - (last - first), previous_last)


def same_days_of_month_before(first: date, last: date) -> Period:
    """Days of a month, compared with the same days of the month before, fewer where that is shorter."""
    end = first.replace(day=1) - timedelta(days=1)
    return Period(
        first, last, end.replace(day=min(first.day, end.day)), end.replace(day=min(last.day, end.day))
    )


def _last_of_month(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
