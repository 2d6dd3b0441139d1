"""Dagster as an operator sees it: graph, jobs, schedules, sensor, partitions, no secrets."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationPlanned
from dagster._core.events import AssetMaterializationPlannedData, DagsterEvent, StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._utils.tags import TagConcurrencyLimitsCounter
from sqlalchemy import update

from finora_pipeline.accounts.database import connections
from finora_pipeline.assets.metrics import COST_TABLES
from finora_pipeline.assets.partitions import USERS_NAME
from finora_pipeline.cli import runs
from finora_pipeline.data_folder.run_locks import is_alive
from finora_pipeline.definitions import build_defs
from finora_pipeline.ingest.selection import select_connections
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.instance.home import WORKSPACE, prepare_instance
from finora_pipeline.instance.sqlite_storage import KEPT_DATABASES, KeptEventLogStorage
from finora_pipeline.jobs import BACKFILL_TAG, BATCH_TAG, DAYS_OF_PLAN_TAG, PLAN_TAG
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_simulator import KeyState
from finora_pipeline.plans import PLANS
from finora_pipeline.sensors.connections import connection_changes
from finora_pipeline.settings import Settings
from tests.conftest import Installation

ROOT = Path(__file__).parent.parent.parent
DAILY = ["raw_openai_cost_pages", "raw_openai_usage_pages", "daily_costs", "daily_usage"]


@pytest.fixture
def definitions() -> dg.Definitions:
    defs = build_defs()
    dg.Definitions.validate_loadable(defs)
    return defs


@pytest.fixture
def instance(tmp_path: Path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def test_every_asset_has_a_description(definitions: dg.Definitions):
    graph = definitions.resolve_asset_graph()
    names = {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert names == {
        *DAILY,
        "user_history",
        *COST_TABLES,
        "reconciliation",
        "user_metrics",
        "published",
        "retention",
    }
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description
        assert node.group_name in {"raw", "facts", "history", "metrics", "serving", "upkeep"}
        assert node.kinds
    for table in ("daily_costs", "daily_usage", *COST_TABLES, "user_metrics"):
        schema = graph.get(dg.AssetKey(table)).metadata["dagster/column_schema"]
        assert all(column.description for column in schema.columns)
        assert {"user_id", "provider"} <= {column.name for column in schema.columns}


def test_a_schedule_for_each_plan(definitions: dg.Definitions):
    for name, plan in PLANS.items():
        schedule = definitions.get_repository_def().get_schedule_def(f"refresh_{name}")
        assert schedule.cron_schedule == plan.cron
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


@pytest.fixture
def a_user_of_each_plan(start_openai, install) -> Installation:
    installation = install(start_openai(organizations=len(PLANS), days=1, services=False))
    users = installation.connect()
    for user_id, plan in zip(users, PLANS, strict=True):
        installation.accounts.users.set_plan(user_id, plan)
    return installation


def tick(
    definitions: dg.Definitions, instance: dg.DagsterInstance, plan: str, moment: datetime | None = None
) -> Any:
    """Evaluate the plan's schedule at a moment, by default in a day, when all users are due."""
    resources = definitions.resources or {}
    schedule = definitions.get_repository_def().get_schedule_def(f"refresh_{plan}")
    # Left open, its instance would be used as the process's instance after it closed.
    with dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=moment or datetime.now(UTC) + timedelta(days=1),
        resources={name: resources[name] for name in ("accounts", "warehouse")},
    ) as context:
        return schedule.evaluate_tick(context)


@pytest.mark.usefixtures("a_user_of_each_plan")
def test_a_tick_requests_the_trailing_days_of_its_plan(definitions: dg.Definitions, instance):
    moment = datetime(2100, 11, 24, 6, 0, tzinfo=UTC)
    (request,) = tick(definitions, instance, "growth", moment).run_requests
    assert request.tags[PLAN_TAG] == "growth"
    assert request.tags["dagster/asset_partition_range_start"] == "2100-11-21"
    assert request.tags["dagster/asset_partition_range_end"] == "2100-11-24"
    config = {"plan": "growth", "only_due": True}
    assert request.run_config["ops"]["raw_openai_pages"]["config"] == config


