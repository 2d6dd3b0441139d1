"""What Overview and a model's page show, computed from a copy: tiles, charts and breakdowns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from markupsafe import Markup

from finora_pipeline.dashboard import charts, formats
from finora_pipeline.dashboard.periods import View
from finora_pipeline.dashboard.snapshots import Copy
from finora_pipeline.warehouse.periods import SPARKLINE_DAYS

# Models with a colour of their own; the rest is stacked as one.
MODELS_SHOWN = 6
ROWS_SHOWN = 100
OTHERS = "others"
DIRECTIONS = ("input", "cached_input", "cache_write", "cache_write_12h", "output", "training", "other")


@dataclass(frozen=True, slots=True)
class Sums:
    """Totals of some days: USD, the dearest model's, the part charged by known tokens, tokens, and what was
    charged before credits."""

    days: int
    usd: Decimal = Decimal(0)
    top_usd: Decimal | None = None
    covered: Decimal = Decimal(0)
    input_tokens: int = 0
    output_tokens: int = 0
    charged: Decimal = Decimal(0)

    @property
    def a_day(self) -> Decimal | None:
        return formats.ratio(self.usd, self.days)

    @property
    def per_1k_tokens(self) -> Decimal | None:
        return formats.ratio(self.covered, self.input_tokens + self.output_tokens, per=1000)

    @property
    def top_share(self) -> Decimal | None:
        return formats.ratio(self.top_usd, self.charged)


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure with its change against the period before and its last 14 days; `note` says what else must be
    known of it, above all why there is none."""

    label: str
    value: str
    exact: str
    change: str
    change_note: str
    spark: Markup
    note: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A row of a breakdown: name, amount, share of what was charged, and where it leads."""

    name: str
    usd: Decimal
    share: Decimal | None
    query: str | None = None
    is_model: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Breakdown:
    title: str
    rows: Sequence[Part]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart with the words beside it: the scale, the names of its parts, a table of the same."""

    svg: Markup
    scale: Sequence[str]
    ticks: Sequence[str]
    legend: Sequence[str]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Overview:
    sums: Sums
    tiles: Sequence[Tile]
    chart: Chart
    breakdowns: Sequence[Breakdown]
    project_name: str | None


@dataclass(frozen=True, slots=True)
class ModelPage:
    sums_usd: Decimal
    cost: Chart
    tokens: Chart
    price: Chart
    directions: Sequence[tuple[str, Decimal, Decimal | None, Decimal | None]]


def overview(copy: Copy, view: View, today: date) -> Overview:
    """All that Overview shows of a view."""
    month_first = today.replace(day=1)
    before_last_day = month_first - timedelta(days=1)
    before_first = before_last_day.replace(day=1)
    before_last = min(before_first + (today - month_first), before_last_day)
    sparkline_first = view.last - timedelta(days=SPARKLINE_DAYS - 1)
    from_ = min(view.previous_first, before_first, sparkline_first)
    source = "project_days" if view.project_id else "model_days"
    values = {"first": view.first, "last": view.last, "model": view.model, "project_id": view.project_id}
    rows = copy.rows_over(
        source,
        "overview",
        **values,
        **{"from": from_},
        until=max(view.last, today),
        bucket=view.bucket,
        # One more would stand alone among the others: it is named instead.
        named=MODELS_SHOWN + 1,
        previous_first=view.previous_first,
        previous_last=view.previous_last,
        sparkline_first=sparkline_first,
        month_first=month_first,
        month_before_first=before_first,
        month_before_last=before_last,
        today=today,
    )
    spans: dict[tuple[str, date], Sequence[Any]] = {}
    models: dict[str, Decimal] = {}
    cells: dict[tuple[date, str | None], Decimal] = {}
    for part, at, model, usd, *more in rows:
        if part == "model":
            models[model] = usd
        elif part == "chart":
            cells[at, model] = usd
        else:
            spans[part, at] = (usd, *(number or 0 for number in more))

    def sums(part: str, first: date, days: int = 1) -> Sums:
        return Sums(days, *spans.get((part, first), ()))

    models = dict(sorted(models.items(), key=lambda item: (-item[1], item[0])))
    now = sums("now", view.first, view.days)
    previous_days = (view.previous_last - view.previous_first).days + 1
    previous = sums("previous", view.previous_first, previous_days)
    first_date = copy.span[0]
    is_previous_known = first_date is not None and first_date <= view.previous_first
    days = [view.last - timedelta(days=SPARKLINE_DAYS - 1 - number) for number in range(SPARKLINE_DAYS)]
    # Before the first day that is known there is no figure, not even zero.
    daily = [sums("day", day) if first_date and day >= first_date else None for day in days]
    month, before = sums("month", month_first), sums("month before", before_first)
    growth = _growth(month, before, first_date, before_first)
    tiles = _tiles(view, now, [*models], previous if is_previous_known else None, daily, growth)
    found = copy.rows("breakdowns", **values)
    breakdowns = [_by_model(models, now.charged, view)]
    breakdowns += [_breakdown(title, part, found, now.charged, view) for title, part in _BREAKDOWNS]
    names = {id: name for part, id, name, _, _ in found if part == "project"}
    chart = _cost_chart([*models], cells, view)
    return Overview(now, tiles, chart, breakdowns, names.get(view.project_id) if view.project_id else None)


