"""From raw pages to facts: decodes the pages that have landed and replaces the days they cover.

Exactly once: the ledger of loaded files is written in the transaction that writes the rows. Newest wins: a
page set does not replace a day that a later read has already filled. A crash between landing and loading
is healed by whoever loads next.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from finora_pipeline.openai_admin.amounts import AMOUNT_TYPE, amounts_to_arrow
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS, Endpoint
from finora_pipeline.openai_admin.line_items import LineItem, parse_line_item
from finora_pipeline.openai_admin.pages import decode_costs, decode_usage
from finora_pipeline.warehouse.raw import RawFile, RawPages, read_bodies
from finora_pipeline.warehouse.warehouse import Warehouse, run, transaction

# Days since 1970-01-01, which is what a DATE is.
SECONDS_PER_DAY = 86_400
# Fact columns that have another name than OpenAI's field.
USAGE_COLUMNS = {
    "project_id": "project_id",
    "member_id": "user_id",
    "api_key_id": "api_key_id",
    "model": "model",
    "batch": "batch",
    "service_tier": "service_tier",
    "requests": "num_model_requests",
    "input_tokens": "input_tokens",
    "input_cached_tokens": "input_cached_tokens",
    "input_cache_write_tokens": "input_cache_write_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "output_tokens": "output_tokens",
    "output_audio_tokens": "output_audio_tokens",
}
_TEXT_COLUMNS = ("project_id", "member_id", "api_key_id", "model", "service_tier")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a run's pages became. `unparsed` counts the distinct line items, file by file, that the grammar
    does not know."""

    files: int
    pages: int
    rows: int
    users: int
    unparsed: int
    amount_usd: Decimal


@dataclass(frozen=True, slots=True)
class _Decoded:
    """A raw file's content as Arrow tables: the results, the days covered, the distinct line items."""

    results: pa.Table
    days: pa.Table
    line_items: pa.Table | None
    pages: int
    users: int
    fetched_at: datetime


def load_pending(warehouse: Warehouse, endpoints: Iterable[Endpoint], run_id: str) -> Loaded:
    """Loads every landed file of the endpoints, one transaction a file, under the warehouse's lock.

    Returns what the pages that the run fetched became, whoever loaded them.
    """
    raw = RawPages(warehouse.raw)
    names = [endpoint.name for endpoint in endpoints]
    with warehouse.writing() as connection:
        # Listed under the lock: another process may have loaded them a moment ago.
        for file in raw.pending(names):
            fetched_at = load_file(connection, file)
            raw.archive(file, fetched_at.date())
        return _loaded_by(connection, run_id, names)


def load_file(connection: duckdb.DuckDBPyConnection, file: RawFile) -> datetime:
    """Loads one raw file unless the ledger holds it; returns when its pages were fetched."""
    pages = read_bodies(file)
    query = "SELECT loaded_at FROM pipeline.loaded_files WHERE raw_file = ?"
    if connection.execute(query, [file.name]).fetchall():
        return pc.max(pages["fetched_at"]).as_py()  # type: ignore[attr-defined]
    endpoint = ENDPOINTS[file.endpoint]
    table, rows_name = ("daily_costs", "cost_rows") if endpoint is COSTS else ("daily_usage", "usage_rows")
    decoded = _decode(endpoint, pages, file.name)
    connection.register(rows_name, decoded.results)
    connection.register("page_days", decoded.days)
    if decoded.line_items is not None:
        connection.register("line_items", decoded.line_items)
    parameters = _ledger_row(file, decoded) | {"endpoint": endpoint.name, "table_name": table}
    with transaction(connection):
        run(connection, "pipeline", "begin_load", **parameters)
        run(connection, table, "load", **parameters)
        run(connection, "pipeline", "end_load", **parameters)
        run(connection, "pipeline", "ledger", **parameters)
    return decoded.fetched_at


def _loaded_by(connection: duckdb.DuckDBPyConnection, run_id: str, endpoints: list[str]) -> Loaded:
    files, pages, rows, users, unparsed, amount = connection.execute(
        "SELECT count(*), coalesce(sum(pages), 0)::BIGINT, coalesce(sum(result_rows), 0)::BIGINT, "
        "coalesce(sum(users), 0)::BIGINT, coalesce(sum(unparsed), 0)::BIGINT, "
        "coalesce(sum(amount_usd), 0)::DECIMAL(38, 18) "
        "FROM pipeline.loaded_files WHERE run_id = $run_id AND list_contains($endpoints, endpoint)",
        {"run_id": run_id, "endpoints": endpoints},
    ).fetchall()[0]
    return Loaded(files, pages, rows, users, unparsed, amount)


def _ledger_row(file: RawFile, decoded: _Decoded) -> dict[str, Any]:
    unparsed, amount = 0, None
    if decoded.line_items is not None:
        unparsed = decoded.line_items.num_rows - (pc.sum(decoded.line_items["is_parsed"]).as_py() or 0)  # type: ignore[attr-defined]
        amount = pc.sum(decoded.results["amount_usd"]).as_py()  # type: ignore[attr-defined]
    return {
        "raw_file": file.name,
        "run_id": file.run_id,
        "pages": decoded.pages,
        "result_rows": decoded.results.num_rows,
        "users": decoded.users,
        "unparsed": unparsed,
        "amount_usd": amount,
    }


