"""Charges loaded by an older version are parsed again in place, in portions."""

from datetime import timedelta
from pathlib import Path

import pytest

from finora_pipeline.warehouse import reparse
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.rebuild import rebuild
from finora_pipeline.warehouse.reparse import mark_services_stale, reparse_line_items
from finora_pipeline.warehouse.statements import transaction
from tests.warehouse.landing import DAY, ENDPOINTS, bucket, cost_day, cost_row, land, load, page_of, rows

NEXT_DAY = DAY + timedelta(days=1)
MEANING = "SELECT line_item, model, direction, tier, is_parsed FROM daily_costs ORDER BY ALL"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """Two days as an older version left them, with an unparsed line item on the first."""
    warehouse = Warehouse(tmp_path)
    first = [cost_row('"1.00"', "gpt-4o, input"), cost_row('"2.00"', "ultrafast | gpt-6-astra, output")]
    land(warehouse, page_of(cost_day(first), cost_day([cost_row('"4.00"')], NEXT_DAY)))
    load(warehouse)
    refresh_metrics(warehouse, NEXT_DAY)
    with warehouse.writing() as connection:
        connection.execute(
            "UPDATE daily_costs SET model = NULL, direction = NULL, tier = NULL, is_parsed = false "
            "WHERE line_item LIKE 'ultrafast%'"
        )
        connection.execute("DELETE FROM pipeline.unpublished_months")
    return warehouse


@pytest.mark.parametrize("at_once", [1, 10_000])
def test_charges_are_parsed_by_this_versions_rules(at_once: int, warehouse: Warehouse, monkeypatch):
    monkeypatch.setattr(reparse, "LINE_ITEMS_AT_ONCE", at_once)
    with warehouse.writing() as connection, transaction(connection):
        assert reparse_line_items(connection) == 1
    assert rows(warehouse, MEANING) == [
        ("gpt-4o, input", "gpt-4o", "input", None, True),
        ("gpt-4o, input", "gpt-4o", "input", None, True),
        ("ultrafast | gpt-6-astra, output", "gpt-6-astra", "output", "ultrafast", True),
    ]
    assert rows(warehouse, "FROM pipeline.stale_days") == [("acme", "openai", DAY)]
    assert rows(warehouse, "FROM pipeline.unpublished_months") == [("daily_costs", DAY.replace(day=1))]
    assert refresh_metrics(warehouse, NEXT_DAY).unequal == []
    with warehouse.writing() as connection, transaction(connection):
        assert reparse_line_items(connection) == 0
    assert rows(warehouse, "FROM pipeline.stale_days") == []


def test_a_rolled_back_parse_changes_nothing(warehouse: Warehouse):
    before = rows(warehouse, MEANING)
    with warehouse.writing() as connection:
        connection.begin()
        reparse_line_items(connection)
        connection.rollback()
    assert rows(warehouse, MEANING) == before
    assert rows(warehouse, "FROM pipeline.stale_days") == []


def test_days_of_services_are_split_again(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"', "whisper")], NEXT_DAY)), run_id="run-2")
    load(warehouse)
    with warehouse.writing() as connection, transaction(connection):
        reparse_line_items(connection)
    refresh_metrics(warehouse, NEXT_DAY)
    with warehouse.writing() as connection, transaction(connection):
        mark_services_stale(connection)
    assert rows(warehouse, "FROM pipeline.stale_days") == [("acme", "openai", NEXT_DAY)]


def test_a_model_known_from_use_is_not_a_difference_from_the_raw_pages(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"1.00"', "o3 deep research, output")])), run_id="run-2")
    use = {"model": "o3-deep-research", "project_id": "proj_a", "output_tokens": 5}
    land(warehouse, page_of(bucket([use])), endpoint=ENDPOINTS["completions"], run_id="run-2")
    load(warehouse)
    load(warehouse, "completions")
    refresh_metrics(warehouse, NEXT_DAY)
    query = "SELECT model FROM daily_costs WHERE date = "
    assert rows(warehouse, f"{query} '{DAY}'") == [("o3-deep-research",)]
    assert rebuild(warehouse).differences == []
