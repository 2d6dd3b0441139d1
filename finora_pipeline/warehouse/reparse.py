"""Parses line items, and marks days stale when the grammar or the table of services changes."""

from dataclasses import asdict, fields
from functools import lru_cache

import duckdb
import pyarrow as pa

from finora_pipeline.openai_admin.charge_kinds import kind_of
from finora_pipeline.openai_admin.line_items import parse_line_item
from finora_pipeline.openai_admin.service_names import SERVICE_NAMES, ServiceName
from finora_pipeline.warehouse.sql import section
from finora_pipeline.warehouse.statements import run_section

# Bounds the memory of a reparse.
LINE_ITEMS_AT_ONCE = 10_000


def landed_line_items(connection: duckdb.DuckDBPyConnection) -> pa.Table:
    """The distinct line items of the files being loaded, parsed."""
    return _parsed(connection.execute(section("daily_costs", "line_items")).fetchall())


def reparse_line_items(connection: duckdb.DuckDBPyConnection) -> int:
    """Parses the line items of all charges again, within the caller's transaction.

    Returns how many distinct ones changed their meaning. Their days become stale and their months
    unpublished.
    """
    connection.execute(section("daily_costs", "distinct_line_items"))
    ((count,),) = connection.execute("SELECT count(*) FROM distinct_line_items").fetchall()
    changed = 0
    for first in range(0, count, LINE_ITEMS_AT_ONCE):
        texts = connection.execute(
            "SELECT line_item FROM distinct_line_items WHERE number >= ? AND number < ?",
            [first, first + LINE_ITEMS_AT_ONCE],
        ).fetchall()
        connection.register("line_items", _parsed(texts))
        connection.execute(section("daily_costs", "macros"))
        run_section(connection, "daily_costs", "reparse")
        connection.unregister("line_items")
        changed += connection.execute("SELECT count(DISTINCT line_item) FROM reparsed").fetchall()[0][0]
    connection.execute("DROP TABLE distinct_line_items")
    connection.execute("DROP TABLE IF EXISTS reparsed")
    return changed


@lru_cache(maxsize=1)
def service_names_table() -> pa.Table:
    """The names of a service in costs and in usage (service_names.csv), a row each."""
    # Made at its first use: Arrow imports pandas to make a table of rows.
    return pa.Table.from_pylist(
        [asdict(name) for name in SERVICE_NAMES],
        pa.schema([(column.name, pa.string()) for column in fields(ServiceName)]),
    )


def mark_services_stale(connection: duckdb.DuckDBPyConnection) -> None:
    """Marks the days stale whose charges match usage by service or by cache write counter.

    Within the caller's transaction; for a migration after a change of either.
    """
    connection.register("service_names", service_names_table())
    run_section(connection, "attribution", "mark_services_stale")
    connection.unregister("service_names")


def _parsed(texts: list[tuple[str]]) -> pa.Table:
    items = [parse_line_item(text) for (text,) in texts]
    kinds = [kind_of(item) for item in items]
    return pa.table(
        {
            "line_item": pa.array([item.text for item in items], pa.string()),
            "model": pa.array([item.model for item in items], pa.string()),
            "direction": pa.array([item.direction for item in items], pa.string()),
            "modality": pa.array([item.modality for item in items], pa.string()),
            "tier": pa.array([item.tier for item in items], pa.string()),
            "is_long_context": pa.array([item.is_long_context for item in items], pa.bool_()),
            "is_parsed": pa.array([item.is_parsed for item in items], pa.bool_()),
            "cost_service": pa.array([kind.cost_service for kind in kinds], pa.string()),
            "charge_category": pa.array([kind.charge_category for kind in kinds], pa.string()),
        }
    )
