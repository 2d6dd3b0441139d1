"""Metadata that assets show in the UI: table schemas from the warehouse's SQL, counts, failures, a plot."""

import base64
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

import dagster as dg

from finora_pipeline.accounts.model import Refresh
from finora_pipeline.ingest.fetch import Fetched
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.database import described_tables
from finora_pipeline.warehouse.load_report import Loaded

# Keeps a run's page readable with a thousand failures.
FAILURES_SHOWN = 50
PLOT_HEIGHT = 80
CENT = Decimal("0.01")
OWNERS = ["team:finora"]


def table_metadata(table: str) -> dict[str, Any]:
    """A table's columns with types and comments, and its name in the published file."""
    return {
        "dagster/column_schema": dg.TableSchema(
            [dg.TableColumn(c.name, c.type, c.comment) for c in described_tables()[table].columns]
        ),
        "dagster/table_name": f"finora.main.{table}",
    } | docs("analysts")


def table_description(table: str) -> str:
    """A table's comment."""
    return described_tables()[table].comment


def fetched_metadata(fetched: Fetched, endpoints: str, seconds: float) -> dict[str, Any]:
    """Counts of a fetch, with failed users by reason and individually."""
    return {
        "users": fetched.users,
        "failed users": len(fetched.failures),
        "failures by reason": dg.JsonMetadataValue(dict(fetched.reasons)),
        "failures": failure_table(fetched.failures),
        "pages": fetched.pages,
        "unchanged pages, not stored again": fetched.unchanged_pages,
        "megabytes": round(fetched.bytes / 1e6, 3),
        "requests": fetched.requests,
        "endpoints": endpoints,
        "seconds": round(seconds, 3),
    }


def loaded_metadata(loaded: Loaded, seconds: float, *, with_money: bool) -> dict[str, Any]:
    """Counts of a load. Dollars are text, since a float would not be exact."""
    metadata: dict[str, Any] = {
        "dagster/row_count": loaded.cost_rows if with_money else loaded.usage_rows,
        "users": loaded.users,
        "raw files": loaded.files,
        "seconds": round(seconds, 3),
    }
    if with_money:
        metadata |= {
            "dollars": dollars(loaded.amount_usd),
            "unparsed line items": loaded.unparsed_count,
        }
    return metadata


def dollars(amount: Decimal) -> str:
    """An exact USD amount without trailing zeros, with at least two decimals: `$1,234.50`."""
    whole, _, fraction = f"{abs(amount):,f}".partition(".")
    return f"{'-' if amount < 0 else ''}${whole}.{fraction.rstrip('0'):0<2}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table, or "none". Bars and line breaks within a cell are escaped."""
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    if not lines:
        return dg.MarkdownMetadataValue("none")
    head = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return dg.MarkdownMetadataValue("\n".join(head + lines))


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").split())


def cost_plot(days: Sequence[tuple[date, Decimal]]) -> dg.MarkdownMetadataValue:
    """USD by day as bars, negative for credits, with the highest day in words."""
    if not days:
        return dg.MarkdownMetadataValue("no spend")
    most = max(amount for _, amount in days)
    top, bottom = max(most, Decimal(0)), min(Decimal(0), *(amount for _, amount in days))
    size = PLOT_HEIGHT / float(top - bottom or 1)
    shapes = []
    for number, (day, amount) in enumerate(days):
        y, height = float(top - max(amount, Decimal(0))) * size, abs(float(amount)) * size
        shapes.append(
            f'<rect x="{number * 12}" y="{y:.1f}" width="9" height="{height:.1f}" '
            f'fill="#0b7a63"><title>{day}: {dollars(amount)}</title></rect>'
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(days) * 12}" height="{PLOT_HEIGHT}">'
        f"{''.join(shapes)}</svg>"
    )
    image = base64.b64encode(svg.encode()).decode()
    first, last = days[0][0], days[-1][0]
    return dg.MarkdownMetadataValue(
        f"{first} to {last}, at most {dollars(most.quantize(CENT))} per day\n\n"
        f"![dollars per day](data:image/svg+xml;base64,{image})"
    )


def docs(page: str) -> dict[str, Any]:
    """The link to a page of the documentation, if it is served (finora up)."""
    url = Settings.from_environment().docs_url
    return {"docs": dg.UrlMetadataValue(f"{url}/{page}/")} if url else {}


def failure_table(failures: Iterable[Refresh]) -> dg.MarkdownMetadataValue:
    """Failed users with reason and error sentence."""
    failures = sorted(failures, key=lambda failure: failure.user_id)
    rows: list[Sequence[object]] = [(f.user_id, f.reason, f.message) for f in failures[:FAILURES_SHOWN]]
    if len(failures) > FAILURES_SHOWN:
        rows.append(("…", "", f"and {len(failures) - FAILURES_SHOWN} more: see finora status"))
    return markdown_table(("user", "reason", "error"), rows)
