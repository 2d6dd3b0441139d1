"""Charts with the texts around them: stacked bars, their scale, legend and table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal

from markupsafe import Markup

from finora_pipeline.dashboard.figures import charts, formats
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.known_days import KnownDays

Format = Callable[[Decimal | None], str]


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart: labels of its scale (from the top) and days, legend, table of its values.

    `has_unknown` says that some bars are hatched.
    """

    svg: Markup
    scale: Sequence[str]
    ticks: Sequence[str]
    legend: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    has_unknown: bool = False


def stacked_chart(
    view: View,
    names: Sequence[str],
    grid: Sequence[Sequence[Decimal | None]],
    format_value: Format,
    format_step: Format,
    title: str,
    known_days: Mapping[date, int],
) -> Chart:
    """Draw bars stacked of named parts.

    `grid` has a row for each of `bar_starts`, and in it a value for each of `names`; `known_days` has how
    many days of each bar are known. A bar without any is hatched, and a dash in the table.
    """
    starts = bar_starts(view)
    bars, rows, totals = [], [], []
    for start, cells in zip(starts, grid, strict=True):
        label = bar_label(view, start)
        first, last = bar_span(view, start)
        known, days = known_days[start], (last - first).days + 1
        if not known:
            bars.append(charts.Bar(label, [], f"{label}: unknown", is_known=False))
            rows.append([start.isoformat(), *["–"] * (len(names) + 1)])
            continue
        total = formats.total(list(cells))
        label += f" ({known} of {days} days known)" if known < days else ""
        parts = [f"{name}: {format_value(cell)}" for name, cell in zip(names, cells, strict=True) if cell]
        tip = "\n".join([f"{label}: {format_value(total)}", *parts])
        bars.append(charts.Bar(label, [cell or Decimal(0) for cell in cells], tip))
        rows.append([start.isoformat(), format_value(total), *map(format_value, cells)])
        totals.append(total)
    return Chart(
        svg=charts.stacked_bars(bars, f"{title}, {formats.day_range(view.first, view.last)}"),
        scale=[format_step(step) for step in charts.scale_of(totals).steps],
        ticks=ticks(starts),
        legend=names,
        columns=[first_column(view), "Total", *names],
        rows=rows,
        has_unknown=not all(bar.is_known for bar in bars),
    )


def bar_starts(view: View) -> list[date]:
    """The first day of each bar, as DuckDB's date_trunc returns it."""
    day = view.first
    if view.bucket == "week":
        day -= timedelta(days=day.weekday())
    elif view.bucket == "month":
        day = day.replace(day=1)
    starts = []
    while day <= view.last:
        starts.append(day)
        if view.bucket == "month":
            day = (day + timedelta(days=31)).replace(day=1)
        else:
            day += timedelta(days=1 if view.bucket == "day" else 7)
    return starts


def bar_span(view: View, start: date) -> tuple[date, date]:
    """The first and last day of the view that a bar covers."""
    last = {
        "day": start,
        "week": start + timedelta(days=6),
        "month": (start + timedelta(days=31)).replace(day=1) - timedelta(days=1),
    }[view.bucket]
    return max(start, view.first), min(last, view.last)


def known_bars(view: View, known: KnownDays) -> dict[date, int]:
    """How many days of each bar are known, by its first day."""
    return {start: known.costs.number(*bar_span(view, start)) for start in bar_starts(view)}


def bar_label(view: View, start: date) -> str:
    """The name of a bar: `Tue, Nov 24, 2026`, or `from Nov 23, 2026` for several days."""
    return f"{start:%a}, {formats.day(start)}" if view.bucket == "day" else f"from {formats.day(start)}"


def first_column(view: View) -> str:
    """The heading of the bars' column in a chart's table."""
    return "Day" if view.bucket == "day" else "From"


def ticks(starts: Sequence[date]) -> list[str]:
    """Labels of the first, middle and last bar."""
    if len(starts) < 3:
        return [formats.short_day(start) for start in starts]
    return [formats.short_day(starts[index]) for index in (0, len(starts) // 2, len(starts) - 1)]