@pytest.mark.usefixtures("a_user_of_each_plan")
def test_a_tick_starts_no_run_without_due_connections(definitions: dg.Definitions, instance):
    skipped = tick(definitions, instance, "growth", datetime.now(UTC) + timedelta(hours=21))
    assert skipped.run_requests == []
    assert skipped.skip_message == "No connection of the growth plan is due."


def test_a_scheduled_run_fetches_connections_due_soon(start_openai, install):
    installation = install(start_openai(organizations=3, days=2, services=False))
    installation.connect(plan="scale")
    now = datetime.now(UTC)
    for user_id, minutes in (("user-0", 46), ("user-1", 30), ("user-2", 10)):
        refreshed = now - timedelta(minutes=minutes)
        with installation.accounts.database.write() as database:
            database.execute(
                update(connections).where(connections.c.user_id == user_id).values(last_refresh_at=refreshed)
            )

    def chosen(at: datetime) -> list[str]:
        found = select_connections(installation.accounts, plan="scale", now=at, only_due=True)
        return [connection.user_id for connection in found]

    assert chosen(now) == ["user-0", "user-1"]
    assert chosen(now - timedelta(minutes=2)) == []
    assert len(select_connections(installation.accounts, plan="scale", now=now)) == 3


@pytest.mark.usefixtures("a_user_of_each_plan")
def test_a_tick_is_skipped_during_a_refresh_of_the_plan(definitions: dg.Definitions, instance):
    job = definitions.resolve_job_def("refresh")
    instance.create_run_for_job(job, tags={PLAN_TAG: "scale"}, status=dg.DagsterRunStatus.STARTED)
    busy = tick(definitions, instance, "scale")
    assert busy.run_requests == []
    assert "still running" in (busy.skip_message or "")
    assert len(tick(definitions, instance, "enterprise").run_requests) == 1


def test_a_tick_is_not_skipped_during_a_manual_backfill(definitions: dg.Definitions, start_openai, install):
    installation = install(start_openai(days=9, services=False))
    installation.connect(plan="enterprise")
    skipped: list[bool] = []

    def record_tick(*_: int) -> None:
        with dg.DagsterInstance.get() as instance:
            skipped.append(not tick(definitions, instance, "enterprise").run_requests)

    for window in (None, installation.history(9), replace(installation.history(9), end=installation.today)):
        assert installation.run(window, plan="enterprise", on_user_done=record_tick).succeeded
    assert skipped == [True, False, False]
    with dg.DagsterInstance.get() as instance:
        found = instance.get_runs(dg.RunsFilter(tags={DAYS_OF_PLAN_TAG: "enterprise"}))
    assert len(found) == 2


def test_a_run_in_this_process_is_released_at_its_end(start_openai, install):
    installation = install(start_openai(days=2))
    installation.connect(plan="trial")
    result = installation.run()
    assert not is_alive(installation.settings.home, result.run_id)
    assert list((installation.settings.home / "runs").iterdir()) == []


def evaluate_sensor(
    installation: Installation, instance: dg.DagsterInstance, cursor: str | None
) -> dg.SensorResult | dg.SkipReason:
    defs = build_defs(installation.settings)
    resources = {"accounts": (defs.resources or {})["accounts"]}
    with dg.build_sensor_context(
        instance=instance, cursor=cursor, resources=resources, definitions=defs
    ) as context:
        return connection_changes(context)  # type: ignore[return-value]


