"""The peer: dlt with the same fetch and merge into DuckDB, a resource a user and endpoint.

python -m benchmarks.dlt_refresh BASE_URL DAYS HOME
"""

# dlt comes with `make bench` alone; `make check` reads this file without it.
# pyright: reportMissingImports=false

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}

import dlt
import duckdb
from dlt.sources.helpers import requests

from benchmarks.__main__ import READ, admin_keys, window_of
from finora_pipeline.openai_admin.endpoints import COSTS, Endpoint
from finora_pipeline.openai_admin.pages import Window, unix_seconds


def pages(base_url: str, key: str, endpoint: Endpoint, window: Window) -> Iterator[dict[str, Any]]:
    params: list[tuple[str, Any]] = [
        ("start_time", unix_seconds(window.start)),
        ("end_time", unix_seconds(window.end)),
        ("bucket_width", "1d"),
        ("limit", min(endpoint.days_per_page, window.days)),
        *(("group_by", dimension) for dimension in endpoint.group_by),
    ]
    cursor = None
    while True:
        answer = requests.get(
            base_url + endpoint.path,
            params=[*params, ("page", cursor)] if cursor else params,
            headers={"Authorization": f"Bearer {key}"},
        )
        page = json.loads(answer.text, parse_float=Decimal)
        yield page
        if not page["has_more"]:
            return
        cursor = page["next_page"]


def rows(user_id: str, endpoint: Endpoint, page: dict[str, Any]) -> Iterator[dict[str, Any]]:
    fetched_at = datetime.now(UTC)
    for bucket in page["data"]:
        day = datetime.fromtimestamp(bucket["start_time"], UTC).date()
        for row in bucket["results"]:
            if endpoint is COSTS:
                # Rounded to our scale: the text's 34 digits do not fit DuckDB's decimal.
                row["amount"]["value"] = Decimal(row["amount"]["value"]).quantize(Decimal("1e-18"))
            yield row | {"user": user_id, "date": day, "fetched_at": fetched_at}


def resource_of(base_url: str, user_id: str, key: str, endpoint: Endpoint, window: Window) -> Any:
    hints: Any = {}
    if endpoint is COSTS:
        hints = {"amount__value": {"data_type": "decimal", "precision": 38, "scale": 18}}

    @dlt.resource(
        name=f"{endpoint.name}_{user_id}",
        table_name=endpoint.name,
        write_disposition="merge",
        primary_key=("user", "date", *endpoint.group_by),
        columns=hints,
        parallelized=True,
    )
    def read() -> Iterator[list[dict[str, Any]]]:
        for page in pages(base_url, key, endpoint, window):
            yield list(rows(user_id, endpoint, page))

    return read


def main(base_url: str, days: int, home: str) -> None:
    window = window_of(days)
    keys = admin_keys(base_url)
    database = f"{home}/peer.duckdb"

    @dlt.source(name="openai")
    def openai() -> list[Any]:
        return [
            resource_of(base_url, f"user_{number:05d}", key, endpoint, window)
            for number, key in enumerate(keys)
            for endpoint in READ
        ]

    pipeline = dlt.pipeline(
        "peer", destination=dlt.destinations.duckdb(database), dataset_name="read", pipelines_dir=home
    )
    started = time.perf_counter()
    pipeline.run(openai())
    seconds = time.perf_counter() - started
    with duckdb.connect(database, read_only=True) as connection:
        count, total = connection.execute(
            "SELECT (SELECT count(*) FROM read.costs) + (SELECT count(*) FROM read.completions), "
            "(SELECT sum(amount__value) FROM read.costs)"
        ).fetchall()[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "rows": count, "total": str(total), "peak_mb": peak}))


if __name__ == "__main__":
    # dlt walks its resources recursively, and thousands exceed the default limit.
    sys.setrecursionlimit(100_000)
    threading.stack_size(512 << 20)
    worker = threading.Thread(target=main, args=(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
    worker.start()
    worker.join()
