"""Published tables as pandas data frames."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import pandas as pd

from finora_pipeline.reading.connection import connect
from finora_pipeline.warehouse.snapshot import DATABASE

# The types of amounts, and their types with `amounts="float"`.
_FLOATS = {"DECIMAL(38,18)": "DOUBLE", "DECIMAL(38,18)[]": "DOUBLE[]"}


def read(
    table: str,
    *,
    user_id: str | None = None,
    since: date | str | None = None,
    until: date | str | None = None,
    amounts: Literal["decimal", "float"] = "decimal",
    path: str | Path | None = None,
) -> pd.DataFrame:
    """A published table as a pandas DataFrame, oldest day first.

    `user_id` selects one user's rows; `since` and `until` are UTC days, both included (`"2026-11-01"`; a
    moment counts as its day), for tables with a `date`. Amounts are exact `decimal.Decimal`;
    `amounts="float"` makes them floats, which plot faster but no longer add up to the cent. Raises
    `NothingPublished`, and `ValueError` for an unknown table, a filter without its column, or an invalid day.

        finora_pipeline.read("daily_costs", user_id="acme", since="2026-11-01")
    """
    if amounts not in ("decimal", "float"):
        raise ValueError(f"amounts must be “decimal” or “float”, not “{amounts}”.")
    filters = {
        "user_id": ("user_id", "=", user_id),
        "since": ("date", ">=", _utc_day("since", since)),
        "until": ("date", "<=", _utc_day("until", until)),
    }
    wanted = {name: rule for name, rule in filters.items() if rule[2] is not None}
    with connect(path) as connection:
        columns = _columns(connection, table)
        for name, (column, _, _) in wanted.items():
            if column not in columns:
                raise ValueError(f"The table {table} has no {column}, so it cannot be read with {name}.")
        query = _query(table, columns, wanted, as_floats=amounts == "float")
        # DuckDB's own conversion to pandas would turn decimals into floats.
        result = connection.execute(query, {name: rule[2] for name, rule in wanted.items()}).to_arrow_table()
    return result.to_pandas(date_as_object=False)


def _columns(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    """The columns of a published table with their types. Raises `ValueError` for an unknown table."""
    columns = dict(
        connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() "
            "WHERE database_name = $database AND schema_name = 'main' AND table_name = $table "
            "ORDER BY column_index",
            {"database": DATABASE, "table": table},
        ).fetchall()
    )
    if not columns:
        tables = connection.execute(
            "SELECT string_agg(DISTINCT table_name, ', ' ORDER BY table_name) FROM duckdb_columns() "
            "WHERE database_name = $database AND schema_name = 'main'",
            {"database": DATABASE},
        ).fetchall()[0][0]
        raise ValueError(f"Unknown table “{table}”. Tables: {tables}.")
    return columns


def _query(
    table: str, columns: dict[str, str], filters: dict[str, tuple[str, str, Any]], *, as_floats: bool
) -> str:
    shown = ", ".join(
        f"{name}::{_FLOATS[kind]} AS {name}" if as_floats and kind in _FLOATS else name
        for name, kind in columns.items()
    )
    query = f"SELECT {shown} FROM {table}"
    if filters:
        query += " WHERE " + " AND ".join(
            f"{column} {op} ${name}" for name, (column, op, _) in filters.items()
        )
    if "date" in columns:
        query += " ORDER BY date"
    return query


def _utc_day(name: str, value: date | str | None) -> date | None:
    """The UTC day of a filter; a moment without a zone counts as UTC. Raises `ValueError`."""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date()
    if value is None or isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a day like 2026-11-01, not {value!r}.") from None
