"""Draw the tables and the columns by which they join, as SVG that any page shows, light or dark."""

from dataclasses import dataclass, field
from xml.sax.saxutils import escape

import duckdb

WIDTH, ROW, HEADER, GAP = 176, 18, 24, 18
FONT = 'font-family="ui-monospace, \'SF Mono\', Menlo, Consolas, monospace" font-size="12"'
FRAME = 'rx="4" fill="#f6f8f9" stroke="#90a4ae"'
LEGEND = "Tables join by user_id, provider and, in the color of the line:"


@dataclass(frozen=True, slots=True)
class Join:
    """A vertical line that connects rows by equal columns: its place, its color and these columns."""

    x: int
    color: str
    columns: str


# Between the columns of boxes, which begin at 8, 284 and 548. The colors are visible on white and on black.
JOINS = {
    "project": Join(202, "#0e8a7d", "project_id, or project_key alone"),
    "member": Join(222, "#c4621d", "member_id, or member_key alone"),
    "api_key": Join(242, "#8064c8", "api_key_id, or api_key_key alone"),
    "model": Join(262, "#2f7fc4", "cost_model = model, or model_key alone"),
    "charge": Join(480, "#a97a10", "a charge: date, project_id, line_item"),
    "usage": Join(504, "#c4508a", "a row of usage: all columns of its grain"),
    "day": Join(528, "#5c8f35", "a day: date"),
    "user": Join(742, "#7d8b96", "a user: nothing else"),
}
HEADERS = {"names": "#455a64", "facts": "#00695c", "others": "#37587a"}


@dataclass(frozen=True, slots=True)
class Box:
    """A table with the columns by which it joins, each with the joins at its left and its right end."""

    table: str
    rows: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)

    @property
    def height(self) -> int:
        return HEADER + ROW * len(self.rows) + 6


_DAY, _PROJECT = (None, "day"), ("project", None)
_CHARGE, _MODEL = (None, "charge"), ("model", None)
_MEMBER, _KEY = ("member", None), ("api_key", None)
NAMES = (
    Box("projects", {"project_id": (None, None), "project_key": (None, "project")}),
    Box("members", {"member_id": (None, None), "member_key": (None, "member")}),
    Box(
        "api_keys",
        {
            "api_key_id": (None, None),
            "api_key_key": (None, "api_key"),
            "project_id": (None, "project"),
            "owner_id": (None, "member"),
        },
    ),
    Box("models", {"model": (None, None), "model_key": (None, "model")}),
)
FACTS = (
    Box("daily_costs", {"date": _DAY, "project_id": _PROJECT, "line_item": _CHARGE, "cost_model": _MODEL}),
    Box(
        "daily_attributed_costs",
        {
            "date": _DAY,
            "project_id": _PROJECT,
            "line_item": _CHARGE,
            "member_id": _MEMBER,
            "api_key_id": _KEY,
            "cost_model": _MODEL,
        },
    ),
    Box(
        "daily_usage",
        {
            "date": _DAY,
            "service": (None, "usage"),
            "project_id": _PROJECT,
            "member_id": _MEMBER,
            "api_key_id": _KEY,
            "cost_model": _MODEL,
        },
    ),
    Box("daily_model_costs", {"date": _DAY, "model": _MODEL}),
    Box("daily_member_costs", {"date": _DAY, "project_id": _PROJECT, "member_id": _MEMBER, "model": _MODEL}),
    Box("daily_key_costs", {"date": _DAY, "project_id": _PROJECT, "api_key_id": _KEY, "model": _MODEL}),
)
_USER = (None, "user")
OTHERS = (
    Box("restatements", {"observed_at": (None, None), "line_item": ("charge", None)}),
    Box("cost_revisions", {"observed_at": (None, None), "line_item": ("charge", None)}),
    Box("usage_revisions", {"observed_at": (None, None), "service": ("usage", None)}),
    Box("daily_spend", {"user_id": _USER, "date": ("day", None)}),
    Box("reconciliation", {"user_id": _USER, "date": ("day", None)}),
    Box("user_metrics", {"user_id": _USER, "metric, period": (None, None)}),
    Box("daily_user_metrics", {"user_id": _USER, "as_of_date": (None, None)}),
    Box("connections", {"user_id": _USER}),
)
GROUPS = (("names", 8, NAMES), ("facts", 284, FACTS), ("others", 548, OTHERS))


