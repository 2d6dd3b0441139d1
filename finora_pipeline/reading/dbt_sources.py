"""The published tables as a source of dbt: `python -m finora_pipeline.reading.dbt_sources > sources.yml`.

Names, types and descriptions are those of this version's published file.
"""

import sys
from typing import Any

import yaml

from finora_pipeline.warehouse.database import Description, described_tables
from finora_pipeline.warehouse.snapshot import DATABASE

HEAD = """\
# The tables and views of the published file, with their comments. Written by
# python -m finora_pipeline.reading.dbt_sources: run it again after an upgrade of finora.
"""


def sources() -> str:
    """The text of a sources.yml for the published file, attached as `finora`."""
    source = {
        "name": DATABASE,
        "description": "What OpenAI organizations cost and use, as published by Finora Pipeline.",
        "database": DATABASE,
        "schema": "main",
        "tables": [_table(name, described) for name, described in sorted(described_tables().items())],
    }
    document = {"version": 2, "sources": [source]}
    return HEAD + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110)


def _table(name: str, described: Description) -> dict[str, Any]:
    columns = [
        _described({"name": column.name, "data_type": column.type}, column.comment)
        for column in described.columns
    ]
    return {**_described({"name": name}, described.comment), "columns": columns}


def _described(entry: dict[str, Any], comment: str | None) -> dict[str, Any]:
    # Columns of views may have no comment.
    return {**entry, "description": comment} if comment else entry


if __name__ == "__main__":
    sys.stdout.write(sources())
