"""The SQL of the warehouse, one file a table; a file's sections are named by lines like `-- [load]`."""

import re
from functools import lru_cache
from pathlib import Path

_SECTION = re.compile(r"^-- \[(\w+)\]$", re.MULTILINE)


@lru_cache
def section(table: str, name: str) -> str:
    """The statements of one section of a table's file. Raises `KeyError` if there is none."""
    text = (Path(__file__).parent / f"{table}.sql").read_text()
    parts = _SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[name]
