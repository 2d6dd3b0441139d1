"""scan(): any result in little memory, and no connection left open."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import finora_pipeline
from finora_pipeline.reading import NothingPublished

OPEN_FILES = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")


def times_open(path: Path) -> int:
    """Return how often this process has the file open."""
    return sum(os.path.realpath(name) == str(path.resolve()) for name in OPEN_FILES.iterdir())


@pytest.mark.usefixtures("installation")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user_id": "acme"},
        {"columns": ["amount_usd", "user_id", "line_item"]},
        {"since": "2026-01-01", "amounts": "float"},
    ],
)
def test_scan_gives_the_rows_that_read_gives(options: dict[str, Any]):
    with finora_pipeline.scan("daily_costs", batch_rows=50, **options) as batches:
        scanned = batches.read_all()
    read = finora_pipeline.read("daily_costs", as_="arrow", **options)
    assert scanned.schema == read.schema
    assert scanned.num_rows > 50
    assert sorted(map(str, scanned.to_pylist())) == sorted(map(str, read.to_pylist()))


def test_rows_come_in_the_tables_order(extremes: Path):
    with finora_pipeline.scan("daily_costs", path=extremes) as batches:
        assert batches.read_all()["user_id"].to_pylist() == ["b", "a", "a"]


def test_no_batch_has_more_rows_than_asked_for(extremes: Path):
    with finora_pipeline.scan("large", batch_rows=5_000, path=extremes) as batches:
        sizes = [batch.num_rows for batch in batches]
    assert max(sizes) <= 5_000
    assert sum(sizes) == 4_000_000


def test_a_scan_needs_little_of_duckdbs_memory(extremes: Path, monkeypatch: pytest.MonkeyPatch):
    # read() of the same rows needs more than this (test_forms.py).
    monkeypatch.setenv("FINORA_MEMORY_LIMIT", "128MB")
    with finora_pipeline.scan("large", path=extremes) as batches:
        assert sum(batch.num_rows for batch in batches) == 4_000_000


def read_to_the_end(batches: pa.RecordBatchReader) -> None:
    assert sum(batch.num_rows for batch in batches) == 4_000_000


def leave_the_block(batches: pa.RecordBatchReader) -> None:
    with batches:
        batches.read_next_batch()


@needs_proc
@pytest.mark.parametrize("finish", [read_to_the_end, leave_the_block, pa.RecordBatchReader.close])
def test_a_finished_scan_leaves_nothing_open(finish: Any, extremes: Path):
    batches = finora_pipeline.scan("large", path=extremes)
    gc.collect()
    assert times_open(extremes) == 1
    finish(batches)
    assert times_open(extremes) == 0


@needs_proc
def test_a_deleted_scan_leaves_nothing_open_and_its_batches_usable(extremes: Path):
    batches = finora_pipeline.scan("daily_costs", path=extremes)
    batch = batches.read_next_batch()
    del batches
    gc.collect()
    assert times_open(extremes) == 0
    assert batch["user_id"].to_pylist() == ["b", "a", "a"]


@needs_proc
@pytest.mark.parametrize("options", [{"table": "costs"}, {"columns": ["usd"]}, {"since": "yesterday"}])
def test_a_refused_scan_leaves_nothing_open(options: dict[str, Any], extremes: Path):
    with pytest.raises(ValueError, match=r"Unknown table|no column|must be a day"):
        finora_pipeline.scan(**{"table": "daily_costs", "path": extremes, **options})
    assert times_open(extremes) == 0


def test_a_batch_has_at_least_one_row(extremes: Path):
    with pytest.raises(ValueError, match="batch_rows must be at least 1, not 0"):
        finora_pipeline.scan("daily_costs", batch_rows=0, path=extremes)


def test_a_scan_before_the_first_refresh_raises():
    with pytest.raises(NothingPublished):
        finora_pipeline.scan("daily_costs")
