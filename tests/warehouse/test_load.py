"""Loading: exactly once, the newest fetch counts, whole days, also empty ones."""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from finora_pipeline.data_folder.disk import DiskFull
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS
from finora_pipeline.openai_admin.pages import Page, Window, check_page
from finora_pipeline.warehouse import load as loading
from finora_pipeline.warehouse import portions
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.raw import PageSet, RawPages
from finora_pipeline.warehouse.rebuild import rebuild
from finora_pipeline.warehouse.retention import thin
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, load, page_of, rows

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
AMOUNTS = "SELECT date, amount_usd FROM daily_costs ORDER BY date"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def test_a_restated_day_is_replaced_as_a_whole(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"', "a"), cost_row('"2.00"', "b")])), fetched_at=NOON)
    load(warehouse)
    later = NOON + timedelta(hours=1)
    land(warehouse, page_of(cost_day([cost_row('"1.50"', "a")])), run_id="run-2", fetched_at=later)
    load(warehouse)
    assert rows(warehouse, "SELECT line_item, amount_usd FROM daily_costs") == [("a", Decimal("1.5"))]


def test_a_day_that_becomes_empty_is_emptied(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])), fetched_at=NOON)
    load(warehouse)
    land(warehouse, page_of(bucket([])), run_id="run-2", fetched_at=NOON + timedelta(hours=1))
    load(warehouse)
    assert rows(warehouse, AMOUNTS) == []


def test_a_user_with_a_newly_known_day_is_stale_even_without_spend(warehouse: Warehouse):
    stale = "SELECT user_id, provider FROM pipeline.stale_users"
    land(warehouse, page_of(bucket([])), fetched_at=NOON)
    land(warehouse, page_of(bucket([])), user_id="only-usage", endpoint=ENDPOINTS["completions"])
    load(warehouse)
    load(warehouse, "completions")
    assert rows(warehouse, stale) == [("acme", "openai")]

    refresh_metrics(warehouse, NOON.date())
    assert rows(warehouse, "FROM pipeline.stale_days") == rows(warehouse, stale) == []
    land(warehouse, page_of(bucket([])), run_id="run-2", fetched_at=NOON + timedelta(hours=1))
    load(warehouse)
    assert rows(warehouse, stale) == []
    land(warehouse, page_of(bucket([], NOON.date())), run_id="run-3", fetched_at=NOON + timedelta(hours=2))
    load(warehouse)
    assert rows(warehouse, stale) == [("acme", "openai")]


def test_an_older_fetch_does_not_replace_a_newer_one(warehouse: Warehouse):
    newer = page_of(cost_day([cost_row('"2.00"')]))
    land(warehouse, newer, run_id="fast", fetched_at=NOON + timedelta(minutes=5))
    load(warehouse)
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])), run_id="slow", fetched_at=NOON)
    load(warehouse)
    assert rows(warehouse, AMOUNTS) == [(DAY, Decimal("2"))]


def test_of_two_fetches_loaded_together_the_newer_counts(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])), run_id="one", fetched_at=NOON)
    later = NOON + timedelta(seconds=1)
    land(warehouse, page_of(cost_day([cost_row('"2.00"')])), run_id="two", fetched_at=later)
    load(warehouse)
    assert rows(warehouse, AMOUNTS) == [(DAY, Decimal("2"))]


def test_other_days_and_users_are_left_alone(warehouse: Warehouse):
    next_day = DAY + timedelta(days=1)
    both = page_of(cost_day([cost_row('"1.00"')]), cost_day([cost_row('"2.00"')], next_day))
    land(warehouse, both, fetched_at=NOON)
    land(warehouse, both, user_id="other", fetched_at=NOON)
    load(warehouse)
    later = NOON + timedelta(hours=1)
    land(warehouse, page_of(cost_day([cost_row('"9.00"')], next_day)), fetched_at=later)
    load(warehouse)
    query = "SELECT user_id, date, amount_usd FROM daily_costs ORDER BY ALL"
    assert rows(warehouse, query) == [
        ("acme", DAY, Decimal(1)),
        ("acme", next_day, Decimal(9)),
        ("other", DAY, Decimal(1)),
        ("other", next_day, Decimal(2)),
    ]