def _decode(endpoint: Endpoint, pages: pa.Table, raw_file: str) -> _Decoded:
    user_ids = pages["user_id"].to_pylist()
    fetched = pages["fetched_at"].to_pylist()
    windows = list(zip(pages["window_start"].to_pylist(), pages["window_end"].to_pylist(), strict=True))
    bodies = [body.as_py() for body in pages["body"]]
    # A set's pages repeat its window; each day is listed once a set.
    sets = dict.fromkeys(zip(user_ids, fetched, windows, strict=True))
    covered = [
        (user_id, start + timedelta(days=n), fetched_at)
        for user_id, fetched_at, (start, end) in sets
        for n in range((end - start).days)
    ]
    days = pa.table(
        {
            "user_id": pa.array([user_id for user_id, _, _ in covered], pa.string()),
            "provider": pa.array(["openai"] * len(covered), pa.string()),
            "date": pa.array([day for _, day, _ in covered], pa.date32()),
            "fetched_at": pa.array([moment for _, _, moment in covered], pa.timestamp("us", "UTC")),
            "raw_file": pa.array([raw_file] * len(covered), pa.string()),
        }
    )
    line_items = None
    if endpoint is COSTS:
        results, line_items = _cost_rows(user_ids, fetched, bodies)
    else:
        results = _usage_rows(user_ids, fetched, bodies)
    return _Decoded(results, days, line_items, len(bodies), len(set(user_ids)), max(fetched))


def _cost_rows(
    user_ids: list[str], fetched: list[datetime], bodies: list[bytes]
) -> tuple[pa.Table, pa.Table]:
    page_of: list[int] = []
    dates: list[int] = []
    results = []
    for index, body in enumerate(bodies):
        for bucket in decode_costs(body).data:
            results += bucket.results
            count = len(bucket.results)
            page_of += [index] * count
            dates += [bucket.start_time // SECONDS_PER_DAY] * count
    user_column = _by_page(user_ids, pa.string(), page_of)
    amounts = [bytes(r.amount.value) if r.amount else b"" for r in results]
    # Amounts are rounded, if ever, within a user's day.
    groups = list(zip(map(user_ids.__getitem__, page_of), dates, strict=True))
    line_items = [r.line_item for r in results]
    table = pa.table(
        {
            "user_id": user_column,
            "provider": pa.array(["openai"] * len(results), pa.string()),
            "date": pa.array(dates, pa.int32()).cast(pa.date32()),
            "fetched_at": _by_page(fetched, pa.timestamp("us", "UTC"), page_of),
            "project_id": pa.array([r.project_id for r in results], pa.string()),
            "project_name": pa.array([r.project_name for r in results], pa.string()),
            "organization_id": pa.array([r.organization_id for r in results], pa.string()),
            "line_item": pa.array(line_items, pa.string()),
            "amount_usd": amounts_to_arrow(amounts, groups),
            "quantity": pa.array([r.quantity for r in results], AMOUNT_TYPE),
            "quantity_unit": pa.array([r.quantity_unit for r in results], pa.string()),
        }
    )
    return table, _line_item_table([parse_line_item(t) for t in dict.fromkeys(line_items) if t is not None])


def _usage_rows(user_ids: list[str], fetched: list[datetime], bodies: list[bytes]) -> pa.Table:
    page_of: list[int] = []
    dates: list[int] = []
    results = []
    for index, body in enumerate(bodies):
        for bucket in decode_usage(body).data:
            results += bucket.results
            count = len(bucket.results)
            page_of += [index] * count
            dates += [bucket.start_time // SECONDS_PER_DAY] * count
    columns: dict[str, pa.Array] = {
        "user_id": _by_page(user_ids, pa.string(), page_of),
        "provider": pa.array(["openai"] * len(results), pa.string()),
        "date": pa.array(dates, pa.int32()).cast(pa.date32()),
        "fetched_at": _by_page(fetched, pa.timestamp("us", "UTC"), page_of),
    }
    for column, name in USAGE_COLUMNS.items():
        type_ = pa.string() if column in _TEXT_COLUMNS else pa.bool_() if column == "batch" else pa.int64()
        columns[column] = pa.array([getattr(r, name) for r in results], type_)
    return pa.table(columns)


def _by_page(values: list[Any], type_: pa.DataType, page_of: list[int]) -> pa.Array:
    """A page's value, repeated for each of its rows."""
    return pa.array(values, type_).take(pa.array(page_of, pa.int32()))


def _line_item_table(items: list[LineItem]) -> pa.Table:
    return pa.table(
        {
            "line_item": pa.array([item.text for item in items], pa.string()),
            "model": pa.array([item.model for item in items], pa.string()),
            "direction": pa.array([item.direction for item in items], pa.string()),
            "modality": pa.array([item.modality for item in items], pa.string()),
            "tier": pa.array([item.tier for item in items], pa.string()),
            "is_long_context": pa.array([item.is_long_context for item in items], pa.bool_()),
            "is_parsed": pa.array([item.is_parsed for item in items], pa.bool_()),
        }
    )
