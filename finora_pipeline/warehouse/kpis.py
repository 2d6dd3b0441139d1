"""The key figures, each defined once in SQL over the sums of a span of UTC days, and the named periods.

`user_metrics` and the dashboard's Overview fill these definitions into their queries. A definition reads the
sums of its span as `this`: days, total, charges (without credits), covered (billed by token, with known
tokens), top_usd (the top model's), input_tokens, output_tokens, requests; the total of the span before as
`prior`, and of all providers as `everywhere`. Money in USD.
"""

from dataclasses import dataclass
from datetime import date, timedelta

# Figures that a page shows as tiles, in the order of the page.
OVERVIEW = (
    *("total_spend", "average_daily_cost", "cost_per_1k_tokens", "input_tokens", "output_tokens"),
    "top_model_share",
)
# The named periods that end today, by their number of days; the others are months and chosen days.
LENGTHS = {"7d": 7, "30d": 30, "90d": 90}
MONTH = "month"


@dataclass(frozen=True, slots=True)
class Kpi:
    """A key figure: its name in `user_metrics`, its unit, and its definition in SQL."""

    metric: str
    unit: str
    sql: str


TOKENS = "(this.input_tokens + this.output_tokens)"
KPIS = (
    Kpi("total_spend", "usd", "this.total::DECIMAL(38, 18)"),
    Kpi(
        "average_daily_cost",
        "usd",
        # A day's average is its total, which a ratio of very large numbers could not hold.
        "CASE this.days WHEN 1 THEN this.total::DECIMAL(38, 18) "
        "ELSE try(exact_ratio(this.total, this.days)) END",
    ),
    Kpi(
        "cost_per_1k_tokens",
        "usd_per_1k_tokens",
        f"try(exact_ratio(this.covered, {TOKENS}, per := 1000))",
    ),
    Kpi("input_tokens", "tokens", "this.input_tokens::DECIMAL(38, 18)"),
    Kpi("output_tokens", "tokens", "this.output_tokens::DECIMAL(38, 18)"),
    Kpi("tokens", "tokens", f"{TOKENS}::DECIMAL(38, 18)"),
    Kpi("requests", "requests", "this.requests::DECIMAL(38, 18)"),
    Kpi("tokens_per_hour", "tokens_per_hour", f"try(exact_ratio({TOKENS}, 24 * this.days))"),
    Kpi("cost_per_request", "usd_per_request", "try(exact_ratio(this.total, this.requests))"),
    Kpi("top_model_share", "ratio", "share_of(this.top_usd, this.charges)"),
    Kpi("provider_share", "ratio", "share_of(this.total, everywhere.total)"),
    Kpi("month_over_month", "ratio", "share_of(this.total - prior.total, prior.total)"),
)
DEFINITIONS = {kpi.metric: kpi.sql for kpi in KPIS}
# The share of the charges that cost_per_1k_tokens covers.
COVERED_SHARE = "share_of(this.covered, this.charges)"


def _change(metric: str) -> str:
    return f"share_of(this.{metric} - prior.{metric}, prior.{metric})"


def _definitions(metrics: tuple[str, ...] | None = None) -> str:
    wanted = [kpi for kpi in KPIS if metrics is None or kpi.metric in metrics]
    return ",\n    ".join(f"{kpi.sql} AS {kpi.metric}" for kpi in wanted)


# What stands for `{name}` in the queries.
KPI_TEXTS = {
    "covered_share": COVERED_SHARE,
    "kpi_values": _definitions(),
    "kpi_figures": ",\n            ".join(
        f"figure('{kpi.metric}', '{kpi.unit}', this, before, days)" for kpi in KPIS
    ),
    "overview_values": _definitions((*OVERVIEW, "month_over_month")),
    "overview_columns": ", ".join(f"this.{metric}" for metric in OVERVIEW),
    "overview_changes": ", ".join(map(_change, OVERVIEW)),
    "overview_nulls": ", ".join(["NULL"] * (2 * len(OVERVIEW) + 3)),
}


@dataclass(frozen=True, slots=True)
class Period:
    """Some UTC days, both ends included, and those that they are compared with."""

    first: date
    last: date
    previous_first: date
    previous_last: date


def period_of(name: str, today: date, kept_from: date = date.min) -> Period:
    """The period of a name that ends today, without days before `kept_from`. Raises `KeyError`.

    A month is compared with the same days of the month before, others with the equally long span before.
    """
    first = today.replace(day=1) if name == MONTH else today - timedelta(days=LENGTHS[name] - 1)
    first = max(first, kept_from)
    return same_days_of_month_before(first, today) if name == MONTH else span_of(first, today)


def span_of(first: date, last: date) -> Period:
    """These days, compared with the equally long span before."""
    previous_last = first - timedelta(days=1)
    return Period(first, last, previous_last - (last - first), previous_last)


def same_days_of_month_before(first: date, last: date) -> Period:
    """Days of a month, compared with the same days of the month before, fewer where that is shorter."""
    end = first.replace(day=1) - timedelta(days=1)
    return Period(
        first, last, end.replace(day=min(first.day, end.day)), end.replace(day=min(last.day, end.day))
    )