def diagram(connection: duckdb.DuckDBPyConnection) -> str:
    """The diagram as SVG. Raises `ValueError` for a column that its table does not have."""
    _check(connection)
    height = max(sum(box.height for box in boxes) + GAP * (len(boxes) - 1) for _, _, boxes in GROUPS)
    ends: dict[str, list[tuple[int, int]]] = {join: [] for join in JOINS}
    drawn = []
    for group, x, boxes in GROUPS:
        free = height - sum(box.height for box in boxes)
        y = 8.0
        for box in boxes:
            drawn += _box(box, HEADERS[group], x, round(y))
            for number, sides in enumerate(box.rows.values()):
                at = round(y) + HEADER + ROW * number + ROW // 2 + 2
                for edge, join in zip((x, x + WIDTH), sides, strict=True):
                    if join:
                        ends[join].append((edge, at))
            y += box.height + free / (len(boxes) - 1)
    lines = [line for join, found in ends.items() for line in _lines(JOINS[join], found)]
    legend = _legend(height + 24)
    size = f"0 0 756 {height + 156}"
    title = "Published tables and the columns by which they join"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" {FONT}>',
            f"<title>{title}</title>",
            *lines,
            *drawn,
            *legend,
            "</svg>\n",
        ]
    )


def _check(connection: duckdb.DuckDBPyConnection) -> None:
    known = set(
        connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() WHERE schema_name = 'main' AND NOT internal"
        ).fetchall()
    )
    for _, _, boxes in GROUPS:
        for box in boxes:
            for name in (name for row in box.rows for name in row.split(", ")):
                if (box.table, name) not in known:
                    raise ValueError(f"{box.table} has no column {name}")


def _box(box: Box, color: str, x: int, y: int) -> list[str]:
    texts = [
        f'<text x="{x + 10}" y="{y + HEADER + ROW * number + 15}" fill="#1c2b33">{escape(row)}</text>'
        for number, row in enumerate(box.rows)
    ]
    return [
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{box.height}" {FRAME}/>',
        f'<path d="M{x} {y + HEADER}v-{HEADER - 4}a4 4 0 0 1 4 -4h{WIDTH - 8}a4 4 0 0 1 4 4v{HEADER - 4}z" '
        f'fill="{color}"/>',
        f'<text x="{x + 10}" y="{y + 16}" fill="#ffffff" font-weight="600">{escape(box.table)}</text>',
        *texts,
    ]


def _lines(join: Join, ends: list[tuple[int, int]]) -> list[str]:
    """The vertical line of a join, with a branch and a dot for each row."""
    style = f'stroke="{join.color}" stroke-width="1.6" fill="none"'
    top, bottom = min(y for _, y in ends), max(y for _, y in ends)
    branches = "".join(f"M{x} {y}H{join.x}" for x, y in ends)
    dots = "".join(f'<circle cx="{join.x}" cy="{y}" r="2.6"/>' for _, y in ends)
    return [f'<path d="M{join.x} {top}V{bottom}{branches}" {style}/>', f'<g fill="{join.color}">{dots}</g>']


def _legend(y: int) -> list[str]:
    """The joins with their columns, in two columns of text."""
    rows = (len(JOINS) + 1) // 2
    parts = [
        f'<rect x="8" y="{y}" width="740" height="{rows * 22 + 36}" {FRAME}/>',
        f'<text x="20" y="{y + 21}" fill="#1c2b33">{LEGEND}</text>',
    ]
    for number, join in enumerate(JOINS.values()):
        x, at = 20 + 362 * (number // rows), y + 45 + 22 * (number % rows)
        parts.append(f'<path d="M{x} {at - 4}h18" stroke="{join.color}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 26}" y="{at}" fill="#1c2b33">{escape(join.columns)}</text>')
    return parts
