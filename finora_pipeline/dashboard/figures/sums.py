"""The sums behind Overview: totals of spans, models of the period, cells of the chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from finora_pipeline.dashboard.figures.bars import known_bars
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.known_days import days_between
from finora_pipeline.dashboard.snapshots import UserSnapshot
from finora_pipeline.warehouse.kpis import MONTH, OVERVIEW, period_of
from finora_pipeline.warehouse.periods import SPARKLINE_DAYS

# Models with a colour of their own; the others are stacked as one.
MODELS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Sums:
    """The figures of a span of UTC days, as `warehouse.kpis` defines them.

    `charges` are the amounts above zero in USD, `known_days` the days whose costs are known, and `usage_days`
    those whose usage is. `covered_share` is the share of the charges that cost_per_1k_tokens covers, `growth`
    the change since the span before. `values` and `changes` are by metric.
    """

    top_model: str | None
    charges: Decimal
    known_days: int
    usage_days: int
    covered_share: Decimal | None
    growth: Decimal | None
    values: Mapping[str, Decimal | None]
    changes: Mapping[str, Decimal | None]

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "Sums":
        """The figures in a row's columns after part and day."""
        top_model, _, charges, known_days, usage_days, covered_share, growth, *figures = row
        count = len(OVERVIEW)
        return cls(
            top_model,
            charges,
            known_days,
            usage_days,
            covered_share,
            growth,
            dict(zip(OVERVIEW, figures[:count], strict=True)),
            dict(zip(OVERVIEW, figures[count:], strict=True)),
        )

    @property
    def net(self) -> Decimal | None:
        """Charges and credits together in USD; None if no day is known."""
        return self.values["total_spend"]

    @property
    def credits(self) -> Decimal:
        """The amounts below zero in USD."""
        return (self.net or Decimal(0)) - self.charges


@dataclass(frozen=True, slots=True)
class Months:
    """The month of the last complete day up to it, and the same days of the month before."""

    first: date
    last: date
    before_first: date
    before_last: date

    @classmethod
    def of(cls, through: date) -> "Months":
        month = period_of(MONTH, through)
        return cls(month.first, month.last, month.previous_first, month.previous_last)


@dataclass(frozen=True, slots=True)
class ModelSum:
    """The spend of a model in the period, and the part of it before credits, in USD."""

    usd: Decimal
    charges: Decimal


@dataclass(frozen=True, slots=True)
class OverviewSums:
    """All sums of a view, as `sql/overview.sql` returns them.

    `models` are those of the period, highest first; `cells` the USD of each bar's first day and model, None
    for all models without a colour; `known_days` how many days of each bar are known; `daily` the last days,
    None for an unknown one.
    """

    period: Sums
    previous: Sums
    daily: Sequence[Sums | None]
    month: Sums
    month_before: Sums
    models: dict[str, ModelSum]
    cells: dict[tuple[date, str | None], Decimal]
    known_days: dict[date, int]


def read_sums(snapshot: UserSnapshot, view: View, months: Months) -> OverviewSums:
    """Read the sums of a view in one query."""
    spans: dict[tuple[str, date], Sums] = {}
    models: dict[str, ModelSum] = {}
    cells: dict[tuple[date, str | None], Decimal] = {}
    for part, at, *row in _rows(snapshot, view, months):
        if part == "model":
            model, usd, charges, *_ = row
            models[model] = ModelSum(usd, charges or Decimal(0))
        elif part == "chart":
            cells[at, row[0]] = row[1]
        else:
            spans[part, at] = Sums.of_row(row)
    daily = [spans["day", day] for day in _sparkline_days(view)]
    return OverviewSums(
        period=spans["now", view.first],
        previous=spans["previous", view.previous_first],
        daily=[day if day.known_days else None for day in daily],
        month=spans["month", months.first],
        month_before=spans["month before", months.before_first],
        models=dict(sorted(models.items(), key=lambda item: (-item[1].usd, item[0]))),
        cells=cells,
        known_days=known_bars(view, snapshot.known_days(view.today)),
    )


def _sparkline_days(view: View) -> list[date]:
    return days_between(view.last - timedelta(days=SPARKLINE_DAYS - 1), view.last)


def _rows(snapshot: UserSnapshot, view: View, months: Months) -> list[tuple[Any, ...]]:
    spans = [
        ("now", view.first, view.last, "previous"),
        ("previous", view.previous_first, view.previous_last, None),
        ("month", months.first, months.last, "month before"),
        ("month before", months.before_first, months.before_last, None),
        *(("day", day, day, None) for day in _sparkline_days(view)),
    ]
    parts, firsts, lasts, prior_parts = zip(*spans, strict=True)
    known = snapshot.known_days(view.today)
    values = {
        "parts": parts,
        "span_firsts": firsts,
        "span_lasts": lasts,
        "prior_parts": prior_parts,
        "known_days": [known.costs.number(first, last) for _, first, last, _ in spans],
        "usage_days": [known.usage.number(first, last) for _, first, last, _ in spans],
        "first": view.first,
        "last": view.last,
        "model": view.model,
        "project_id": view.project_id,
        "from": min(firsts),
        "until": max(lasts),
        "bucket": view.bucket,
        # A single model left over is named, not shown as the only other one.
        "named": MODELS_SHOWN + 1,
    }
    return snapshot.rows_over("project_days" if view.project_id else "model_days", "overview", **values)
