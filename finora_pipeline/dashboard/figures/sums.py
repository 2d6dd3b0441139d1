"""The sums behind Overview: totals of spans, models of the period, cells of the chart."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from finora_pipeline.dashboard.figures import formats
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.snapshots import UserSnapshot
from finora_pipeline.warehouse.periods import SPARKLINE_DAYS

# Models with a colour of their own; the others are stacked as one.
MODELS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Sums:
    """Totals of a span of UTC days.

    `usd` is the spend, `top_usd` the top model's, `charged` the spend before credits, `covered` the part of
    it that is billed by token with known tokens.
    """

    days: int
    usd: Decimal = Decimal(0)
    top_usd: Decimal | None = None
    covered: Decimal = Decimal(0)
    input_tokens: int = 0
    output_tokens: int = 0
    charged: Decimal = Decimal(0)

    @property
    def daily_usd(self) -> Decimal | None:
        return formats.ratio(self.usd, self.days)

    @property
    def per_1k_tokens(self) -> Decimal | None:
        """USD of the covered spend for 1,000 of its tokens."""
        return formats.ratio(self.covered, self.input_tokens + self.output_tokens, per=1000)

    @property
    def top_share(self) -> Decimal | None:
        return formats.ratio(self.top_usd, self.charged)


@dataclass(frozen=True, slots=True)
class Months:
    """This month so far, and the same days of the last month."""

    first: date
    last: date
    before_first: date
    before_last: date

    @classmethod
    def of(cls, today: date) -> "Months":
        first = today.replace(day=1)
        before_end = first - timedelta(days=1)
        before_first = before_end.replace(day=1)
        return cls(first, today, before_first, min(before_first + (today - first), before_end))


@dataclass(frozen=True, slots=True)
class OverviewSums:
    """All sums of a view, as `sql/overview.sql` returns them.

    `models` holds the USD of each model of the period, highest first; `cells` the USD of each bar's first day
    and model, None for all models without a colour; `daily` the last days, None before the first known one.
    """

    period: Sums
    previous: Sums | None
    daily: Sequence[Sums | None]
    month: Sums
    month_before: Sums
    models: dict[str, Decimal]
    cells: dict[tuple[date, str | None], Decimal]
    known_since: date | None


def read_sums(snapshot: UserSnapshot, view: View, months: Months) -> OverviewSums:
    """Read the sums of a view in one query."""
    spans: dict[tuple[str, date], Sequence[Any]] = {}
    models: dict[str, Decimal] = {}
    cells: dict[tuple[date, str | None], Decimal] = {}
    for part, at, model, usd, *more in _rows(snapshot, view, months):
        if part == "model":
            models[model] = usd
        elif part == "chart":
            cells[at, model] = usd
        else:
            spans[part, at] = (usd, *(number or 0 for number in more))

    def sums(part: str, first: date, days: int = 1) -> Sums:
        return Sums(days, *spans.get((part, first), ()))

    known_since = snapshot.span[0]
    previous_days = (view.previous_last - view.previous_first).days + 1
    previous = sums("previous", view.previous_first, previous_days)
    has_previous = known_since is not None and known_since <= view.previous_first
    days = [view.last - timedelta(days=SPARKLINE_DAYS - 1 - number) for number in range(SPARKLINE_DAYS)]
    return OverviewSums(
        period=sums("now", view.first, view.days),
        previous=previous if has_previous else None,
        # Days before the first known one have no figure, not even zero.
        daily=[sums("day", day) if known_since and day >= known_since else None for day in days],
        month=sums("month", months.first),
        month_before=sums("month before", months.before_first),
        models=dict(sorted(models.items(), key=lambda item: (-item[1], item[0]))),
        cells=cells,
        known_since=known_since,
    )


def _rows(snapshot: UserSnapshot, view: View, months: Months) -> list[tuple[Any, ...]]:
    sparkline_first = view.last - timedelta(days=SPARKLINE_DAYS - 1)
    values = {
        "first": view.first,
        "last": view.last,
        "model": view.model,
        "project_id": view.project_id,
        "from": min(view.previous_first, months.before_first, sparkline_first),
        "sparkline_first": sparkline_first,
        "until": max(view.last, months.last),
        "bucket": view.bucket,
        # A single model left over is named, not shown as the only other one.
        "named": MODELS_SHOWN + 1,
        "previous_first": view.previous_first,
        "previous_last": view.previous_last,
        "month_first": months.first,
        "month_before_first": months.before_first,
        "month_before_last": months.before_last,
        "today": months.last,
    }
    return snapshot.rows_over("project_days" if view.project_id else "model_days", "overview", **values)
