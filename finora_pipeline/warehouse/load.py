"""From raw pages to facts: the pages that have landed replace the days they cover.

Exactly once: the ledger of loaded files is written in the transaction that writes the rows. Newest wins: a
page set does not replace a day that a later read has already filled. A crash between landing and loading
is healed by whoever loads next.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from decimal import Decimal

import duckdb

from finora_pipeline.openai_admin.endpoints import COSTS, Endpoint
from finora_pipeline.warehouse.decode import Decoded, decode_files
from finora_pipeline.warehouse.raw import RawFile, RawPages
from finora_pipeline.warehouse.warehouse import Warehouse, run, transaction

# Raw files that are loaded in one transaction: fewer wait for the disk more often, more take more memory.
FILES_A_TRANSACTION = 4


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


def load_pending(warehouse: Warehouse, endpoints: Iterable[Endpoint], run_id: str) -> Loaded:
    """Loads every landed file of the endpoints, some files a transaction, under the warehouse's lock.

    Returns what the pages that the run fetched became, whoever loaded them.
    """
    raw = RawPages(warehouse.raw)
    names = [endpoint.name for endpoint in endpoints]
    with warehouse.writing() as connection:
        # The other core decodes; measured faster than two threads here that wait for each other.
        connection.execute("SET threads = 1")
        for name in names:
            # Listed under the lock: another process may have loaded them a moment ago.
            files = raw.pending(name)
            moved = _already_loaded(connection, files)
            for file, fetched_on in moved.items():
                raw.archive(file, fetched_on)
            for decoded in _decoded([file for file in files if file not in moved]):
                _load(connection, name, decoded)
                for file, fetched_on in zip(decoded.files, decoded.fetched_on, strict=True):
                    raw.archive(file, fetched_on)
        return _loaded_by(connection, run_id, names)


def _already_loaded(connection: duckdb.DuckDBPyConnection, files: list[RawFile]) -> dict[RawFile, date]:
    """The files that the ledger holds: a crash kept them from being moved."""
    query = "SELECT raw_file, fetched_on FROM pipeline.loaded_files WHERE list_contains(?, raw_file)"
    known = dict(connection.execute(query, [[file.name for file in files]]).fetchall())
    return {file: known[file.name] for file in files if file.name in known}


def _decoded(files: list[RawFile]) -> Iterator[Decoded]:
    """The files' content, some at a time; the next are decoded while DuckDB loads those before."""
    batches = [files[n : n + FILES_A_TRANSACTION] for n in range(0, len(files), FILES_A_TRANSACTION)]
    with ThreadPoolExecutor(1) as decoder:
        ahead = [decoder.submit(decode_files, batch) for batch in batches[:1]]
        for number in range(len(batches)):
            decoded = ahead.pop().result()
            if number + 1 < len(batches):
                ahead.append(decoder.submit(decode_files, batches[number + 1]))
            yield decoded


def _load(connection: duckdb.DuckDBPyConnection, endpoint: str, decoded: Decoded) -> None:
    """Replaces the days that the decoded files cover, and notes the files as loaded."""
    is_costs = endpoint == COSTS.name
    table = "daily_costs" if is_costs else "daily_usage"
    connection.register("cost_rows" if is_costs else "usage_rows", decoded.results)
    connection.register("page_days", decoded.page_days)
    connection.register("line_items", decoded.line_items)
    connection.register("ledger", decoded.ledger)
    parameters = {"endpoint": endpoint, "table_name": table}
    with transaction(connection):
        run(connection, "pipeline", "begin_load", **parameters)
        run(connection, table, "load", **parameters)
        run(connection, "pipeline", "end_load", **parameters)


def _loaded_by(connection: duckdb.DuckDBPyConnection, run_id: str, endpoints: list[str]) -> Loaded:
    files, pages, rows, users, unparsed, amount = connection.execute(
        "SELECT count(*), coalesce(sum(pages), 0)::BIGINT, coalesce(sum(result_rows), 0)::BIGINT, "
        "coalesce(sum(users), 0)::BIGINT, coalesce(sum(unparsed), 0)::BIGINT, "
        "coalesce(sum(amount_usd), 0)::DECIMAL(38, 18) "
        "FROM pipeline.loaded_files WHERE run_id = $run_id AND list_contains($endpoints, endpoint)",
        {"run_id": run_id, "endpoints": endpoints},
    ).fetchall()[0]
    return Loaded(files, pages, rows, users, unparsed, amount)