def test_a_day_without_a_bucket_keeps_its_rows(warehouse: Warehouse):
    window = Window(DAY, DAY + timedelta(days=2))
    next_day = DAY + timedelta(days=1)
    both = page_of(cost_day([cost_row('"1.00"')]), cost_day([cost_row('"2.00"')], next_day))
    land(warehouse, both, window=window, fetched_at=NOON)
    load(warehouse)
    only_first = page_of(cost_day([cost_row('"1.00"')]))
    land(warehouse, only_first, window=window, fetched_at=NOON + timedelta(hours=1))
    load(warehouse)
    assert rows(warehouse, AMOUNTS) == [(DAY, Decimal(1)), (next_day, Decimal(2))]


def test_a_file_whose_move_was_lost_is_not_loaded_again(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])))
    load(warehouse)
    raw = RawPages(warehouse.raw)
    (loaded,) = raw.archived()
    back = warehouse.raw / "pending" / loaded.name
    loaded.path.rename(back)
    assert rebuild(warehouse).differences == []
    (loaded,) = raw.archived()
    loaded.path.rename(back)
    load(warehouse)
    assert raw.pending() == []
    assert [file.name for file in raw.archived()] == [loaded.name]
    assert rows(warehouse, "SELECT count(*), sum(amount_usd) FROM daily_costs") == [(1, Decimal(1))]


def test_a_half_written_file_is_ignored_and_deleted_when_abandoned(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])))
    (pending,) = RawPages(warehouse.raw).pending()
    killed = subprocess.Popen(["true"])
    killed.wait()
    half, written = (pending.path.with_name(f".{pending.name}.{pid}") for pid in (killed.pid, os.getpid()))
    for path in (half, written):
        path.write_bytes(pending.path.read_bytes()[:100])
    load(warehouse)
    assert rows(warehouse, "SELECT count(*) FROM daily_costs") == [(1,)]
    thin(warehouse, DAY)
    assert not half.exists()
    assert written.exists()


def test_a_failed_load_changes_nothing_and_the_next_one_succeeds(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
):
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])), fetched_at=NOON)
    load(warehouse)
    land(warehouse, page_of(cost_day([cost_row('"2.00"')])), fetched_at=NOON + timedelta(hours=1))
    real = loading.run_section

    def failing(connection, table, name, **parameters):
        real(connection, table, name, **parameters)
        if name == "load":
            raise OSError("No space left on device")

    monkeypatch.setattr(loading, "run_section", failing)
    with pytest.raises(DiskFull, match=str(warehouse.home)):
        load(warehouse)
    monkeypatch.undo()
    assert rows(warehouse, AMOUNTS) == [(DAY, Decimal(1))]
    load(warehouse)
    assert rows(warehouse, AMOUNTS) == [(DAY, Decimal(2))]


def test_usage_rows_keep_their_tokens(warehouse: Warehouse):
    result = {
        "object": "organization.usage.completions.result",
        "input_tokens": 27_444,
        "input_cached_tokens": 8_448,
        "output_tokens": 311,
        "num_model_requests": 7,
        "project_id": "proj_a",
        "model": "gpt-4o",
        "batch": False,
    }
    land(warehouse, page_of(bucket([result])), endpoint=ENDPOINTS["completions"])
    load(warehouse, "completions")
    query = "SELECT service, model, batch, requests, input_tokens, input_cached_tokens, output_tokens"
    assert rows(warehouse, f"{query} FROM daily_usage") == [
        ("completions", "gpt-4o", False, 7, 27_444, 8_448, 311)
    ]


