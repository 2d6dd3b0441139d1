"""What a model's page shows: cost, tokens and effective prices by token type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import NamedTuple

from finora_pipeline.dashboard.figures import charts, formats
from finora_pipeline.dashboard.figures.bars import (
    Chart,
    Format,
    bar_label,
    bar_starts,
    first_column,
    known_bars,
    stacked_chart,
    ticks,
)
from finora_pipeline.dashboard.figures.periods import View
from finora_pipeline.dashboard.snapshots import UserSnapshot

# Values of `direction` in daily_costs, in the order of the page; `other` stands for any further one.
DIRECTIONS = ("input", "cached_input", "cache_write", "cache_write_12h", "output", "training", "other")


class Cell(NamedTuple):
    """A bar's part for a token type: USD, tokens, and the USD of charges with known tokens."""

    usd: Decimal = Decimal(0)
    tokens: Decimal | None = None
    priced_usd: Decimal | None = None


class TokenType(NamedTuple):
    """A row of the page's table: cost in USD, tokens, and USD for a million of them."""

    name: str
    usd: Decimal
    tokens: Decimal | None
    per_million: Decimal | None


@dataclass(frozen=True, slots=True)
class ModelPage:
    """The figures of the page; `empty_text` stands where there are none."""

    total_usd: Decimal
    cost: Chart
    tokens: Chart
    price: Chart
    token_types: Sequence[TokenType]
    empty_text: str


Cells = Mapping[tuple[date, str], Cell]


def compute_model(snapshot: UserSnapshot, view: View) -> ModelPage:
    """Compute all that the page of the view's model shows."""
    rows = snapshot.rows(
        "model",
        first=view.first,
        last=view.last,
        model=view.model,
        project_id=view.project_id,
        bucket=view.bucket,
        directions=list(DIRECTIONS),
    )
    cells: Cells = {
        (at, direction): Cell(usd or Decimal(0), tokens, priced)
        for at, direction, usd, tokens, priced in rows
    }
    shown = [one for one in DIRECTIONS if any(direction == one for _, direction in cells)]
    known = known_bars(view, snapshot.known_days(view.today))
    return ModelPage(
        formats.total([cell.usd for cell in cells.values()]),
        _stacked(view, shown, cells, "usd", formats.usd, formats.axis_usd, "Cost by token type", known),
        _stacked(view, shown, cells, "tokens", formats.count, formats.count, "Tokens by type", known),
        _price_chart(view, shown, cells),
        [_token_type(direction, cells) for direction in shown],
        view.no_spend_text(sum(known.values())),
    )


def _stacked(
    view: View,
    shown: Sequence[str],
    cells: Cells,
    measure: str,
    format_value: Format,
    format_step: Format,
    title: str,
    known_days: Mapping[date, int],
) -> Chart:
    grid = [
        [getattr(cells.get((start, direction), Cell()), measure) for direction in shown]
        for start in bar_starts(view)
    ]
    names = [_name(one) for one in shown]
    return stacked_chart(view, names, grid, format_value, format_step, title, known_days)


def _price_chart(view: View, shown: Sequence[str], cells: Cells) -> Chart:
    starts = bar_starts(view)
    prices: list[tuple[str, list[Decimal | None]]] = []
    for direction in shown:
        series = [_per_million(cells.get((start, direction), Cell())) for start in starts]
        if any(value is not None for value in series):
            prices.append((_name(direction), series))
    known = [value for _, series in prices for value in series if value is not None]
    tips = []
    for number, start in enumerate(starts):
        parts = [f"{name}: {formats.price(series[number])}" for name, series in prices]
        tips.append("\n".join([bar_label(view, start), *parts]))
    return Chart(
        svg=charts.lines(prices, tips, "Effective price per million tokens"),
        scale=[formats.price(step) for step in charts.scale_of(known).steps] if known else [],
        ticks=ticks(starts),
        legend=[name for name, _ in prices],
        columns=[first_column(view), *(name for name, _ in prices)],
        rows=[
            [start.isoformat(), *(formats.price(series[number]) for _, series in prices)]
            for number, start in enumerate(starts)
        ],
    )


def _token_type(direction: str, cells: Cells) -> TokenType:
    own = [cell for (_, other), cell in cells.items() if other == direction]
    has_tokens = any(cell.tokens is not None for cell in own)
    tokens = formats.total([cell.tokens for cell in own]) if has_tokens else None
    priced = formats.total([cell.priced_usd for cell in own])
    usd = formats.total([cell.usd for cell in own])
    return TokenType(_name(direction), usd, tokens, formats.ratio(priced, tokens, per=1_000_000))


def _per_million(cell: Cell) -> Decimal | None:
    return None if cell.priced_usd is None else formats.ratio(cell.priced_usd, cell.tokens, per=1_000_000)


def _name(direction: str) -> str:
    return "not token-based" if direction == "other" else direction.replace("_", " ")
