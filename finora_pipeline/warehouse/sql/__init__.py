"""The warehouse's SQL: files of sections that lines like `-- [load]` name; see README.md.

A word in braces is a placeholder: a number of `SHARED`, a list of `SQL_LISTS`, a definition of `KPI_TEXTS`,
or a text of the table or the caller.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from finora_pipeline.openai_admin.charge_kinds import MODEL_TOKENS, SERVICE_OF_USAGE
from finora_pipeline.openai_admin.provider import CLOSING_DAYS, FINAL_AFTER_DAYS, PROVIDER
from finora_pipeline.warehouse.kpis import KPI_TEXTS
from finora_pipeline.warehouse.periods import EXACT_DAYS, PRICE_DAYS, SPARKLINE_DAYS
from finora_pipeline.warehouse.tables import SPLIT_COSTS
from finora_pipeline.warehouse.usage_columns import SQL_LISTS

_SECTION = re.compile(r"^-- \[(\w+)\]$", re.MULTILINE)
# JSON and structs have no word between their braces without quotes.
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
SHARED = {
    "service_of_usage": "CASE used.service "
    + " ".join(f"WHEN '{usage}' THEN '{service}'" for usage, service in SERVICE_OF_USAGE.items())
    + f" ELSE '{MODEL_TOKENS}' END",
    "provider": PROVIDER,
    "final_after_days": str(FINAL_AFTER_DAYS),
    "closing_days": str(CLOSING_DAYS),
    "exact_days": str(EXACT_DAYS),
    "price_days": str(PRICE_DAYS),
    "sparkline_days": str(SPARKLINE_DAYS),
}


@lru_cache(maxsize=256)
def section(table: str, name: str, /, **texts: str) -> str:
    """The statements of a section of a table's file, with its placeholders filled in.

    Raises `KeyError` for a section or a placeholder that is unknown.
    """
    of_table = SPLIT_COSTS.get(table, {})
    file = "split_costs" if of_table else table
    parts = _SECTION.split((Path(__file__).parent / f"{file}.sql").read_text())
    statements = dict(zip(parts[1::2], parts[2::2], strict=True))[name]
    known = {**SHARED, **SQL_LISTS, **KPI_TEXTS, **of_table, **texts}
    return fill(statements, known)


def fill(statements: str, texts: Mapping[str, str]) -> str:
    """SQL with its placeholders filled in. Raises `KeyError` for an unknown one."""
    return _PLACEHOLDER.sub(lambda found: texts[found[1]], statements)