def model_page(copy: Copy, view: View) -> ModelPage:
    """A model's cost and tokens by direction, and what a million tokens effectively cost over time."""
    rows = copy.rows(
        "model",
        first=view.first,
        last=view.last,
        model=view.model,
        project_id=view.project_id,
        bucket=view.bucket,
        directions=list(DIRECTIONS),
    )
    cells = {
        (at, direction): (usd or Decimal(0), tokens, priced) for at, direction, usd, tokens, priced in rows
    }
    shown = [d for d in DIRECTIONS if any(direction == d for _, direction in cells)]
    starts = _starts(view)
    nothing = (Decimal(0), None, None)

    def stack(pick: int, tell: Callable[[Decimal | None], str], title: str) -> Chart:
        grid = [[cells.get((at, d), nothing)[pick] for d in shown] for at in starts]
        return _stacked(view, starts, [_words(d) for d in shown], grid, tell, title)

    prices: list[tuple[str, list[Decimal | None]]] = []
    for d in shown:
        series = [_per_million(cells.get((at, d), nothing)) for at in starts]
        if any(value is not None for value in series):
            prices.append((_words(d), series))
    known = [value for _, series in prices for value in series if value is not None]
    tips = []
    for number, at in enumerate(starts):
        told = [f"{name}: {formats.price(series[number])}" for name, series in prices]
        tips.append("\n".join([_bar_name(view, at), *told]))
    price_chart = Chart(
        charts.lines(prices, tips, "Effective price per million tokens"),
        [formats.price(step) for step in charts.scale_of(known).steps] if known else [],
        _ticks(starts),
        [name for name, _ in prices],
        ["Day" if view.bucket == "day" else "From", *(name for name, _ in prices)],
        [
            [at.isoformat(), *(formats.price(series[n]) for _, series in prices)]
            for n, at in enumerate(starts)
        ],
    )
    directions = []
    for d in shown:
        mine = [cell for (_, direction), cell in cells.items() if direction == d]
        tokens = (
            formats.total([cell[1] for cell in mine]) if any(cell[1] is not None for cell in mine) else None
        )
        cost = formats.total([cell[0] for cell in mine])
        priced = formats.total([cell[2] for cell in mine])
        directions.append((_words(d), cost, tokens, formats.ratio(priced, tokens, per=1_000_000)))
    return ModelPage(
        formats.total([cell[0] for cell in cells.values()]),
        stack(0, formats.usd, "Cost by direction"),
        stack(1, formats.count, "Tokens by direction"),
        price_chart,
        directions,
    )


