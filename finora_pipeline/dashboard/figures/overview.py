"""What Overview shows of a view: tiles, the chart by model, and the breakdowns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from finora_pipeline.dashboard.figures import formats
from finora_pipeline.dashboard.figures.bars import Chart, bar_starts, stacked_chart
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.figures.sums import (
    MODELS_SHOWN,
    ModelSum,
    Months,
    OverviewSums,
    Sums,
    read_sums,
)
from finora_pipeline.dashboard.figures.tiles import Tile, make_tiles
from finora_pipeline.dashboard.snapshots import TodaySoFar, UserSnapshot

ROWS_SHOWN = 100
OTHER = "Other"
_BREAKDOWNS = (("Project", "project"), ("Member", "member"), ("API key", "api_key"))
# Part, id, name, whether allocated, USD, and USD before credits.
BreakdownRow = tuple[str, str | None, str | None, bool, Decimal, Decimal]


@dataclass(frozen=True, slots=True)
class Part:
    """A row of a breakdown: name, USD, USD and share before credits, query of its link."""

    name: str
    usd: Decimal
    charges: Decimal
    share: Decimal | None
    query: str | None = None
    is_model: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The period's spend by one dimension, highest first; its rows add up to the whole."""

    title: str
    rows: Sequence[Part]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """The figures of the page, and the spend of today so far, which is part of none of them.

    `is_compared` says whether the whole previous period is known, without which nothing is compared.
    `project_name` names the project that the view is filtered by; `empty_text` stands where no spend is.
    """

    sums: Sums
    is_compared: bool
    today: TodaySoFar | None
    tiles: Sequence[Tile]
    chart: Chart
    breakdowns: Sequence[Breakdown]
    project_name: str | None
    empty_text: str


def compute_overview(snapshot: UserSnapshot, view: View) -> Overview:
    """Compute all that Overview shows of a view."""
    months = Months.of(view.through)
    sums = read_sums(snapshot, view, months)
    charged = sums.period.charges
    rows: list[BreakdownRow] = snapshot.rows(
        "breakdowns", first=view.first, last=view.last, model=view.model, project_id=view.project_id
    )
    breakdowns = [_by_model(sums.models, charged, view)]
    breakdowns += [_breakdown(title, part, rows, charged, view) for title, part in _BREAKDOWNS]
    names = {id: name for part, id, name, *_ in rows if part == "project"}
    return Overview(
        sums.period,
        sums.previous.known_days == (view.previous_last - view.previous_first).days + 1,
        snapshot.today_so_far(view.today, view.model, view.project_id),
        make_tiles(view, sums, months),
        _cost_chart(sums, view),
        breakdowns,
        names.get(view.project_id) if view.project_id else None,
        view.no_spend_text(sums.period.known_days),
    )


def _cost_chart(sums: OverviewSums, view: View) -> Chart:
    """The bars by model, highest first; models without a colour are one part."""
    models = [*sums.models]
    shown = models[:MODELS_SHOWN] if len(models) > MODELS_SHOWN + 1 else models
    cells: dict[tuple[date, str], Decimal] = {}
    for (start, model), usd in sums.cells.items():
        key = (start, model if model is not None and model in shown else OTHER)
        cells[key] = formats.total([cells.get(key), usd])
    names = shown if len(shown) == len(models) else [*shown, OTHER]
    grid = [[cells.get((start, name), Decimal(0)) for name in names] for start in bar_starts(view)]
    return stacked_chart(view, names, grid, formats.usd, formats.axis_usd, "Cost by model", sums.known_days)


def _by_model(models: Mapping[str, ModelSum], charged: Decimal, view: View) -> Breakdown:
    parts = [
        Part(
            model,
            one.usd,
            one.charges,
            formats.ratio(one.charges, charged),
            view.query(model=model),
            is_model=True,
        )
        for model, one in models.items()
    ]
    return Breakdown("Model", _shortened(parts, charged))


def _breakdown(
    title: str, part: str, rows: Sequence[BreakdownRow], charged: Decimal, view: View
) -> Breakdown:
    own = [row for row in rows if row[0] == part and (row[1] is not None or row[4] or row[5])]
    parts = [
        Part(
            "Unattributed" if id is None or name is None else name,
            usd,
            charges,
            formats.ratio(charges, charged),
            view.query(project=id) if part == "project" and id else None,
            note="" if id is None or name == id else id,
        )
        for _, id, name, _, usd, charges in own
    ]
    is_allocated = any(allocated for *_, allocated, _, _ in own)
    note = "Estimated from usage where OpenAI doesn’t say who incurred a charge." if is_allocated else ""
    return Breakdown(title, _shortened(parts, charged), note)


def _shortened(parts: list[Part], charged: Decimal) -> list[Part]:
    if len(parts) <= ROWS_SHOWN + 1:
        return parts
    rest = formats.total([part.usd for part in parts[ROWS_SHOWN:]])
    charges = formats.total([part.charges for part in parts[ROWS_SHOWN:]])
    name = f"{len(parts) - ROWS_SHOWN} more"
    return [*parts[:ROWS_SHOWN], Part(name, rest, charges, formats.ratio(charges, charged))]
