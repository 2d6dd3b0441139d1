"""A clock once three days ahead has no lasting effect after a refresh by a right one."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import update

from finora_pipeline.accounts.database import connections, users
from finora_pipeline.accounts.model import CompleteRefresh, Connection, Refresh, is_future
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.ingest.selection import select_connections
from finora_pipeline.ingest.windows import trailing_window, window_of
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.sensors.connections import connection_changes
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.rebuild import rebuild
from tests.conftest import Installation
from tests.warehouse.landing import cost_day, cost_row, land, page_of

NOW = datetime.now(UTC)
TODAY = NOW.date()
AHEAD = NOW + timedelta(days=3)


@pytest.fixture
def installation(install_loaded) -> Installation:
    return install_loaded("growth", days=2)


def connection_of(installation: Installation) -> Connection:
    connection = installation.accounts.connections.get("user-0")
    assert connection
    return connection


def window_at(connection: Connection, today: date) -> Window:
    window = window_of(connection, trailing_window(today), today)
    assert window
    return window


def seen(installation: Installation, cursor: str | None) -> object:
    """Evaluate the sensor of changed connections."""
    resources = {"accounts": installation.accounts}
    with dg.DagsterInstance.ephemeral() as instance:
        return connection_changes(dg.build_sensor_context(instance, cursor=cursor, resources=resources))


def run_ahead(installation: Installation) -> None:
    """Record what a refresh under a clock three days ahead stores in the accounts."""
    accounts, connection = installation.accounts, connection_of(installation)
    window = trailing_window(AHEAD.date())
    read = Refresh(
        "user-0", window.start, window.end, AHEAD, AHEAD, pages=1,
        plan=connection.plan.name, key_version=connection.key_version,
    )  # fmt: skip
    accounts.refreshes.record("ahead", [read], now=AHEAD)
    accounts.refreshes.mark_published([CompleteRefresh("ahead", "user-0", AHEAD, window.end)], AHEAD)
    with accounts.database.write() as database:
        moments = dict.fromkeys(("connected_at", "changed_at", "status_since", "directory_read_at"), AHEAD)
        database.execute(update(connections).values(moments))
        database.execute(update(users).values(plan_since=AHEAD))


def test_one_refresh_makes_a_user_due_and_all_times_right_again(installation):
    run_ahead(installation)
    accounts = installation.accounts
    assert [c.user_id for c in select_connections(accounts, now=NOW, only_due=True)] == ["user-0"]
    assert window_at(connection_of(installation), TODAY).start <= TODAY - timedelta(days=3)
    result = installation.refresh()
    assert not result.failed_users
    healed = connection_of(installation)
    present = datetime.now(UTC)
    moments = (
        healed.last_refresh_at, healed.last_attempt_at, healed.connected_at, healed.changed_at,
        healed.status_since, healed.plan_since, healed.directory_read_at,
    )  # fmt: skip
    assert not [moment for moment in moments if moment is None or is_future(moment, present)]
    assert healed.refreshed_at is not None
    assert healed.read_until == TODAY + timedelta(days=1)
    assert not healed.is_due(present)
    assert healed.next_refresh_at
    assert healed.next_refresh_at <= present + healed.plan.refresh_interval
    ((shown,),) = installation.sql("SELECT last_refresh_at FROM connections")
    assert not is_future(shown, present)


def test_a_connection_needing_attention_is_retried(installation):
    run_ahead(installation)
    connection = connection_of(installation)
    later = AHEAD + timedelta(hours=23)
    waiting = replace(connection, status=type(connection.status).NEEDS_ATTENTION, retry_at=later)
    assert waiting.may_be_fetched(NOW)
    assert not replace(waiting, last_attempt_at=NOW).may_be_fetched(NOW)


def test_days_missed_during_an_outage_are_fetched(installation):
    run_ahead(installation)
    connection, later = connection_of(installation), TODAY + timedelta(days=6)
    assert window_at(connection, TODAY).start <= TODAY - timedelta(days=3)
    read_today = replace(connection, read_until=TODAY + timedelta(days=1))
    assert window_at(read_today, later).start <= TODAY - timedelta(days=2)


def test_a_change_after_one_with_a_future_time_is_noticed(installation):
    accounts = installation.accounts
    with accounts.database.write() as database:
        database.execute(update(connections).values(changed_at=AHEAD))
    first = seen(installation, None)
    assert isinstance(first, dg.SensorResult)
    assert datetime.fromisoformat(json.loads(first.cursor or "")["since"]) <= datetime.now(UTC)
    assert isinstance(seen(installation, first.cursor), dg.SkipReason)
    with accounts.database.write() as database:
        changed = datetime.now(UTC) + timedelta(seconds=1)
        database.execute(update(connections).values(changed_at=changed, last_attempt_at=None))
    noticed = seen(installation, first.cursor)
    assert isinstance(noticed, dg.SensorResult)
    assert noticed.run_requests


@pytest.fixture
def warehouse(tmp_path) -> Warehouse:
    return Warehouse(tmp_path)


def costs(warehouse: Warehouse) -> dict[date, Decimal]:
    with warehouse.writing() as connection:
        return dict(connection.execute("SELECT date, amount_usd FROM daily_costs").fetchall())


def refreshed(warehouse: Warehouse, now: datetime, run_id: str, amounts: dict[int, str]) -> None:
    """Refresh at a moment; return costs by day, counted from today."""
    days = [cost_day([cost_row(f'"{usd}"')], TODAY + timedelta(days=n)) for n, usd in amounts.items()]
    window = Window(TODAY + timedelta(days=min(amounts)), TODAY + timedelta(days=max(amounts) + 1))
    land(warehouse, page_of(*days), window=window, fetched_at=now, run_id=run_id)
    load_pending(warehouse, KINDS, run_id, now)
    refresh_metrics(warehouse, now.date())


def test_restated_days_count_again_and_future_days_are_gone(warehouse):
    refreshed(warehouse, AHEAD, "ahead", {-1: "1.00", 0: "2.00", 2: "9.00", 3: "9.00"})
    assert len(costs(warehouse)) == 4
    refreshed(warehouse, NOW, "right", {-1: "1.50", 0: "2.50"})
    assert costs(warehouse) == {TODAY - timedelta(days=1): Decimal("1.5"), TODAY: Decimal("2.5")}
    refreshed(warehouse, NOW + timedelta(minutes=1), "later", {-1: "1.75", 0: "2.75"})
    assert costs(warehouse) == {TODAY - timedelta(days=1): Decimal("1.75"), TODAY: Decimal("2.75")}
    assert rebuild(warehouse).differences == []
    with warehouse.writing() as connection:
        for table in ("daily_costs", "daily_model_costs", "daily_member_costs", "daily_key_costs"):
            (newest,) = connection.execute(f"SELECT max(date) FROM {table}").fetchall()[0]
            assert newest <= TODAY
        (fetched,) = connection.execute("SELECT max(fetched_at) FROM daily_costs").fetchall()[0]
        assert not is_future(fetched, NOW)


def test_waiting_pages_with_future_times_lose_to_current_ones(warehouse):
    refreshed(warehouse, NOW, "right", {-1: "1.50", 0: "2.50"})
    days = [cost_day([cost_row('"9.00"')], TODAY + timedelta(days=n)) for n in (-1, 0, 1)]
    land(warehouse, page_of(*days), fetched_at=AHEAD, run_id="ahead")
    load_pending(warehouse, KINDS, "ahead", NOW + timedelta(minutes=1))
    assert costs(warehouse) == {TODAY - timedelta(days=1): Decimal("1.5"), TODAY: Decimal("2.5")}


def test_a_snapshot_with_future_times_is_right_after_a_publish(installation):
    warehouse = Warehouse(installation.settings.home)
    before = installation.sql("SELECT max(date) FROM daily_costs")
    with warehouse.writing() as connection:
        connection.execute("INSERT INTO daily_costs SELECT * REPLACE (date + 3 AS date) FROM daily_costs")
        connection.execute(
            "INSERT INTO pipeline.loaded_days SELECT * REPLACE (date + 3 AS date) FROM pipeline.loaded_days"
        )
    publish_refreshes(installation.accounts, warehouse)
    assert installation.sql("SELECT max(date) FROM daily_costs") == before


def test_a_wait_with_a_future_time_ends_after_another_users_fetch(installation):
    accounts = installation.accounts
    connection = connection_of(installation)
    window = window_at(connection, TODAY)

    def read(user_id: str, at: datetime, **outcome: Any) -> None:
        version = connection.key_version
        accounts.refreshes.record(
            f"run of {user_id}",
            [Refresh(user_id, window.start, window.end, at, at, 0, key_version=version, **outcome)],
            now=at,
        )

    read("user-0", AHEAD, reason="invalid_key", message="Revoked.", permanent=True)
    assert not connection_of(installation).may_be_fetched(AHEAD)
    read("another", NOW)
    assert connection_of(installation).may_be_fetched(datetime.now(UTC))