def test_the_sensor_loads_new_connections_and_refreshes_updated_ones(start_openai, install, instance):
    installation = install(start_openai(organizations=3, days=3))
    installation.connect(plan="trial")

    first = evaluate_sensor(installation, instance, None)
    assert isinstance(first, dg.SensorResult)
    (added,) = first.dynamic_partitions_requests or []
    assert list(added.partition_keys) == ["user-0", "user-1", "user-2"]
    (request,) = first.run_requests or []
    assert request.job_name == "load_user_history"
    assert request.tags["dagster/asset_partition_range_start"] == "user-0"
    assert request.tags["dagster/asset_partition_range_end"] == "user-2"
    assert isinstance(evaluate_sensor(installation, instance, first.cursor), dg.SkipReason)

    # Once fetched, a new key requests a refresh; a removed connection requests nothing.
    instance.add_dynamic_partitions(USERS_NAME, list(added.partition_keys))
    installation.run()
    organization = installation.openai.organizations[1]
    rotated = organization.new_admin_key(2)
    installation.openai.simulator.add_key(organization, rotated)
    known = installation.accounts.connections.get("user-1")
    installation.accounts.connections.save(
        "user-1", AdminKey(rotated), known.organization, address="http://127.0.0.1/v1", known=known
    )
    second = evaluate_sensor(installation, instance, first.cursor)
    assert isinstance(second, dg.SensorResult)
    (request,) = second.run_requests or []
    assert request.job_name == "refresh"
    assert request.run_config["ops"]["raw_openai_pages"]["config"] == {"users": ["user-1"]}
    installation.accounts.connections.remove("user-1")
    third = evaluate_sensor(installation, instance, first.cursor)
    assert isinstance(third, dg.SensorResult)
    assert third.run_requests == []


def test_a_user_who_connects_again_after_a_purge_is_new(start_openai, install, instance):
    installation = install(start_openai(days=2, services=False))
    installation.connect(plan="trial")
    first = evaluate_sensor(installation, instance, None)
    assert isinstance(first, dg.SensorResult)
    installation.accounts.purge("user-0")
    installation.connect(plan="trial")
    again = evaluate_sensor(installation, instance, first.cursor)
    assert isinstance(again, dg.SensorResult)
    assert [request.partition_key for request in again.run_requests or []] == ["user-0"]


def test_users_fetched_before_the_sensor_can_be_chosen_in_the_ui(start_openai, install, instance):
    installation = install(start_openai(organizations=3, days=2))
    installation.connect(plan="trial", users=["user-0", "user-1"])
    installation.run()
    installation.connect(plan="trial")
    result = evaluate_sensor(installation, instance, None)
    assert isinstance(result, dg.SensorResult)
    # The range of a run's partitions must hold no other user.
    assert [request.partition_key for request in result.run_requests or []] == ["user-2"]
    (added,) = result.dynamic_partitions_requests or []
    assert list(added.partition_keys) == ["user-2", "user-0", "user-1"]


def test_the_sensor_sees_changes_committed_out_of_order(start_openai, install, instance):
    installation = install(start_openai(organizations=2, days=2))
    (later, earlier) = ["user-0", "user-1"]
    installation.connect(plan="trial", users=[later])
    first = evaluate_sensor(installation, instance, None)
    assert isinstance(first, dg.SensorResult)
    stamped = installation.accounts.connections.get(later).changed_at - timedelta(seconds=1)
    known = installation.accounts.connections.get(later)
    key = AdminKey(installation.openai.organizations[1].admin_key)
    installation.accounts.connections.save(
        earlier, key, known.organization, address="http://127.0.0.1/v1", known=None
    )
    with sqlite3.connect(installation.settings.home / "accounts.sqlite") as database:
        moment = stamped.replace(tzinfo=None).isoformat(sep=" ")
        database.execute("UPDATE connections SET changed_at = ? WHERE user_id = ?", (moment, earlier))
    second = evaluate_sensor(installation, instance, first.cursor)
    assert isinstance(second, dg.SensorResult)
    assert [request.partition_key for request in second.run_requests or []] == [earlier]
    assert isinstance(evaluate_sensor(installation, instance, second.cursor), dg.SkipReason)


