"""Asset checks: all pass for an ordinary run, and each fails where it should."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pytest

from finora_pipeline.assets import metrics
from finora_pipeline.assets.facts import grain_check, line_items_check
from finora_pipeline.assets.published import promise_check, snapshot_check
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.warehouse import publish as publishing
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load_report import Loaded, loaded_by
from finora_pipeline.warehouse.metrics import Recomputed, refresh_metrics
from finora_pipeline.warehouse.publish import Published, publish
from tests.conftest import Installation
from tests.warehouse.landing import DAY, cost_day, cost_row, land, load, page_of

CHECKS = {
    "raw_openai_cost_pages": "every_connection_read",
    "daily_costs": "grain_is_unique",
    "daily_usage": "grain_is_unique",
    "daily_model_costs": "parts_add_up_to_the_bill",
    "reconciliation": "facts_equal_openais_totals",
    "published": "published_equals_warehouse",
}


@pytest.fixture
def installation(install_loaded) -> Installation:
    return install_loaded("growth", by_run=True, days=20, services=False)


def evaluation(installation: Installation, asset: str, check: str) -> dg.AssetCheckEvaluation:
    """Return the newest result of a check, as the UI shows it."""
    prepare_instance(installation.settings)
    key = dg.AssetCheckKey(dg.AssetKey(asset), check)
    with dg.DagsterInstance.get() as instance:
        (record,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
    assert record.event is not None
    assert record.event.dagster_event is not None
    return record.event.dagster_event.asset_check_evaluation_data


def test_an_ordinary_run_passes_every_check(installation: Installation):
    passed = {asset: evaluation(installation, asset, check).passed for asset, check in CHECKS.items()}
    assert passed == dict.fromkeys(CHECKS, True)
    assert evaluation(installation, "daily_costs", "revisions_within_reason").passed
    assert evaluation(installation, "daily_costs", "line_items_are_parsed").passed
    assert evaluation(installation, "published", "every_promise_kept").passed


def test_duplicate_rows_are_counted(installation: Installation):
    """Insert the newest rows twice, which no load does, before the run returns."""
    warehouse = Warehouse(installation.settings.home)
    with warehouse.writing() as connection:
        connection.execute("INSERT INTO daily_costs FROM daily_costs WHERE date = ?", [installation.today])
        ((rows, run_id),) = connection.execute(
            "SELECT count(*) // 2, any_value(run_id) FROM daily_costs JOIN pipeline.loaded_files "
            "USING (raw_file) WHERE date = ?",
            [installation.today],
        ).fetchall()
        loaded = loaded_by(connection, run_id, ["costs", "billed"])
    assert loaded.repeated == {"daily_costs": rows}
    assert not grain_check("daily_costs", loaded).passed
    assert grain_check("daily_usage", Loaded(1, 1, 1, repeated={"daily_usage": 0})).passed


def test_unparsed_line_items_are_listed_with_their_costs(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    lines = [cost_row('"2.50"', "night | gpt-4o, thoughts"), cost_row('"-7.00"', "promotional credit")]
    days = [cost_day([*lines, cost_row('"1.00"')]), cost_day(lines[:1], DAY + timedelta(days=1))]
    land(warehouse, page_of(*days))
    result = line_items_check(load(warehouse))
    assert (result.passed, result.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert result.metadata["unparsed line items"].value == 2
    assert str(result.metadata["most expensive"].value).splitlines()[2:] == [
        "| promotional credit | -$7.00 | 1 | 1 |",
        "| night \\| gpt-4o, thoughts | $5.00 | 2 | 1 |",
    ]
    assert line_items_check(Loaded(1, 1, 1)).passed


def test_a_changed_final_day_is_reported(installation: Installation):
    day = installation.today - timedelta(days=12)
    with Warehouse(installation.settings.home).writing() as connection:
        # As if the first fetch of the day had shown a cent less.
        connection.execute(
            "UPDATE daily_costs SET amount_usd = amount_usd - 0.01 WHERE date = $day AND line_item = "
            "(SELECT min(line_item) FROM daily_costs WHERE date = $day AND amount_usd > 0.01)",
            {"day": day},
        )
        connection.execute("DELETE FROM pipeline.loaded_sets")
    installation.run(installation.history(15))
    result = evaluation(installation, "daily_costs", "revisions_within_reason")
    assert not result.passed
    assert result.severity is dg.AssetCheckSeverity.WARN
    assert f"| user-0 | {day} | $0.0" in str(result.metadata["first"].value)


def test_an_incomplete_snapshot_is_reported(installation: Installation, monkeypatch):
    warehouse = Warehouse(installation.settings.home)

    def copy_less(source: Path, target: Path) -> None:
        copy_whole(source, target)
        with duckdb.connect(target) as copied:
            copied.execute("DELETE FROM daily_key_costs WHERE date = ?", [installation.today])

    copy_whole = publishing._copy
    monkeypatch.setattr(publishing, "_copy", copy_less)
    copy: Published = publish(warehouse, list, installation.today)
    assert set(copy.different) == {"daily_key_costs"}
    assert not snapshot_check(copy).passed


def test_a_user_with_late_data_is_reported(installation: Installation):
    (connection,) = installation.accounts.connections.all()
    promised = connection.next_refresh_at
    assert promised is not None
    lead = connection.plan.lead
    assert promise_check([connection], promised + lead).passed
    late = promise_check([connection], promised + lead + timedelta(seconds=1))
    assert not late.passed
    assert late.severity is dg.AssetCheckSeverity.WARN
    assert "| user-0 | growth |" in str(late.metadata["users"].value)
    removed = replace(connection, status="removed")
    assert promise_check([removed], datetime.now(UTC) + timedelta(days=9)).passed


def test_a_failed_blocking_check_keeps_the_last_good_snapshot(installation: Installation, monkeypatch):
    before = installation.sql("SELECT count(*), sum(amount_usd) FROM daily_costs")

    def with_a_day_that_does_not_add_up(*arguments: Any) -> Recomputed:
        computed = refresh_metrics(*arguments)
        return replace(computed, unequal=[("user-0", installation.today)])

    monkeypatch.setattr(metrics, "refresh_metrics", with_a_day_that_does_not_add_up)
    installation.openai.simulator.frozen_now = installation.openai.simulator.now + timedelta(hours=2)
    result = installation.run()
    assert not result.succeeded
    failed = evaluation(installation, "daily_model_costs", "parts_add_up_to_the_bill")
    assert not failed.passed
    assert installation.sql("SELECT count(*), sum(amount_usd) FROM daily_costs") == before
    monkeypatch.undo()
    assert installation.run().succeeded
    assert installation.sql("SELECT count(*), sum(amount_usd) FROM daily_costs") != before
