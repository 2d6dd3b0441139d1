"""Published tables in Python: whole, as pandas, Arrow or polars, or streamed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import duckdb
import pyarrow as pa

from finora_pipeline.reading.connection import connect
from finora_pipeline.reading.selection import Amounts, Selection

# Only annotations: pandas takes half a second to import, and polars is optional.
if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

# Rows × columns of a `read`. As pandas they took 0.9 GB with all columns of daily_costs, 1.6 GB with two.
MAX_VALUES = 20_000_000
BATCH_ROWS = 100_000


class ResultTooLarge(MemoryError):
    """The result would not fit into memory; the message says how to read less."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} Aggregate in SQL first (finora_pipeline.connect), read less with columns=, since=, "
            "until= or user_id=, or stream the rows with finora_pipeline.scan."
        )


class _Options(TypedDict, total=False):
    """Arguments of `read` that all forms share."""

    user_id: str | None
    since: date | str | None
    until: date | str | None
    as_of: datetime | date | str | None
    columns: Sequence[str] | None
    amounts: Amounts
    max_values: int | None
    path: str | Path | None


@overload
def read(table: str, *, as_: Literal["pandas"] = "pandas", **options: Unpack[_Options]) -> "pd.DataFrame": ...
@overload
def read(table: str, *, as_: Literal["arrow"], **options: Unpack[_Options]) -> pa.Table: ...
@overload
def read(table: str, *, as_: Literal["polars"], **options: Unpack[_Options]) -> "pl.DataFrame": ...
def read(
    table: str,
    *,
    user_id: str | None = None,
    since: date | str | None = None,
    until: date | str | None = None,
    as_of: datetime | date | str | None = None,
    columns: Sequence[str] | None = None,
    as_: Literal["pandas", "arrow", "polars"] = "pandas",
    amounts: Amounts = "decimal",
    max_values: int | None = MAX_VALUES,
    path: str | Path | None = None,
) -> Any:
    """A published table, view or `costs_as_of`, oldest day first, as pandas, Arrow or polars.

    `user_id` selects one user's rows; `since` and `until` are UTC days, both included (`"2026-11-01"`; a
    moment counts as its day), for tables with a day; `as_of` is the moment of `costs_as_of`, in UTC unless it
    has a zone. `columns` selects columns, in that order.

    Amounts are exact: `decimal.Decimal` in pandas, decimals of 38 digits in Arrow and polars.
    `amounts="float"` makes them floats, which plot faster but no longer add up to the cent. In pandas whole
    numbers are `Int64` and truth values `boolean`, so that an unknown one stays unknown (`pd.NA`).

    Results of more than `max_values` values (rows × columns; None for no limit) raise `ResultTooLarge`.
    Raises `NothingPublished`, `ValueError` for an unknown table or column, a filter without its column or an
    invalid value, and `ModuleNotFoundError` without polars.

        finora_pipeline.read("daily_costs", user_id="acme", since="2026-11-01")
    """
    convert = _conversion(as_)
    selection = Selection(table, user_id, since, until, as_of, columns, amounts)
    with connect(path) as connection, _memory_limit_errors(table):
        rows = selection.rows(connection)
        result = selection.shown(rows, is_sorted=True)
        if max_values is not None:
            number = rows.aggregate("count(*)").fetchall()[0][0]
            if number * len(result.columns) > max_values:
                raise ResultTooLarge(
                    f"{table} would be {number:,} rows of {len(result.columns)} columns; read returns at "
                    f"most {max_values:,} values (max_values=)."
                )
        # The reader streams: a table made by DuckDB would hold all rows twice.
        with result.to_arrow_reader(BATCH_ROWS) as reader:
            found = reader.read_all()
    return convert(found)


def scan(
    table: str,
    *,
    user_id: str | None = None,
    since: date | str | None = None,
    until: date | str | None = None,
    as_of: datetime | date | str | None = None,
    columns: Sequence[str] | None = None,
    amounts: Amounts = "decimal",
    batch_rows: int = BATCH_ROWS,
    path: str | Path | None = None,
) -> pa.RecordBatchReader:
    """The rows that `read` selects as a stream of Arrow batches, however many there are.

    Arguments and types are those of `read`. Rows come in the order in which the table stores them, not by
    day. DuckDB keeps up to FINORA_MEMORY_LIMIT of the file in memory. The reader shows one snapshot, and
    closes its connection when it is read to its end, closed (`with`) or deleted. Raises what `read` raises.

        with finora_pipeline.scan("daily_costs", columns=["date", "amount_usd"]) as batches:
            for batch in batches: ...
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows must be at least 1, not {batch_rows}.")
    selection = Selection(table, user_id, since, until, as_of, columns, amounts)
    connection = connect(path)
    try:
        with _memory_limit_errors(table):
            result = selection.shown(selection.rows(connection), is_sorted=False)
            # The reader holds the connection.
            return result.to_arrow_reader(batch_rows)
    except BaseException:
        connection.close()
        raise


@contextmanager
def _memory_limit_errors(table: str) -> Iterator[None]:
    try:
        yield
    except duckdb.OutOfMemoryException:
        what = f"{table} needs more memory than DuckDB may use here (FINORA_MEMORY_LIMIT)."
        raise ResultTooLarge(what) from None


def _conversion(as_: str) -> Any:
    """The function that makes an Arrow table what `as_` names. Raises `ValueError`."""
    if as_ == "arrow":
        return lambda table: table
    if as_ == "polars":
        try:
            return import_module("polars").from_arrow
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "read(as_=“polars”) needs polars. Install it: pip install polars.", name=error.name
            ) from None
    if as_ == "pandas":
        return _to_pandas
    raise ValueError(f"as_ must be “pandas”, “arrow” or “polars”, not “{as_}”.")


def _to_pandas(table: pa.Table) -> "pd.DataFrame":
    import pandas as pd

    nullable = {
        pa.bool_(): pd.BooleanDtype(),
        pa.int8(): pd.Int8Dtype(),
        pa.int16(): pd.Int16Dtype(),
        pa.int32(): pd.Int32Dtype(),
        pa.int64(): pd.Int64Dtype(),
    }
    return table.to_pandas(date_as_object=False, types_mapper=nullable.get)