def test_many_files_are_loaded_in_several_transactions(warehouse: Warehouse):
    count = portions.MOST_FILES + 3
    for number in range(count):
        body = page_of(cost_day([cost_row('"1.00"')]))
        land(warehouse, body, user_id=f"user-{number}", run_id=f"run-{number}")
    loaded = load(warehouse, run_id="run-0")
    assert loaded.cost_rows == 1
    assert rows(warehouse, "SELECT count(*), sum(amount_usd) FROM daily_costs") == [(count, Decimal(count))]


def test_duplicate_usage_rows_are_added_up(warehouse: Warehouse):
    one = {"model": "gpt-4o", "project_id": "proj_a", "input_tokens": 5, "num_model_requests": 1}
    other = {"model": "gpt-4o", "project_id": "proj_b", "input_tokens": 100}
    next_day = DAY + timedelta(days=1)
    twice = page_of(
        bucket([one, other, one | {"input_tokens": 7, "output_tokens": 3}]), bucket([one], next_day)
    )
    land(warehouse, twice, endpoint=ENDPOINTS["completions"])
    loaded = load(warehouse, "completions")
    assert loaded.repeated == {"daily_usage": 0}
    query = (
        "SELECT date, project_id, requests, input_tokens, output_tokens, images FROM daily_usage ORDER BY ALL"
    )
    assert rows(warehouse, query) == [
        (DAY, "proj_a", 2, 12, 3, None),
        (DAY, "proj_b", None, 100, None, None),
        (next_day, "proj_a", 1, 5, None, None),
    ]


@pytest.mark.slow
def test_pages_of_a_large_organization_fit_into_the_memory_limit(warehouse: Warehouse):
    days = [DAY + timedelta(days=number) for number in range(40)]
    long_name = "x" * 400
    cost_days = [
        cost_day(
            [cost_row(f'"{n}.{n:018}"', f"{long_name}{n}", f"proj_{n % 40}") for n in range(1, 1_501)], day
        )
        for day in days
    ]
    land(warehouse, page_of(*cost_days))
    results = [{"model": f"{long_name}{n}", "project_id": "proj_a", "input_tokens": n} for n in range(1_500)]
    land(warehouse, page_of(*(bucket(results, day) for day in days)), endpoint=ENDPOINTS["completions"])
    load(warehouse)
    load(warehouse, "completions")
    exact = sum((Decimal(f"{n}.{n:018}") for n in range(1, 1_501)), Decimal(0)) * 40
    assert rows(warehouse, "SELECT count(*), sum(amount_usd) FROM daily_costs") == [(60_000, exact)]
    assert rows(warehouse, "SELECT count(*), sum(input_tokens) FROM daily_usage") == [
        (60_000, sum(range(1_500)) * 40)
    ]
    assert not warehouse.cut_pages.exists()


def test_the_fetch_time_of_a_set_is_its_oldest_pages(warehouse: Warehouse):
    """Pieces of a long window are fetched concurrently, and one of them may be retried."""
    land(warehouse, page_of(cost_day([cost_row('"2.00"')])), fetched_at=NOON + timedelta(seconds=30))
    load(warehouse)
    pieces = []
    for day, seconds in ((DAY - timedelta(days=1), 60), (DAY, 0)):
        body = page_of(cost_day([cost_row('"1.00"')], day)).encode()
        window = Window(day, day + timedelta(days=1))
        moment = NOON + timedelta(seconds=seconds)
        pieces.append(Page(COSTS, window, COSTS.group_by, 1, moment, body, check_page(COSTS, body)))
    RawPages(warehouse.raw).writer("history").land([PageSet("acme", pieces)])
    load(warehouse)
    assert rows(warehouse, AMOUNTS) == [(DAY - timedelta(days=1), Decimal(1)), (DAY, Decimal(2))]
    assert rows(warehouse, "SELECT count(*) FROM cost_revisions") == [(0,)]
