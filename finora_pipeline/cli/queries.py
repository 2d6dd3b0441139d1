"""finora sql: a query on the published file."""

import csv
import sys
from decimal import Decimal
from typing import Any

import click
from rich.table import Table

from finora_pipeline.cli.terminal import as_json_text, harmless, json_option, output, plain, print_json
from finora_pipeline.cli.terminal import row as text_row

ROWS_SHOWN = 200
# First characters that a spreadsheet takes for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


# A query may begin with a comment (--), which is not an option.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("query")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, all rows.")
@click.option("--raw", is_flag=True, help="With --csv: texts unchanged, for another program.")
@json_option
def sql(query: str, as_csv: bool, raw: bool, as_json: bool) -> None:
    """Run a read-only SQL query (DuckDB) on the published tables.

    It reaches only these tables: no files, networks, extensions or settings. Unless --raw is given, CSV has
    an apostrophe before texts that a spreadsheet would take for a formula, and no control characters.

    \b
      finora sql "SELECT date, sum(amount_usd) AS usd FROM daily_costs GROUP BY date ORDER BY date"
      finora sql "SHOW TABLES"
      finora sql "DESCRIBE daily_costs"
    """
    if raw and not as_csv:
        raise click.UsageError("--raw needs --csv.")
    if as_csv and as_json:
        raise click.UsageError("Give --csv or --json, not both.")
    names, rows = _answer(query)
    if as_json:
        if twice := {name for name in names if names.count(name) > 1}:
            raise click.ClickException(f"Two columns are named {min(twice)}. Rename one with AS.")
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        cell = _csv_cell if raw else _safe_csv_cell
        writer.writerow([cell(name) for name in names])
        writer.writerows([[cell(value) for value in row] for row in rows])
    else:
        _print_table(names, rows)


def _answer(query: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The column names and rows of a query. Raises `click.ClickException`."""
    import duckdb

    from finora_pipeline.data_folder.disk import StorageError
    from finora_pipeline.reading import NothingPublished, connect

    try:
        with connect() as connection:
            result: Any = connection.execute(query)
            # DuckDB returns None for a text without a statement.
            if result is None or result.description is None:
                raise click.ClickException("Empty query. Give one SELECT, FROM or SHOW.")
            return [column[0] for column in result.description], result.fetchall()
    except duckdb.PermissionException:
        raise click.ClickException(
            "A query reaches only the published tables: no files, other databases, extensions or settings. "
            "For more, use finora_pipeline.connect(external_access=True) in Python."
        ) from None
    except duckdb.OutOfMemoryException:
        raise click.ClickException(
            "The query needs more memory than its limit. Select fewer days, users or columns, or raise "
            "FINORA_MEMORY_LIMIT."
        ) from None
    except (duckdb.Error, NothingPublished, StorageError) as error:
        raise click.ClickException(harmless(str(error))) from None


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
    """A value for display: a decimal without trailing zeros, a list as its items."""
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


def _safe_csv_cell(value: Any) -> Any:
    """Like `_csv_cell`, but harmless in a spreadsheet and a terminal."""
    cell = _csv_cell(value)
    if isinstance(value, (str, list, dict)):
        cell = harmless(f"'{cell}" if cell.startswith(_FORMULA) else cell)
    return cell