def metadata_of(instance: dg.DagsterInstance, asset: str) -> dict[str, Any]:
    """Return the metadata of the asset's latest materialization."""
    event = instance.get_latest_materialization_event(dg.AssetKey(asset))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: shown.value for name, shown in event.asset_materialization.metadata.items()}


def test_thirty_days_are_one_run_and_thirty_partitions(start_openai, install):
    installation = install(start_openai(organizations=2, days=40, services=False))
    installation.connect(plan="growth")
    openai = installation.openai
    openai.simulator.set_key_state(openai.organizations[1].admin_key, KeyState.REVOKED)
    result = installation.run(installation.history(30))
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs_count() == 1
        for name in DAILY:
            materialized = instance.get_materialized_partitions(dg.AssetKey(name))
            assert len(materialized) == 30
        metadata = metadata_of(instance, "raw_openai_cost_pages")
        assert metadata["users"] == 2
        assert metadata["failed users"] == 1
        assert metadata["failures by reason"] == {"invalid_key": 1}
        assert "user-1" in metadata["failures"]
        metadata = metadata_of(instance, "daily_costs")
        total = installation.sql("SELECT sum(amount_usd) FROM daily_costs")[0][0]
        assert metadata["dollars"].replace(",", "") == f"${total.normalize():f}"
        assert metadata["seconds"] >= 0
        check = dg.AssetCheckKey(dg.AssetKey("raw_openai_cost_pages"), "every_connection_read")
        (record,) = instance.event_log_storage.get_asset_check_execution_history(check, limit=1)
        assert "1 of 2 users failed" in str(record.event)
    assert result.succeeded


def test_one_users_history_is_fetched_again(start_openai, install):
    openai = start_openai(organizations=2, days=30)
    installation = install(openai)
    installation.connect(plan="growth")
    installation.run()
    # A day before the trailing days is restated, which only a history fetch sees.
    openai.organizations[0].spec = openai.organizations[0].spec.__class__(
        0, since=openai.organizations[0].spec.since, daily_requests=61
    )
    openai.organizations[0]._settled.cache_clear()
    openai.simulator.frozen_now += timedelta(minutes=1)
    (result,) = runs.load_history(installation.settings, ["user-0"], openai_admin=installation.openai_admin)
    assert result.succeeded, result.errors
    installation.assert_exact("user-0", 0, installation.history(90))
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        assert instance.get_materialized_partitions(dg.AssetKey("user_history")) == {"user-0"}


def test_configuration_shows_no_secret(start_openai, install):
    installation = install(start_openai(days=2))
    installation.connect()
    defs = build_defs(installation.settings)
    shown = repr(defs.resources)
    assert installation.openai.organizations[0].admin_key not in shown
    accounts = (defs.resources or {})["accounts"]
    assert installation.settings.accounts_url not in repr(accounts)


def test_dagsters_stored_definitions_hold_no_database_password(monkeypatch, tmp_path):
    url = f"sqlite:///{tmp_path}/accounts.sqlite?hunter2"
    monkeypatch.setenv("FINORA_ACCOUNTS_URL", url)
    program = """
import dagster as dg
from dagster._core.remote_representation.external_data import RepositorySnap
from finora_pipeline.definitions import defs
print(dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def())))"""
    snapshot = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "refresh_enterprise" in snapshot
    assert "hunter2" not in snapshot
    assert "hunter2" not in repr(Settings.from_environment())


def test_the_kept_event_log_is_dagsters_own(tmp_path: Path):
    """More databases than are kept open, written by one class and read by the other."""
    runs_written = KEPT_DATABASES + 3
    kept = KeptEventLogStorage(str(tmp_path))
    for turn in range(2):
        for number in range(runs_written):
            kept.store_event(an_event(f"run-{number}", f"turn {turn}"))
    assert len(kept._kept) <= KEPT_DATABASES
    kept.dispose()
    plain = SqliteEventLogStorage(str(tmp_path))
    for number in range(runs_written):
        said = [entry.user_message for entry in plain.get_logs_for_run(f"run-{number}")]
        assert said == ["turn 0", "turn 1"]


