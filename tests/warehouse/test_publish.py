"""The snapshot is consistent, whatever other runs are doing."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from finora_pipeline.reading import connect
from finora_pipeline.warehouse import metrics
from finora_pipeline.warehouse.database import PartsUnequal, Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.publish import publish
from tests.warehouse.landing import cost_day, cost_row, land, load, page_of

TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
SPEND = "SELECT value FROM user_metrics WHERE metric = 'total_spend' AND period = '7d'"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def published(warehouse: Warehouse, query: str) -> list[tuple[object, ...]]:
    copy = publish(warehouse, list, TODAY)
    with connect(copy.database) as connection:
        return connection.execute(query).fetchall()


def test_facts_loaded_after_the_metrics_are_published_with_metrics(warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.25"')], YESTERDAY)))
    load(warehouse)
    refresh_metrics(warehouse, TODAY)
    land(warehouse, page_of(cost_day([cost_row('"2.50"')], YESTERDAY)), run_id="run-2")
    load(warehouse)
    assert published(warehouse, SPEND) == [(Decimal("2.5"),)]
    assert published(warehouse, "SELECT amount_usd FROM daily_model_costs") == [(Decimal("2.5"),)]


def test_a_snapshot_between_two_metrics_steps_is_consistent(warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.25"')], YESTERDAY)))
    load(warehouse)
    refresh_metrics(warehouse, TODAY)
    assert published(warehouse, SPEND) == [(Decimal("1.25"),)]


def test_temporary_files_of_a_killed_publisher_are_removed(warehouse):
    refresh_metrics(warehouse, TODAY)
    month = warehouse.published / "parquet" / "daily_costs" / "month=2026-01"
    month.mkdir(parents=True)
    halves = [warehouse.published / ".finora.duckdb.1", month / ".daily_costs.parquet.1"]
    for half in halves:
        half.write_bytes(b"half")
    published(warehouse, SPEND)
    assert not any(half.exists() for half in halves)


def test_a_day_that_does_not_add_up_is_not_published_later(warehouse, monkeypatch):
    bill = "SELECT date, sum(amount_usd) FROM {} GROUP BY date ORDER BY date"
    land(warehouse, page_of(cost_day([cost_row('"1.25"')], YESTERDAY)))
    load(warehouse)
    good = published(warehouse, bill.format("daily_member_costs"))
    run = metrics.run_section

    def run_and_add_a_dollar(connection: Any, table: str, name: str, **parameters: Any) -> None:
        run(connection, table, name, **parameters)
        if table == "daily_member_costs":
            connection.execute(
                "UPDATE daily_member_costs SET amount_usd = amount_usd + 1 WHERE date = ?", [TODAY]
            )

    monkeypatch.setattr(metrics, "run_section", run_and_add_a_dollar)
    both = page_of(cost_day([cost_row('"1.50"')], YESTERDAY), cost_day([cost_row('"2.50"')], TODAY))
    land(warehouse, both, run_id="run-2")
    load(warehouse, run_id="run-2")
    unequal = [("acme", TODAY)]
    assert refresh_metrics(warehouse, TODAY).unequal == unequal
    # The day that adds up is complete.
    again = refresh_metrics(warehouse, TODAY)
    assert (again.days, again.unequal) == (1, unequal)
    for _ in range(2):
        with pytest.raises(PartsUnequal, match=f"1 user-days, the first of acme on {TODAY}"):
            published(warehouse, bill)
    with connect(warehouse.published_database) as readers:
        assert readers.execute(bill.format("daily_member_costs")).fetchall() == good
        assert readers.execute(bill.format("daily_costs")).fetchall() == good

    monkeypatch.undo()
    whole = [(YESTERDAY, Decimal("1.5")), (TODAY, Decimal("2.5"))]
    assert published(warehouse, bill.format("daily_member_costs")) == whole
    assert published(warehouse, bill.format("daily_costs")) == whole
