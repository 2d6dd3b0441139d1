"""Make the sample: the last 30 days of an imaginary organization, and today.

Its pages are landed, loaded and computed as OpenAI's are, so that it shows what real data would show. The
dashboard runs it as a child process, to save the memory of these imports:

    python -m finora_pipeline.dashboard.sample FILE DAY
"""

import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from finora_pipeline.dashboard.snapshots import SAMPLE_USER
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS
from finora_pipeline.openai_admin.pages import SECONDS_PER_DAY, Page, Window, check_page, unix_seconds
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.raw import PageSet, RawPages

# Complete days; today comes after them.
SAMPLE_DAYS = 30
PROJECT = {"project_id": "proj_sample", "project_name": "Sample project"}
RUN = "sample"


@dataclass(frozen=True, slots=True)
class SampleModel:
    """A model: its input tokens of a working day, and USD per million input and output tokens."""

    name: str
    tokens_a_day: int
    input_price: Decimal
    output_price: Decimal

    def input_tokens(self, day: date) -> int:
        """Input tokens of a day: fewer at weekends, and up to a tenth more or less each day."""
        part, percent = 3 if day.weekday() >= 5 else 10, 90 + zlib.crc32(f"{day} {self.name}".encode()) % 21
        return self.tokens_a_day * part * percent // 1000

    def output_tokens(self, day: date) -> int:
        """Output tokens of a day."""
        return self.input_tokens(day) // 4


MODELS = (
    SampleModel("gpt-5-2025-08-07", 620_000, Decimal("1.25"), Decimal("10.00")),
    SampleModel("gpt-5-mini-2025-08-07", 1_450_000, Decimal("0.25"), Decimal("2.00")),
    SampleModel("gpt-4o-mini-2024-07-18", 900_000, Decimal("0.15"), Decimal("0.60")),
)


def cost_results(day: date) -> Iterator[dict[str, Any]]:
    """The charges of a day, as OpenAI's costs endpoint lists them; amounts are exact texts."""
    for model in MODELS:
        for direction, tokens, price in (
            ("input", model.input_tokens(day), model.input_price),
            ("output", model.output_tokens(day), model.output_price),
        ):
            yield {
                "object": COSTS.result_object,
                "amount": {"value": format((tokens * price).scaleb(-6), "f"), "currency": "usd"},
                "line_item": f"{model.name}, {direction}",
                "quantity": tokens,
                "quantity_unit": "tokens",
                **PROJECT,
            }


def usage_results(day: date) -> Iterator[dict[str, Any]]:
    """The usage of a day, as OpenAI's completions endpoint lists it."""
    for model in MODELS:
        tokens = model.input_tokens(day)
        yield {
            "object": ENDPOINTS["completions"].result_object,
            "model": model.name,
            "num_model_requests": tokens // 900 + 1,
            "input_tokens": tokens,
            "input_cached_tokens": 0,
            "input_uncached_tokens": tokens,
            "output_tokens": model.output_tokens(day),
            **PROJECT,
        }


def make_sample(file: Path, today: date) -> None:
    """Write the sample up to a UTC day into a DuckDB file with the published tables."""
    with tempfile.TemporaryDirectory(prefix="finora-sample-") as folder:
        warehouse = Warehouse(Path(folder))
        RawPages(warehouse.raw).writer(RUN).land(sample_pages(today))
        load_pending(warehouse, KINDS, RUN)
        refresh_metrics(warehouse, today)
        shutil.move(warehouse.database, file)


def sample_pages(today: date) -> Iterator[PageSet]:
    """A page of costs and one of usage, each of all days."""
    window = Window(today - timedelta(days=SAMPLE_DAYS), today + timedelta(days=1))
    for endpoint, results in ((COSTS, cost_results), (ENDPOINTS["completions"], usage_results)):
        body = _page(window, results)
        head = check_page(endpoint, body)
        page = Page(endpoint, window, endpoint.group_by, 1, datetime.now(UTC), body, head)
        yield PageSet(SAMPLE_USER, [page])


def _page(window: Window, results: Callable[[date], Iterable[dict[str, Any]]]) -> bytes:
    buckets = [
        {
            "object": "bucket",
            "start_time": unix_seconds(day),
            "end_time": unix_seconds(day) + SECONDS_PER_DAY,
            "results": list(results(day)),
        }
        for day in (window.start + timedelta(days=number) for number in range(window.days))
    ]
    return json.dumps({"object": "page", "has_more": False, "next_page": None, "data": buckets}).encode()


if __name__ == "__main__":
    make_sample(Path(sys.argv[1]), date.fromisoformat(sys.argv[2]))
