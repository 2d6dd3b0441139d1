"""finora sql: a question to the published file."""

import csv
import sys
from decimal import Decimal
from typing import Any

import click
from rich.table import Table

from finora_pipeline.cli.terminal import as_json_text, json_option, output, plain, print_json
from finora_pipeline.cli.terminal import row as text_row

ROWS_SHOWN = 200


# A query may begin with a comment, which is no option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("query")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all rows.")
@json_option
def sql(query: str, as_csv: bool, as_json: bool) -> None:
    """Ask the published tables in SQL (DuckDB's), read-only; waits for nobody.

    \b
      finora sql "SELECT date, sum(amount_usd) AS usd FROM daily_costs GROUP BY date ORDER BY date"
      finora sql "SHOW TABLES"
      finora sql "DESCRIBE daily_costs"
    """
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, not both.")

    import duckdb

    from finora_pipeline.reading import NothingPublished, connect

    try:
        with connect() as connection:
            result: Any = connection.execute(query)
            # DuckDB gives nothing at all for a text without a statement.
            if result is None or result.description is None:
                raise click.ClickException("There is no query: give one SELECT, FROM or SHOW.")
            names = [column[0] for column in result.description]
            rows = result.fetchall()
    except (duckdb.Error, NothingPublished) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        if twice := {name for name in names if names.count(name) > 1}:
            raise click.ClickException(f"Two columns are called {min(twice)}: give one another name with AS.")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([[_csv_cell(value) for value in row] for row in rows])
    else:
        _print_table(names, rows)


def _print_table(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    numeric = {
        n for n, _ in enumerate(names) if any(isinstance(row[n], (int, float, Decimal)) for row in rows)
    }
    table = Table()
    for number, name in enumerate(names):
        (header,) = text_row(name)
        table.add_column(header, justify="right" if number in numeric else "left", overflow="fold")
    for row in rows[:ROWS_SHOWN]:
        table.add_row(*text_row(*(_cell(value) for value in row)))
    output.print(table)
    if len(rows) > ROWS_SHOWN:
        output.print(f"… and {len(rows) - ROWS_SHOWN} more rows (--csv prints all).")


def _cell(value: Any) -> str:
    """A value for the eye: a decimal without its trailing zeros, a list in short."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return " ".join(_cell(item) for item in value)
    return as_json_text(value) if isinstance(value, dict) else plain(value)


def _csv_cell(value: Any) -> Any:
    """A value for other programs; a list as JSON."""
    if value is None:
        return ""
    return as_json_text(value) if isinstance(value, (list, dict)) else plain(value)
