"""The sums behind Overview: totals of spans, models of the period, cells of the chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.snapshots import UserSnapshot
from finora_pipeline.warehouse.kpis import MONTH, OVERVIEW, period_of
from finora_pipeline.warehouse.periods import SPARKLINE_DAYS

# Models with a colour of their own; the others are stacked as one.
MODELS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Sums:
    """The figures of a span of UTC days, as `warehouse.kpis` defines them.

    `charged` is the spend before credits in USD, `covered_share` the part of it that cost_per_1k_tokens
    covers, `growth` the relative change since the span before. `values` and `changes` are by metric.
    """

    charged: Decimal | None
    covered_share: Decimal | None
    growth: Decimal | None
    values: Mapping[str, Decimal | None]
    changes: Mapping[str, Decimal | None]

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "Sums":
        """The figures in a row's columns after the amount."""
        charged, covered_share, growth, *figures = row
        count = len(OVERVIEW)
        values, changes = figures[:count], figures[count:]
        return cls(
            charged,
            covered_share,
            growth,
            dict(zip(OVERVIEW, values, strict=True)),
            dict(zip(OVERVIEW, changes, strict=True)),
        )

    @property
    def usd(self) -> Decimal:
        return self.values["total_spend"] or Decimal(0)


@dataclass(frozen=True, slots=True)
class Months:
    """This month so far, and the same days of the last month."""

    first: date
    last: date
    before_first: date
    before_last: date

    @classmethod
    def of(cls, today: date) -> "Months":
        month = period_of(MONTH, today)
        return cls(month.first, month.last, month.previous_first, month.previous_last)


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
    spans: dict[tuple[str, date], Sums] = {}
    models: dict[str, Decimal] = {}
    cells: dict[tuple[date, str | None], Decimal] = {}
    for part, at, model, usd, *more in _rows(snapshot, view, months):
        if part == "model":
            models[model] = usd
        elif part == "chart":
            cells[at, model] = usd
        else:
            spans[part, at] = Sums.of_row(more)
    known_since = snapshot.span[0]
    has_previous = known_since is not None and known_since <= view.previous_first
    days = [view.last - timedelta(days=SPARKLINE_DAYS - 1 - number) for number in range(SPARKLINE_DAYS)]
    return OverviewSums(
        period=spans["now", view.first],
        previous=spans["previous", view.previous_first] if has_previous else None,
        # Days before the first known one have no figure, not even zero.
        daily=[spans["day", day] if known_since and day >= known_since else None for day in days],
        month=spans["month", months.first],
        month_before=spans["month before", months.before_first],
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
