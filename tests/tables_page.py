"""Write the dictionary of the published tables and its diagram from the comments; `make docs` runs it."""

import re
import textwrap
from pathlib import Path

import duckdb

from finora_pipeline.warehouse.schema import create_or_migrate
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.tables import NAMED, SPLIT_COSTS
from tests.tables_diagram import diagram

DOCS = Path(__file__).parent.parent / "docs"
PAGE, DIAGRAM = DOCS / "tables.md", DOCS / "tables.svg"
SQL = Path(__file__).parent.parent / "finora_pipeline" / "warehouse" / "sql"
# In reading order.
GROUPS = {
    "Facts": (
        "What OpenAI charged and counted, and how it splits. Start here.",
        (
            *("daily_costs", "daily_usage", "daily_attributed_costs", "daily_model_costs"),
            *("daily_member_costs", "daily_key_costs"),
        ),
    ),
    "Figures": (
        "What the dashboard shows, by the [definitions of the figures](kpis.md).",
        ("daily_spend", "user_metrics", "daily_user_metrics"),
    ),
    "Names": (
        "What ids stand for, and the facts with names.",
        ("projects", "members", "api_keys", "models", *NAMED),
    ),
    "History": ("What OpenAI changed, and when.", ("restatements", "cost_revisions", "usage_revisions")),
    "Quality": ("How complete, exact and fresh the rest is.", ("reconciliation", "connections", "about")),
}
MACROS = (
    *("costs_as_of", "exact_ratio", "share_of", "change_of", "base_model", "model_family", "is_final"),
    *("month_state", "day_end", "is_priced_by_token", "unit_of", "name_or_unknown", "exact_decimal"),
    *("to_units", "from_units", "parts_to_decimal"),
)
# Grains of views whose file is that of another table.
GRAINS = {"models": "user, provider, model"}
INTRODUCTION = """\
# Tables

Every published table and view with its columns, and the macros for queries. `make docs` writes this page from
the comments in the published file; a test keeps it true. [For analysts](analysts.md) has the rules and worked
questions, [the figures](kpis.md) the definitions of the key figures.

A grain lists the columns that identify a row; `user` is `user_id`. Money is in USD as `DECIMAL(38,18)`,
exact. Days and moments are UTC. An unknown figure is NULL, never zero.

## What joins what

![The tables and their keys; lines connect the columns by which they join](tables.svg)

The views `named_…` have the columns of their table, names, and the keys by which a single column joins. Use
`LEFT JOIN`: not every row has every id. Add up one side before you join parts of a charge or rows of a day,
since such a join repeats the rows of the other side.
"""


def schema() -> duckdb.DuckDBPyConnection:
    """An empty warehouse in memory."""
    connection = duckdb.connect(":memory:")
    create_or_migrate(connection)
    return connection


def published(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    """The comment of every published table and view."""
    return dict(
        connection.execute(
            "SELECT table_name, comment FROM duckdb_tables() WHERE schema_name = 'main' UNION ALL "
            "SELECT view_name, comment FROM duckdb_views() WHERE schema_name = 'main' AND NOT internal"
        ).fetchall()
    )


def grain(table: str) -> str:
    """The columns that identify a row of a table, from the head of its SQL file."""
    if table in GRAINS:
        return GRAINS[table]
    file = "split_costs" if table in SPLIT_COSTS else NAMED.get(table, table)
    if file in SPLIT_COSTS:
        table, file = file, "split_costs"
    head = (SQL / f"{file}.sql").read_text().split("-- [")[0].replace("\n-- ", " ")
    found = re.search(r"Grain: ([^.;(]+)", head)
    if found is None:
        raise ValueError(f"{file}.sql does not name the grain of {table}")
    names = found[1].split(", as in")[0].split(", replaced")[0]
    for placeholder, text in SPLIT_COSTS.get(table, {}).items():
        names = names.replace(f"{{{placeholder}}}", text)
    return " ".join(names.split())


def page() -> str:
    """The dictionary in Markdown."""
    with schema() as connection:
        comments = published(connection)
        parts = [INTRODUCTION]
        for title, (text, tables) in GROUPS.items():
            parts.append(f"## {title}\n\n{text}\n")
            parts += [_table(connection, table, comments[table]) for table in tables]
        parts.append(_macros(connection))
    return "\n".join(parts)


def _table(connection: duckdb.DuckDBPyConnection, table: str, comment: str) -> str:
    columns = connection.execute(
        "SELECT column_name, data_type, comment FROM duckdb_columns() "
        "WHERE schema_name = 'main' AND table_name = ? ORDER BY column_index",
        [table],
    ).fetchall()
    of_table = NAMED.get(table)
    if of_table:
        shared = _comments(connection, of_table)
        columns = [row for row in columns if shared.get(row[0]) != row[2]]
    lines = [f"### {table}\n", f"{textwrap.fill(comment, 120)}\n", f"Grain: {grain(table)}.\n"]
    if of_table:
        lines.append(f"The columns of [{of_table}](#{of_table}), and:\n")
    lines += ["| column | type | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | `{_short(kind)}` | {_cell(text)} |" for name, kind, text in columns]
    return "\n".join(lines) + "\n"


def _comments(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    return dict(
        connection.execute(
            "SELECT column_name, comment FROM duckdb_columns() WHERE schema_name = 'main' AND table_name = ?",
            [table],
        ).fetchall()
    )


def _macros(connection: duckdb.DuckDBPyConnection) -> str:
    comments = dict(
        connection.execute(
            "SELECT function_name, comment FROM duckdb_functions() "
            "WHERE schema_name = 'main' AND NOT internal"
        ).fetchall()
    )
    lines = [
        "## Macros\n",
        "Functions in the published file. `costs_as_of` is used like a table.\n",
        "| macro | result |",
        "|---|---|",
    ]
    lines += [f"| `{signature}` | {_cell(comments[name])} |" for name, signature in signatures().items()]
    return "\n".join(lines) + "\n"


def signatures() -> dict[str, str]:
    """Every macro with its parameters and their defaults, which DuckDB's catalog does not have."""
    texts = [section(file, "define") for file in ("as_of", "macros", "named", "daily_model_costs")]
    found = dict(re.findall(r"CREATE OR REPLACE MACRO (\w+)\(([^)]*)\)", "\n".join(texts)))
    return {name: f"{name}({found[name]})" for name in MACROS}


def _short(kind: str) -> str:
    return kind.replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")


def _cell(text: str) -> str:
    """A comment in a cell of a table: a bar would end the cell, and asterisks or angles are not markup."""
    return re.sub(r"([|*<>])", r"\\\1", text)


def write() -> None:
    """Store the page and its diagram."""
    PAGE.write_text(page())
    with schema() as connection:
        DIAGRAM.write_text(diagram(connection))


if __name__ == "__main__":
    write()