def _growth(
    month: Sums, before: Sums, first_date: date | None, before_first: date
) -> tuple[Decimal | None, str]:
    """The month so far against the same days of the month before, and why there is none."""
    if first_date is None or first_date > before_first:
        return None, "The costs known do not reach back to the start of last month."
    growth = formats.ratio(formats.minus(month.usd, before.usd), before.usd)
    if growth is not None:
        return growth, ""
    what = "was below zero" if before.usd < 0 else "cost nothing"
    return None, f"Last month {what} until this day."


def _tiles(
    view: View,
    now: Sums,
    models: Sequence[str],
    previous: Sums | None,
    daily: Sequence[Sums | None],
    growth: tuple[Decimal | None, str],
) -> list[Tile]:
    def tile(
        label: str,
        pick: Callable[[Sums], Decimal | int | None],
        tell: Callable[[Decimal | None], str],
        note: str = "",
    ) -> Tile:
        value = pick(now)
        before = pick(previous) if previous else None
        change = None
        if value is not None and before is not None:
            change = formats.ratio(formats.minus(Decimal(value), Decimal(before)), Decimal(before))
        told = [None if day is None or (one := pick(day)) is None else Decimal(one) for day in daily]
        return Tile(
            label,
            tell(None if value is None else Decimal(value)),
            formats.exact(None if value is None else Decimal(value)),
            formats.percent(change, signed=True),
            f"against {view.previous_first} to {view.previous_last}"
            if change is not None
            else "no figure for the period before",
            charts.sparkline(told, f"{label}, last {SPARKLINE_DAYS} days"),
            note,
        )

    def tokens(number: int) -> int | None:
        return None if view.project_id else number

    of_one_project = "Tokens are matched with costs over all projects together." if view.project_id else ""
    covered = formats.percent(formats.ratio(now.covered, now.charged))
    no_price = of_one_project or "No tokens are known for what was charged."
    tiles = [
        tile("Total spend", lambda s: s.usd, formats.usd),
        tile(
            "Average daily cost",
            lambda s: s.a_day,
            formats.usd,
            f"over {view.days} day{'s' if view.days > 1 else ''}",
        ),
        tile(
            "Cost per 1k tokens",
            lambda s: None if view.project_id else s.per_1k_tokens,
            formats.price,
            f"covers {covered} of the spend"
            if now.per_1k_tokens is not None and not view.project_id
            else no_price,
        ),
        tile("Tokens in", lambda s: tokens(s.input_tokens), formats.count, of_one_project),
        tile("Tokens out", lambda s: tokens(s.output_tokens), formats.count, of_one_project),
        tile(
            "Top model share",
            lambda s: s.top_share,
            formats.percent,
            models[0] if now.top_share is not None else _why_no_share(now),
        ),
    ]
    value, why = growth
    tiles.append(
        Tile(
            "Month over month",
            formats.percent(value, signed=True),
            formats.exact(value),
            "",
            "",
            Markup(""),
            why or "this month so far against the same days of the last",
        )
    )
    return tiles


def _why_no_share(now: Sums) -> str:
    return "Only credits in these days." if now.usd < 0 else "Nothing was charged."


def _cost_chart(models: Sequence[str], told: Mapping[tuple[date, str | None], Decimal], view: View) -> Chart:
    """The bars by model, dearest first; `told` are the amounts of those that have a name."""
    shown = models[:MODELS_SHOWN] if len(models) > MODELS_SHOWN + 1 else models
    starts = _starts(view)
    cells: dict[tuple[date, str], Decimal] = {}
    for (at, model), usd in told.items():
        key = (at, model if model is not None and model in shown else OTHERS)
        cells[key] = formats.total([cells.get(key), usd])
    names = shown if len(shown) == len(models) else [*shown, OTHERS]
    grid = [[cells.get((at, name), Decimal(0)) for name in names] for at in starts]
    return _stacked(view, starts, names, grid, formats.usd, "Cost by model")


