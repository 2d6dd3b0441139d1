"""From raw files to Arrow tables: what a load hands to SQL. Money and quantities stay exact on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from finora_pipeline.openai_admin.amounts import AMOUNT_TYPE, amounts_to_arrow
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.line_items import LineItem, parse_line_item
from finora_pipeline.openai_admin.pages import decode_costs, decode_usage, distinct_costs
from finora_pipeline.warehouse.raw import PROVIDER, RawFile, read_bodies

# A DATE is a number of days since 1970-01-01.
SECONDS_PER_DAY = 86_400
MOMENT = pa.timestamp("us", "UTC")
# The columns of daily_usage, and OpenAI's name for each.
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
_LEDGER = pa.schema(
    [
        ("raw_file", pa.string()),
        ("run_id", pa.string()),
        ("fetched_on", pa.date32()),
        ("pages", pa.int64()),
        ("result_rows", pa.int64()),
        ("users", pa.int64()),
        ("unparsed", pa.int64()),
        ("amount_usd", AMOUNT_TYPE),
    ]
)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Some raw files of one endpoint as Arrow tables, under the names that the SQL knows them by.

    `results`: the pages' rows. `page_days`: the days they cover, empty ones included. `line_items`: each
    distinct text, parsed. `ledger`: a row a file.
    """

    files: Sequence[RawFile]
    results: pa.Table
    page_days: pa.Table
    line_items: pa.Table
    ledger: pa.Table

    @property
    def fetched_on(self) -> list[date]:
        """Each file's UTC day of fetching."""
        return self.ledger["fetched_on"].to_pylist()


def decode_files(files: Sequence[RawFile]) -> Decoded:
    """Reads and decodes files of one endpoint; an empty sequence is not allowed."""
    parts = [_decode(file) for file in files]
    line_items = {item.text: item for _, _, items, _ in parts for item in items}
    return Decoded(
        files,
        pa.concat_tables([results for results, *_ in parts]),
        pa.concat_tables([days for _, days, *_ in parts]),
        _line_item_table(list(line_items.values())),
        pa.Table.from_pylist([row for *_, row in parts], _LEDGER),
    )


def _decode(file: RawFile) -> tuple[pa.Table, pa.Table, list[LineItem], dict[str, Any]]:
    pages = read_bodies(file)
    user_ids = pages["user_id"].to_pylist()
    fetched = pages["fetched_at"].to_pylist()
    windows = list(zip(pages["window_start"].to_pylist(), pages["window_end"].to_pylist(), strict=True))
    bodies = [body.as_py() for body in pages["body"]]
    ledger = {
        "raw_file": file.name,
        "run_id": file.run_id,
        "fetched_on": max(fetched).date(),
        "pages": len(bodies),
        "users": len(set(user_ids)),
        "unparsed": 0,
    }
    items: list[LineItem] = []
    if file.endpoint == COSTS.name:
        results = _cost_rows(user_ids, fetched, bodies)
        texts = pc.unique(results["line_item"]).drop_null().to_pylist()  # type: ignore[attr-defined]
        items = [parse_line_item(text) for text in texts]
        ledger["unparsed"] = sum(not item.is_parsed for item in items)
        ledger["amount_usd"] = pc.sum(results["amount_usd"]).as_py()  # type: ignore[attr-defined]
    else:
        results = _usage_rows(user_ids, fetched, bodies)
    ledger["result_rows"] = results.num_rows
    days = _page_days(file, list(zip(user_ids, fetched, windows, strict=True)))
    return results, days, items, ledger


def _page_days(file: RawFile, pages: list[tuple[str, datetime, tuple[date, date]]]) -> pa.Table:
    # A window's pages repeat it; each of its days is listed once.
    covered = [
        (user_id, start + timedelta(days=n), fetched_at)
        for user_id, fetched_at, (start, end) in dict.fromkeys(pages)
        for n in range((end - start).days)
    ]
    return pa.table(
        {
            "user_id": pa.array([user_id for user_id, _, _ in covered], pa.string()),
            "provider": pa.repeat(PROVIDER, len(covered)),
            "date": pa.array([day for _, day, _ in covered], pa.date32()),
            "fetched_at": pa.array([moment for _, _, moment in covered], MOMENT),
            "raw_file": pa.repeat(file.name, len(covered)),
        }
    )


def _cost_rows(user_ids: list[str], fetched: list[datetime], bodies: list[bytes]) -> pa.Table:
    page_of: list[int] = []
    dates: list[int] = []
    results = []
    for index, body in enumerate(bodies):
        for bucket in decode_costs(body).data:
            rows = distinct_costs(bucket.results)
            results += rows
            page_of += [index] * len(rows)
            dates += [bucket.start_time // SECONDS_PER_DAY] * len(rows)

    def days() -> list[tuple[str, int]]:
        return [(user_ids[page], day) for page, day in zip(page_of, dates, strict=True)]

    return pa.table(
        _shared_columns(user_ids, fetched, page_of, dates)
        | {
            "project_id": pa.array([r.project_id for r in results], pa.string()),
            "project_name": pa.array([r.project_name for r in results], pa.string()),
            "organization_id": pa.array([r.organization_id for r in results], pa.string()),
            "line_item": pa.array([r.line_item for r in results], pa.string()),
            "amount_usd": amounts_to_arrow(
                [bytes(r.amount.value) if r.amount else b"" for r in results], days
            ),
            "quantity": amounts_to_arrow([bytes(r.quantity) for r in results], days),
            "quantity_unit": pa.array([r.quantity_unit for r in results], pa.string()),
        }
    )


def _usage_rows(user_ids: list[str], fetched: list[datetime], bodies: list[bytes]) -> pa.Table:
    page_of: list[int] = []
    dates: list[int] = []
    results = []
    for index, body in enumerate(bodies):
        for bucket in decode_usage(body).data:
            results += bucket.results
            page_of += [index] * len(bucket.results)
            dates += [bucket.start_time // SECONDS_PER_DAY] * len(bucket.results)
    columns = _shared_columns(user_ids, fetched, page_of, dates)
    for column, name in USAGE_COLUMNS.items():
        type_ = pa.string() if column in _TEXT_COLUMNS else pa.bool_() if column == "batch" else pa.int64()
        columns[column] = pa.array([getattr(r, name) for r in results], type_)
    return pa.table(columns)


def _shared_columns(
    user_ids: list[str], fetched: list[datetime], page_of: list[int], dates: list[int]
) -> dict[str, pa.Array]:
    """What every row has: whose it is and of which day, and when its page was fetched."""
    pages = pa.array(page_of, pa.int32())
    return {
        "user_id": pa.array(user_ids, pa.string()).take(pages),
        "provider": pa.repeat(PROVIDER, len(page_of)),
        "date": pa.array(dates, pa.int32()).cast(pa.date32()),
        "fetched_at": pa.array(fetched, MOMENT).take(pages),
    }


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
