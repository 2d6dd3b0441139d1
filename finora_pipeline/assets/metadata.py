"""What assets show in the UI: table schemas from the warehouse's SQL, counts, failures in words."""

from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Any

import dagster as dg

from finora_pipeline.accounts.model import Refresh
from finora_pipeline.refresh.fetch import Fetched
from finora_pipeline.warehouse.load import Loaded
from finora_pipeline.warehouse.warehouse import table_columns, table_comments

# A run's page must stay readable with a thousand failures.
FAILURES_SHOWN = 50

_columns = lru_cache(table_columns)
_comments = lru_cache(table_comments)


def table_metadata(table: str) -> dict[str, Any]:
    """A table's columns with types and documentation, and its name in the published file."""
    return {
        "dagster/column_schema": dg.TableSchema(
            [dg.TableColumn(c.name, c.type, c.comment) for c in _columns()[table]]
        ),
        "dagster/table_name": f"finora.main.{table}",
    }


def table_description(table: str) -> str:
    return _comments()[table]


def fetched_metadata(fetched: Fetched, endpoints: str, seconds: float) -> dict[str, Any]:
    """What a fetch did, with the failed users by reason and one by one."""
    return {
        "users": fetched.users,
        "failed users": len(fetched.failures),
        "failures by reason": dg.JsonMetadataValue(dict(fetched.reasons)),
        "failures": dg.MarkdownMetadataValue(failure_table(fetched.failures)),
        "pages": fetched.pages,
        "unchanged pages, not stored again": fetched.unchanged_pages,
        "megabytes": round(fetched.bytes / 1e6, 3),
        "requests": fetched.requests,
        "endpoints": endpoints,
        "seconds": round(seconds, 3),
    }


def loaded_metadata(loaded: Loaded, seconds: float, *, with_money: bool) -> dict[str, Any]:
    """What became of a run's pages. Dollars are text: a float would not be exact."""
    metadata: dict[str, Any] = {
        "dagster/row_count": loaded.cost_rows if with_money else loaded.usage_rows,
        "users": loaded.users,
        "raw files": loaded.files,
        "seconds": round(seconds, 3),
    }
    if with_money:
        metadata |= {
            "dollars": dollars(loaded.amount_usd),
            "unparsed line items": len(loaded.unparsed),
            "unparsed": ", ".join(loaded.unparsed) or "none",
        }
    return metadata


def dollars(amount: Decimal) -> str:
    """An exact amount without its trailing zeros, at least to the cent: `$1,234.50`."""
    text = f"{amount:,f}"
    whole, _, fraction = text.partition(".")
    return f"${whole}.{fraction.rstrip('0'):0<2}"


def failure_table(failures: Iterable[Refresh]) -> str:
    """Failed users and why, as Markdown."""
    failures = sorted(failures, key=lambda failure: failure.user_id)
    if not failures:
        return "none"
    lines = ["| user | reason | what to do |", "|---|---|---|"]
    lines += [f"| {f.user_id} | {f.reason} | {f.message} |" for f in failures[:FAILURES_SHOWN]]
    if len(failures) > FAILURES_SHOWN:
        lines.append(f"| … | | and {len(failures) - FAILURES_SHOWN} more: see finora status |")
    return "\n".join(lines)
