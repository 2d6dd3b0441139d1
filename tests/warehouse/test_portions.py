"""Pages that cannot be loaded are quarantined; the rest is loaded in portions."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS
from finora_pipeline.openai_admin.pages import Page, PageHead, Window, unix_seconds
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse import portions
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.raw import PageSet, RawPages
from finora_pipeline.warehouse.rebuild import rebuild, replace_warehouse
from finora_pipeline.warehouse.schema import RebuildIncomplete
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, load, page_of, rows

NOON = datetime(2026, 6, 20, 12, tzinfo=UTC)
AMOUNTS = "SELECT user_id, sum(amount_usd) FROM daily_costs GROUP BY ALL ORDER BY ALL"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def page_set(user_id: str, amount_json: str, fetched_at: datetime = NOON) -> PageSet:
    """Return an accepted page of a day with any amount."""
    body = page_of(cost_day([cost_row(amount_json)])).encode()
    head = PageHead(False, None, [unix_seconds(DAY)], line_items=frozenset(["gpt-4o, input"]))
    window = Window(DAY, DAY + timedelta(days=1))
    return PageSet(user_id, [Page(COSTS, window, COSTS.group_by, 1, fetched_at, body, head)])


def test_one_bad_page_stops_no_other_user(warehouse: Warehouse):
    amounts = {f"user-{n}": '"1.00"' for n in range(7)} | {"user-3": '"no amount"'}
    RawPages(warehouse.raw).writer("run-1").land([page_set(*one) for one in amounts.items()])
    loaded = load(warehouse)
    assert rows(warehouse, AMOUNTS) == [(f"user-{n}", Decimal(1)) for n in range(7) if n != 3]
    (quarantined,) = loaded.quarantined
    assert quarantined.user_ids == ["user-3"]
    assert quarantined.reason == "It holds values that cannot be stored."
    assert RawPages(warehouse.raw).pending() == []


@pytest.mark.slow
def test_several_bad_pages_in_several_files_are_found(warehouse: Warehouse):
    for run in range(3):
        sets = [page_set(f"user-{run}{n}", '"x"' if n == run else '"1.00"') for n in range(4)]
        RawPages(warehouse.raw).writer(f"run-{run}").land(sets)
    load(warehouse)
    bad = sorted(user for one in RawPages(warehouse.raw).quarantined() for user in one.user_ids)
    assert bad == ["user-00", "user-11", "user-22"]
    assert rows(warehouse, "SELECT count(*) FROM daily_costs") == [(9,)]


def test_a_file_that_is_not_parquet_is_set_aside(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])))
    (landed,) = RawPages(warehouse.raw).pending()
    broken = landed.path.with_name("costs~run-2~1.parquet")
    broken.write_bytes(b"PAR1 and nothing of it")
    load(warehouse)
    assert [one.file.name for one in RawPages(warehouse.raw).quarantined()] == [broken.name]
    assert rows(warehouse, "SELECT count(*) FROM daily_costs") == [(1,)]


def test_quarantine_ends_when_newer_pages_fill_its_days(warehouse: Warehouse):
    RawPages(warehouse.raw).writer("run-1").land([page_set("acme", '"x"')])
    load(warehouse)
    assert len(RawPages(warehouse.raw).quarantined()) == 1
    RawPages(warehouse.raw).writer("run-2").land([page_set("acme", '"2.00"', NOON + timedelta(hours=1))])
    load(warehouse, run_id="run-2")
    assert RawPages(warehouse.raw).quarantined() == []
    assert rows(warehouse, AMOUNTS) == [("acme", Decimal(2))]


@pytest.mark.slow
def test_a_rebuild_reports_quarantined_files(warehouse: Warehouse):
    RawPages(warehouse.raw).writer("run-1").land([page_set("acme", '"x"'), page_set("globex", '"1.00"')])
    load(warehouse)
    rebuilt = rebuild(warehouse)
    assert rebuilt.differences == []
    assert [one.reason for one in rebuilt.unloadable] == ["It holds values that cannot be stored."]
    assert replace_warehouse(warehouse) == 1
    assert rows(warehouse, AMOUNTS) == [("globex", Decimal(1))]


@pytest.mark.slow
def test_a_rebuild_that_lacks_a_file_replaces_nothing(warehouse: Warehouse):
    for number in range(2):
        land(warehouse, page_of(cost_day([cost_row('"1.00"')])), user_id=f"u{number}", run_id=f"r{number}")
    load(warehouse)
    archived = list(RawPages(warehouse.raw).archived())
    archived[0].path.write_bytes(b"PAR1 cut")
    assert [one.file for one in rebuild(warehouse).unloadable] == [archived[0].name]
    with pytest.raises(RebuildIncomplete, match="move it to raw/quarantine"):
        replace_warehouse(warehouse)
    assert rows(warehouse, "SELECT count(*) FROM daily_costs") == [(2,)]


def test_an_interrupted_split_loads_every_page_set_once(warehouse: Warehouse):
    raw = RawPages(warehouse.raw)
    raw.writer("run-1").land([page_set(f"user-{n}", '"1.00"') for n in range(4)])
    (file,) = raw.pending()
    content = file.path.read_bytes()
    assert len(raw.split(file)) == 2
    # The process died before deleting the file that it had split.
    file.path.write_bytes(content)
    load(warehouse)
    assert rows(warehouse, "SELECT count(*), sum(amount_usd) FROM daily_costs") == [(4, Decimal(4))]


def test_portions_are_bounded_by_their_decoded_text(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FINORA_MEMORY_LIMIT", "128MB")
    text = "x" * 1_000
    results = [{"model": f"{text}{n}", "input_tokens": n} for n in range(4_000)]
    for number in range(4):
        body = page_of(bucket(results))
        land(warehouse, body, user_id=f"u{number}", endpoint=ENDPOINTS["completions"], run_id=f"r{number}")
    files = RawPages(warehouse.raw).pending()
    # 4 MB of text each, of which Parquet's compression leaves a few kilobytes.
    assert sum(file.path.stat().st_size for file in files) < 1_000_000
    assert [len(portion) for portion in portions.portions(files)] == [2, 2]


def test_memory_and_threads_follow_settings_and_machine(monkeypatch: pytest.MonkeyPatch):
    def limits(**environment: str) -> tuple[int, int]:
        found = duckdb_limits(Settings.from_environment({"FINORA_HOME": "/tmp", **environment}))
        return found.memory_bytes, found.threads

    monkeypatch.setattr("finora_pipeline.warehouse.machine.machine_memory_bytes", lambda: 1_000_000_000)
    monkeypatch.setattr("finora_pipeline.warehouse.machine.machine_cpus", lambda: 8)
    assert limits() == (250_000_000, 1)
    assert limits(FINORA_MEMORY_LIMIT="1GB") == (1_000_000_000, 4)
    assert limits(FINORA_MEMORY_LIMIT="512MiB", FINORA_THREADS="2") == (536_870_912, 2)
    monkeypatch.setattr("finora_pipeline.warehouse.machine.machine_memory_bytes", lambda: 64_000_000_000)
    assert limits() == (4_000_000_000, 4)


def test_writers_in_the_same_run_never_share_a_file_name(warehouse: Warehouse):
    raw = RawPages(warehouse.raw)
    writers = [raw.writer("run-1") for _ in range(20)]
    for n, writer in enumerate(writers):
        writer.land([page_set(f"user-{n:02}", '"1.00"')])
    load(warehouse)
    assert rows(warehouse, "SELECT count(DISTINCT user_id) FROM daily_costs") == [(20,)]