def test_events_stored_in_a_batch_equal_single_stores(tmp_path: Path):
    facts = dg.AssetKey("facts")
    days = ["2026-11-01", "2026-11-02"]
    planned = [
        DagsterEvent(
            "ASSET_MATERIALIZATION_PLANNED",
            "refresh",
            step_key="facts",
            event_specific_data=AssetMaterializationPlannedData(facts, day),
        )
        for day in days
    ]
    made = [
        DagsterEvent(
            "ASSET_MATERIALIZATION",
            "refresh",
            step_key="facts",
            event_specific_data=StepMaterializationData(
                dg.AssetMaterialization(facts, partition=day, tags={"dagster/data_version": day})
            ),
        )
        for day in days
    ]
    check = DagsterEvent(
        "ASSET_CHECK_EVALUATION_PLANNED",
        "refresh",
        step_key="facts",
        event_specific_data=AssetCheckEvaluationPlanned(asset_key=facts, check_name="adds_up"),
    )
    batches = [
        [an_event("run", "", event) for event in batch]
        for batch in ([*planned, check], made, planned, made[:1])
    ]
    together, one_by_one = (
        KeptEventLogStorage(str(tmp_path / "a")),
        SqliteEventLogStorage(str(tmp_path / "b")),
    )
    for batch in batches:
        together.store_event_batch(batch)
        for event in batch:
            one_by_one.store_event(event)
    together.dispose()
    for database in ("run.db", "index.db"):
        written = [rows_of(tmp_path / folder / database) for folder in ("a", "b")]
        assert written[0] == written[1]
        assert len(written[0]["event_logs"]) == 8 if database == "run.db" else written[0]["asset_keys"]


def rows_of(database: Path) -> dict[str, list[dict[str, Any]]]:
    """Return all rows of an SQLite database by table, without their write times."""
    moments = ("create_timestamp", "migration_completed")
    with closing(sqlite3.connect(database)) as connection:
        connection.row_factory = sqlite3.Row
        tables = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        return {
            table: [
                {name: row[name] for name in row.keys() if name not in moments}  # noqa: SIM118
                for row in connection.execute(f"SELECT * FROM {table}")
            ]
            for table in tables
        }


def an_event(run_id: str, message: str, dagster_event: DagsterEvent | None = None) -> EventLogEntry:
    return EventLogEntry(
        error_info=None,
        level="INFO",
        user_message=message,
        run_id=run_id,
        timestamp=time.time(),
        dagster_event=dagster_event,
    )


def test_both_ways_to_find_the_definitions_name_one_location():
    assert (ROOT / "workspace.yaml").read_text() == WORKSPACE
    assert "location_name: finora" in WORKSPACE
    assert 'code_location_name = "finora"' in (ROOT / "pyproject.toml").read_text()


def test_dg_check_defs_passes(tmp_path: Path):
    command = [str(Path(sys.executable).parent / "dg"), "check", "defs"]
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path), "FINORA_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in (done.stdout + done.stderr)


def test_the_shipped_instance_configuration_loads(install, start_openai):
    installation = install(start_openai(days=1))
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        assert instance.run_monitoring_enabled
        assert not instance.telemetry_enabled
        assert trailing_window(installation.today).days == 4


def test_a_long_backfill_leaves_a_slot_for_new_users(start_openai, install):
    installation = install(start_openai(days=1))
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    backfill = dg.DagsterRun(job_name="refresh", tags=BATCH_TAG | {BACKFILL_TAG: "all-users"})
    another = dg.DagsterRun(job_name="refresh", tags=BATCH_TAG | {BACKFILL_TAG: "acme"})
    load = dg.DagsterRun(job_name="load_user_history", tags=BATCH_TAG)
    places = TagConcurrencyLimitsCounter(queue.tag_concurrency_limits, [backfill])
    assert places.is_blocked(another)
    assert not places.is_blocked(load)
    places.update_counters_with_launched_item(load)
    assert places.is_blocked(load)