def _stacked(
    view: View,
    starts: Sequence[date],
    names: Sequence[str],
    grid: Sequence[Sequence[Decimal | None]],
    tell: Callable[[Decimal | None], str],
    title: str,
) -> Chart:
    bars, rows, wholes = [], [], []
    for at, cells in zip(starts, grid, strict=True):
        whole = formats.total(list(cells))
        label = _bar_name(view, at)
        told = [f"{name}: {tell(cell)}" for name, cell in zip(names, cells, strict=True) if cell]
        bars.append(
            charts.Bar(
                label, [cell or Decimal(0) for cell in cells], "\n".join([f"{label}: {tell(whole)}", *told])
            )
        )
        rows.append([at.isoformat(), tell(whole), *(tell(cell) for cell in cells)])
        wholes.append(whole)
    scale = [tell(step) for step in charts.scale_of(wholes).steps]
    first = "Day" if view.bucket == "day" else "From"
    svg = charts.stacked_bars(bars, f"{title}, {view.first} to {view.last}")
    return Chart(svg, scale, _ticks(starts), names, [first, "Total", *names], rows)


def _starts(view: View) -> list[date]:
    """The first day of each bar, as DuckDB's date_trunc has it."""
    day = view.first
    if view.bucket == "week":
        day -= timedelta(days=day.weekday())
    elif view.bucket == "month":
        day = day.replace(day=1)
    starts = []
    while day <= view.last:
        starts.append(day)
        day = (
            day + timedelta(days=1 if view.bucket == "day" else 7)
            if view.bucket != "month"
            else (day + timedelta(days=31)).replace(day=1)
        )
    return starts


def _bar_name(view: View, at: date) -> str:
    return at.strftime("%a %d %b %Y" if view.bucket == "day" else "from %d %b %Y")


def _ticks(starts: Sequence[date]) -> list[str]:
    """A few of the positions, evenly spread."""
    if len(starts) < 3:
        return [f"{at:%d %b}" for at in starts]
    return [f"{starts[index]:%d %b}" for index in (0, len(starts) // 2, len(starts) - 1)]


def _by_model(models: Mapping[str, Decimal], charged: Decimal, view: View) -> Breakdown:
    parts = [
        Part(model, amount, formats.ratio(amount, charged), view.query(model=model), is_model=True)
        for model, amount in models.items()
    ]
    return Breakdown("Model", _shortened(parts, charged))


_BREAKDOWNS = (("Project", "project"), ("Member", "member"), ("API key", "api_key"))


def _breakdown(
    title: str,
    part: str,
    found: Sequence[tuple[str, str | None, str | None, bool, Decimal]],
    charged: Decimal,
    view: View,
) -> Breakdown:
    mine = [row for row in found if row[0] == part]
    parts = [
        Part(
            "not attributed" if id is None or name is None else name,
            amount,
            formats.ratio(amount, charged),
            view.query(project=id) if part == "project" and id else None,
            note="" if id is None or name == id else id,
        )
        for _, id, name, _, amount in mine
    ]
    is_allocated = any(allocated for *_, allocated, _ in mine)
    note = "By share of use where OpenAI does not split a charge itself." if is_allocated else ""
    return Breakdown(title, _shortened(parts, charged), note)


def _shortened(parts: list[Part], charged: Decimal) -> list[Part]:
    if len(parts) <= ROWS_SHOWN + 1:
        return parts
    rest = formats.total([part.usd for part in parts[ROWS_SHOWN:]])
    return [*parts[:ROWS_SHOWN], Part(f"{len(parts) - ROWS_SHOWN} more", rest, formats.ratio(rest, charged))]


def _per_million(cell: tuple[Decimal, Decimal | None, Decimal | None]) -> Decimal | None:
    _, tokens, priced = cell
    return None if priced is None else formats.ratio(priced, tokens, per=1_000_000)


def _words(direction: str) -> str:
    return direction.replace("_", " ")


def export_rows(copy: Copy, view: View) -> list[Mapping[str, str]]:
    """What a CSV file of a view holds: each day's cost by project and model, exact."""
    rows = copy.rows("export", first=view.first, last=view.last, model=view.model, project_id=view.project_id)
    names = ("date", "project_id", "project_name", "model", "amount_usd")
    return [
        dict(zip(names, (day.isoformat(), project or "", name or "", model, formats.exact(usd)), strict=True))
        for day, project, name, model, usd in rows
    ]
