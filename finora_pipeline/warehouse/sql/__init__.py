"""The SQL of the warehouse, one file per table; a line like `-- [load]` begins a section."""

import re
from functools import lru_cache
from pathlib import Path

from finora_pipeline.warehouse.usage_columns import SQL_LISTS

_SECTION = re.compile(r"^-- \[(\w+)\]$", re.MULTILINE)
_LIST = re.compile(rf"\{{({'|'.join(SQL_LISTS)})\}}")


@lru_cache
def section(table: str, name: str) -> str:
    """The statements of a section of a table's file, with the lists of `SQL_LISTS` filled in.

    Raises `KeyError` for a section that the file does not have.
    """
    text = (Path(__file__).parent / f"{table}.sql").read_text()
    parts = _SECTION.split(text)
    statements = dict(zip(parts[1::2], parts[2::2], strict=True))[name]
    return _LIST.sub(lambda found: SQL_LISTS[found[1]], statements)
