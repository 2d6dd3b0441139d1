"""When a day is known, complete and checked, as loads and equal page sets record it."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.pages import Page, Window, check_page
from finora_pipeline.warehouse.clock import CLOCK_TOLERANCE
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import UnchangedSet, check_days, load_pending
from finora_pipeline.warehouse.migrations import create_first_number
from finora_pipeline.warehouse.raw import PageSet
from finora_pipeline.warehouse.rebuild import replace_warehouse
from finora_pipeline.warehouse.retention import thin
from finora_pipeline.warehouse.schema import create_or_migrate
from tests.warehouse.landing import DAY, cost_day, cost_row, land, load, page_of, rows

END = datetime(2026, 6, 15, tzinfo=UTC)
BEFORE, AFTER = END - timedelta(hours=12), END + timedelta(hours=2)
LATER = END + timedelta(hours=5)
MOMENTS = "SELECT first_fetched_at, fetched_at, completed_at, checked_at FROM pipeline.loaded_days"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def page(amount: str) -> str:
    return page_of(cost_day([cost_row(f'"{amount}"')]))


def fetched(warehouse: Warehouse, at: datetime, amount: str) -> None:
    land(warehouse, page(amount), run_id=f"run-{at:%d-%H}", fetched_at=at)
    load(warehouse)


def unchanged(at: datetime, amount: str) -> UnchangedSet:
    """Return what a fetch of this page records if it equals the loaded one."""
    body = page(amount).encode()
    window = Window(DAY, DAY + timedelta(days=1))
    sha256 = PageSet(
        "acme", [Page(COSTS, window, COSTS.group_by, 1, at, body, check_page(COSTS, body))]
    ).sha256
    return UnchangedSet("acme", "costs", [DAY], at, sha256)


def test_the_first_fetch_after_its_end_completes_a_day(warehouse: Warehouse):
    fetched(warehouse, BEFORE, "1.00")
    assert rows(warehouse, MOMENTS) == [(BEFORE, BEFORE, None, BEFORE)]
    fetched(warehouse, AFTER, "2.00")
    assert rows(warehouse, MOMENTS) == [(BEFORE, AFTER, AFTER, AFTER)]
    fetched(warehouse, LATER, "3.00")
    assert rows(warehouse, MOMENTS) == [(BEFORE, LATER, AFTER, LATER)]


@pytest.mark.parametrize(("at", "completed_at"), [(END - timedelta(microseconds=1), None), (END, END)])
def test_a_fetch_at_the_end_of_a_day_is_complete(
    at: datetime, completed_at: datetime | None, warehouse: Warehouse
):
    fetched(warehouse, at, "1.00")
    assert rows(warehouse, MOMENTS) == [(at, at, completed_at, at)]


def test_an_equal_page_set_completes_a_day_without_a_load(warehouse: Warehouse):
    fetched(warehouse, BEFORE, "1.00")
    check_days(warehouse, [unchanged(BEFORE + timedelta(hours=1), "1.00")])
    assert rows(warehouse, MOMENTS) == [(BEFORE, BEFORE, None, BEFORE + timedelta(hours=1))]
    check_days(warehouse, [unchanged(AFTER, "1.00"), unchanged(LATER, "1.00")])
    assert rows(warehouse, MOMENTS) == [(BEFORE, BEFORE, AFTER, LATER)]


def test_an_equal_set_counts_only_while_it_is_the_loaded_one(warehouse: Warehouse):
    fetched(warehouse, BEFORE, "1.00")
    fetched(warehouse, BEFORE + timedelta(hours=1), "2.00")
    before = rows(warehouse, MOMENTS)
    check_days(warehouse, [unchanged(AFTER, "1.00")])
    assert rows(warehouse, MOMENTS) == before


def test_without_equal_sets_the_warehouse_is_not_opened(warehouse: Warehouse):
    check_days(warehouse, [])
    assert not warehouse.database.exists()


def test_an_earlier_warehouse_learns_its_moments_from_what_it_has(memory: duckdb.DuckDBPyConnection):
    create_first_number(memory)
    known: dict[str, tuple[tuple[datetime, datetime], datetime | None]] = {
        "first after the end": ((AFTER, LATER), AFTER),
        "revised after the end": ((BEFORE, LATER), AFTER),
        "revised before the end": ((BEFORE, LATER), LATER),
        "newest before the end": ((BEFORE, BEFORE + timedelta(hours=1)), None),
    }
    for user_id, ((first, newest), _) in known.items():
        memory.execute(
            "INSERT INTO pipeline.loaded_days VALUES (?, 'openai', 'costs', ?, ?, ?, 'one')",
            [user_id, DAY, first, newest],
        )
    revised = [("revised after the end", AFTER), ("revised before the end", BEFORE + timedelta(hours=1))]
    for user_id, observed_at in revised:
        memory.execute(
            "INSERT INTO cost_revisions VALUES (?, 'openai', ?, 'p', 'a', ?, 1, 2, NULL, NULL, true, true)",
            [user_id, DAY, observed_at],
        )
    create_or_migrate(memory)
    query = "SELECT user_id, completed_at, checked_at FROM pipeline.loaded_days ORDER BY ALL"
    assert memory.execute(query).fetchall() == sorted(
        (user_id, completed_at, newest) for user_id, ((_, newest), completed_at) in known.items()
    )


def days_of(warehouse: Warehouse) -> dict[date, tuple[Any, ...]]:
    found = rows(warehouse, "SELECT date, fetched_at, completed_at, checked_at FROM pipeline.loaded_days")
    return {row[0]: row[1:] for row in found}


def test_moments_of_a_clock_that_ran_ahead_are_in_the_past_again(warehouse: Warehouse):
    now = datetime(2026, 6, 15, 9, tzinfo=UTC)
    ahead = now + timedelta(days=3)
    today = DAY + timedelta(days=1)
    amounts = (cost_day([cost_row('"1.00"')], day) for day in (DAY, today))
    land(warehouse, page_of(*amounts), fetched_at=ahead)
    load_pending(warehouse, ["costs"], "run-1", ahead)
    epoch, end_of_present = datetime.fromtimestamp(0, UTC), now + CLOCK_TOLERANCE
    load_pending(warehouse, ["costs"], "run-2", now)
    assert days_of(warehouse) == {DAY: (epoch, end_of_present, epoch), today: (epoch, None, epoch)}

    fetched(warehouse, LATER, "2.00")
    check_days(warehouse, [unchanged(ahead, "2.00")])
    load_pending(warehouse, ["costs"], "run-3", now)
    assert days_of(warehouse)[DAY] == (LATER, end_of_present, LATER)


@pytest.mark.parametrize("version", ["this", "another", "the last without these moments"])
def test_a_rebuilt_warehouse_keeps_the_moments_of_days(version: str, warehouse: Warehouse):
    fetched(warehouse, BEFORE, "1.00")
    fetched(warehouse, AFTER, "2.00")
    fetched(warehouse, LATER, "3.00")
    checked_at = LATER + timedelta(hours=1)
    check_days(warehouse, [unchanged(checked_at, "3.00")])
    # Raw pages of replaced days are deleted after a week.
    thin(warehouse, LATER.date() + timedelta(days=1))
    with warehouse.writing() as connection:
        if version != "this":
            connection.execute("DROP TABLE pipeline.schema_version")
            connection.execute("ALTER TABLE daily_usage ADD COLUMN another VARCHAR")
        if version == "the last without these moments":
            connection.execute("ALTER TABLE pipeline.loaded_days DROP COLUMN completed_at")
            connection.execute("ALTER TABLE pipeline.loaded_days DROP COLUMN checked_at")
            checked_at = LATER
    assert replace_warehouse(warehouse) == 1
    assert rows(warehouse, MOMENTS) == [(BEFORE, LATER, AFTER, checked_at)]
