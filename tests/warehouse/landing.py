"""Land pages as a fetch does, for tests of later steps."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS, EXTRA_ENDPOINTS, Endpoint, Listing
from finora_pipeline.openai_admin.pages import Page, PageHead, Window, check_page, unix_seconds
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import load_pending
from finora_pipeline.warehouse.load_report import Loaded
from finora_pipeline.warehouse.raw import PageSet, RawPages

FIXTURES = Path(__file__).parent.parent / "fixtures"
DAY = date(2026, 6, 14)


def bucket(results: Any, day: date = DAY) -> dict[str, Any]:
    start = unix_seconds(day)
    return {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": results}


def page_of(*buckets: Any) -> str:
    """Return a page's JSON; a bucket given as JSON text keeps its digits."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in buckets]
    return '{"object":"page","has_more":false,"next_page":null,"data":[' + ",".join(texts) + "]}"


def cost_row(
    amount_json: str, line_item: str | None = "gpt-4o, input", project: str | None = "proj_a"
) -> str:
    """Return a cost row as JSON text with the amount as given."""
    fields = {"object": "organization.costs.result", "line_item": line_item, "project_id": project}
    amount = '{"value":' + amount_json + ',"currency":"usd"}'
    return json.dumps(fields)[:-1] + ',"amount":' + amount + "}"


def cost_day(rows: list[str], day: date = DAY) -> str:
    return json.dumps(bucket([], day))[:-2] + ",".join(rows) + "]}"


def land(
    warehouse: Warehouse,
    body: str | bytes,
    *,
    user_id: str = "acme",
    endpoint: Endpoint = COSTS,
    window: Window | None = None,
    run_id: str = "run-1",
    fetched_at: datetime | None = None,
) -> None:
    """Land one page of a user as a complete set; the window defaults to the page's days."""
    raw_body = body.encode() if isinstance(body, str) else body
    head = check_page(endpoint, raw_body)
    if window is None:
        days = [datetime.fromtimestamp(start, UTC).date() for start in head.starts]
        window = Window(min(days), max(days) + timedelta(days=1))
    moment = fetched_at or datetime.now(UTC)
    page = Page(endpoint, window, endpoint.group_by, 1, moment, raw_body, head)
    RawPages(warehouse.raw).writer(run_id).land([PageSet(user_id, [page])])


def land_lists(
    warehouse: Warehouse,
    lists: dict[tuple[Listing, str], list[dict[str, Any]]],
    fetched_at: datetime,
    user_id: str = "acme",
) -> None:
    """Land one fetch of the directory: rows by list and project."""
    window = Window(DAY, DAY + timedelta(days=1))
    pages = [
        Page(
            listing,
            window,
            (project_id,) if project_id else (),
            1,
            fetched_at,
            json.dumps({"object": "list", "data": found, "has_more": False}).encode(),
            PageHead(False, None, []),
        )
        for (listing, project_id), found in lists.items()
    ]
    RawPages(warehouse.raw).writer("run-1").land([PageSet(user_id, pages)])


def load(warehouse: Warehouse, endpoint: str = "costs", run_id: str = "run-1") -> Loaded:
    return load_pending(warehouse, [{**ENDPOINTS, **EXTRA_ENDPOINTS}[endpoint].kind], run_id)


def rows(warehouse: Warehouse, query: str) -> list[tuple[Any, ...]]:
    with warehouse.writing() as connection:
        return connection.execute(query).fetchall()
