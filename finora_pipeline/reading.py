"""Reads the published file: for notebooks, the command line and every question in SQL."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

import duckdb
import pandas as pd

from finora_pipeline.data_folder.disk import published_store, storage_errors
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.snapshot import DATABASE, attach, close_off

# What a column of amounts becomes where floats are asked for.
_FLOATS = {"DECIMAL(38,18)": "DOUBLE", "DECIMAL(38,18)[]": "DOUBLE[]"}


class NothingPublished(FileNotFoundError):
    """No refresh has published anything yet."""


def connect(path: str | Path | None = None, *, external_access: bool = False) -> duckdb.DuckDBPyConnection:
    """A read-only DuckDB connection to the published tables as they are now.

    `path` defaults to the published file of `FINORA_HOME`. The connection keeps showing the same copy
    however often a new one is published; connect again to see the newest. It blocks nothing.

    SQL reaches the published tables and what it makes in memory: no files, networks, extensions or settings.
    With `external_access` it has all of DuckDB's powers, for your own SQL: `COPY … TO`, other files, data
    frames, and more than fits into memory. DuckDB takes up to FINORA_MEMORY_LIMIT, else a quarter
    of the machine's memory up to 4 GB. Raises `NothingPublished`, and `StorageError` for a file that
    cannot be read.

        finora_pipeline.connect().sql("SELECT date, sum(amount_usd) FROM daily_costs GROUP BY date")
    """
    settings = Settings.from_environment()
    file = Path(path).expanduser() if path else settings.published_database
    if not file.exists():
        raise NothingPublished(f"There is no {file}: connect an organization and run finora refresh first.")
    config = duckdb_limits(settings).config
    if not external_access:
        # Without a folder to spill to, too much is an error that says so instead of one of permission.
        config["temp_directory"] = ""
    connection = duckdb.connect(":memory:", config=config)
    try:
        with storage_errors(published_store(file)):
            attach(connection, file)
        if not external_access:
            close_off(connection, spills=False)
        connection.execute(f"USE {DATABASE}")
    except BaseException:
        connection.close()
        raise
    return connection


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

    `user_id` keeps one user's rows; `since` and `until` are UTC days, both included (`"2026-11-01"`; of a
    moment, its day), for tables with a `date`. Amounts are `decimal.Decimal`, exact; `amounts="float"` makes
    them floats, which plot faster and no longer add up to the cent. Raises `NothingPublished`, and
    `ValueError` for a table or filter that does not exist and for what is no day.

        finora_pipeline.read("daily_costs", user_id="acme", since="2026-11-01")
    """
    if amounts not in ("decimal", "float"):
        raise ValueError(f"amounts is “decimal” or “float”, not “{amounts}”.")
    with connect(path) as connection:
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
            raise ValueError(f"There is no table “{table}”; there are {tables}.")
        filters = {
            "user_id": ("user_id", "=", user_id),
            "since": ("date", ">=", _utc_day("since", since)),
            "until": ("date", "<=", _utc_day("until", until)),
        }
        wanted = {name: rule for name, rule in filters.items() if rule[2] is not None}
        for name, (column, _, _) in wanted.items():
            if column not in columns:
                raise ValueError(f"The table {table} has no {column}, so it cannot be read with {name}.")
        shown = ", ".join(
            f"{name}::{_FLOATS[kind]} AS {name}" if amounts == "float" and kind in _FLOATS else name
            for name, kind in columns.items()
        )
        query = f"SELECT {shown} FROM {table}"
        if wanted:
            query += " WHERE " + " AND ".join(f"{c} {op} ${name}" for name, (c, op, _) in wanted.items())
        if "date" in columns:
            query += " ORDER BY date"
        values = {name: rule[2] for name, rule in wanted.items()}
        # DuckDB's own way to pandas would turn decimals into floats.
        result = connection.execute(query, values).to_arrow_table()
    return result.to_pandas(date_as_object=False)


def _utc_day(name: str, value: date | str | None) -> date | None:
    """The UTC day that is meant; a moment without a zone is taken for UTC. Raises `ValueError`."""
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).date()
    if value is None or isinstance(value, date):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a day like 2026-11-01, not {value!r}.") from None
