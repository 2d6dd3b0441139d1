"""Retention: kept and deleted days; facts can always be rebuilt from the raw pages."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import UTC, datetime, time, timedelta
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner
from sqlalchemy import update

from finora_pipeline.accounts.database import users
from finora_pipeline.assets.partitions import USERS_NAME
from finora_pipeline.cli import main, runs
from finora_pipeline.definitions import build_defs
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.warehouse import metrics, retention
from finora_pipeline.warehouse.database import PartsUnequal, Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.periods import EXACT_DAYS
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.rebuild import rebuild
from finora_pipeline.warehouse.tables import MONTHLY_TABLES
from tests.conftest import Installation, now_in_the_middle_of_today, watching
from tests.pipeline.test_directory import read_again
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, load, page_of, rows


@pytest.fixture
def installation(install_loaded) -> Installation:
    return install_loaded("growth", organizations=2, days=30, projects=2, services=False)


def warehouse_of(installation: Installation) -> Warehouse:
    return Warehouse(installation.settings.home)


def raw_bytes(installation: Installation) -> int:
    archived = RawPages(warehouse_of(installation).raw).archived()
    return sum(file.path.stat().st_size for file in archived)


def later(installation: Installation, hours: int) -> datetime:
    return installation.openai.simulator.now + timedelta(hours=hours)


def first_days(installation: Installation) -> dict[str, Any]:
    return dict(installation.sql("SELECT user_id, min(date) FROM daily_costs GROUP BY user_id"))


def nightly(installation: Installation) -> dict[str, object]:
    """Run the retention job; return its metadata."""
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        job = build_defs(installation.settings).resolve_job_def("upkeep")
        result = job.execute_in_process(instance=instance)
    assert result.success
    (event,) = result.asset_materializations_for_node("retention")
    return {name: value.value for name, value in event.metadata.items()}


def test_each_night_orders_the_months_rows_by_user(installation: Installation):
    tables = MONTHLY_TABLES
    # Loaded day by day, as refreshes do.
    for number in (2, 1, 0):
        installation.openai.simulator.frozen_now = later(installation, 1)
        installation.refresh(installation.history(number + 1))

    def rows(table: str) -> list[tuple[Any, ...]]:
        return installation.sql(f"FROM {table} ORDER BY ALL")

    before = {table: rows(table) for table in tables}
    metadata = nightly(installation)
    first = (installation.today - timedelta(days=retention.SETTLING_DAYS)).replace(day=1)
    kept = 0
    for table in tables:
        assert rows(table) == before[table]
        lie = installation.sql(f"SELECT user_id FROM {table} WHERE date >= ? ORDER BY rowid", first)
        assert lie == sorted(lie)
        kept += len(lie)
    assert metadata["rows sorted"] == kept > 0


def test_a_smaller_plan_takes_effect_after_a_week(installation: Installation):
    before = first_days(installation)
    installation.accounts.users.set_plan("user-0", "trial")
    nightly(installation)
    assert first_days(installation) == before

    changed = datetime.now(UTC) - timedelta(days=7)
    with installation.accounts.database.write() as database:
        database.execute(update(users).where(users.c.user_id == "user-0").values(plan_since=changed))
    assert "| daily_costs |" in str(nightly(installation)["rows removed"])
    after = first_days(installation)
    assert after["user-1"] == before["user-1"]
    # Seven days of history and seven of grace.
    assert after["user-0"] == installation.today - timedelta(days=13)
    installation.assert_exact("user-1", 1, installation.history(90))
    ((oldest,),) = installation.sql("SELECT min(date) FROM daily_member_costs WHERE user_id = 'user-0'")
    assert oldest == after["user-0"]
    # The raw files hold the deleted days together with another user's.
    assert CliRunner().invoke(main, ["rebuild", "--replace"]).exit_code == 0
    assert first_days(installation) == after


def test_upkeep_publishes_no_day_that_does_not_add_up(installation: Installation, monkeypatch):
    bill = "SELECT sum(amount_usd) FROM daily_member_costs"
    before, run = installation.sql(bill), metrics.run_section

    def run_and_add_a_dollar(connection: Any, table: str, name: str, **parameters: Any) -> None:
        run(connection, table, name, **parameters)
        if table == "daily_member_costs":
            connection.execute(
                "UPDATE daily_member_costs SET amount_usd = amount_usd + 1 WHERE date = ?",
                [installation.today],
            )

    with warehouse_of(installation).writing() as connection:
        connection.execute(
            "INSERT INTO pipeline.stale_days SELECT DISTINCT user_id, provider, date FROM daily_costs"
        )
    monkeypatch.setattr(metrics, "run_section", run_and_add_a_dollar)
    with pytest.raises(PartsUnequal, match="2 user-days, the first of user-0"):
        nightly(installation)
    assert installation.sql(bill) == before
    monkeypatch.undo()
    nightly(installation)
    assert installation.sql(bill) == before


def test_replaced_raw_pages_are_thinned_and_the_facts_can_be_built_again(installation: Installation):
    for hours in (5, 20):
        installation.openai.simulator.frozen_now = later(installation, hours)
        assert installation.refresh().failed_users == []
    warehouse = warehouse_of(installation)
    before = rebuild(warehouse)
    assert before.differences == []
    assert before.rows > 0
    size = raw_bytes(installation)
    removed = retention.thin(warehouse, installation.today + timedelta(days=1))
    assert removed.files_removed > 0
    assert removed.bytes_freed == size - raw_bytes(installation)
    after = rebuild(warehouse)
    assert after.differences == []
    assert after.rows == before.rows
    assert after.files < before.files


def test_each_night_folds_the_revisions_of_a_week_ago(installation: Installation):
    for hours in (5, 5):
        installation.openai.simulator.frozen_now = later(installation, hours)
        installation.refresh()
    ago = timedelta(days=EXACT_DAYS + 2)
    with warehouse_of(installation).writing() as connection:
        # As if both refreshes had been on one day more than a week ago.
        connection.execute(
            "UPDATE pipeline.loaded_days SET first_fetched_at = first_fetched_at - $1", [2 * ago]
        )
        for table in ("cost_revisions", "usage_revisions"):
            connection.execute(f"UPDATE {table} SET observed_at = observed_at - $1", [ago])
    installation.refresh()
    moments = [
        datetime.combine(installation.today - ago + timedelta(days=day), time.max, UTC) for day in (-2, 1)
    ]
    before = [installation.sql("FROM costs_as_of(?) ORDER BY ALL", moment) for moment in moments]
    revisions = "SELECT (SELECT count(*) FROM cost_revisions), (SELECT count(*) FROM usage_revisions)"
    ((costs, usage),) = installation.sql(revisions)
    folded = nightly(installation)["revisions folded"]
    ((costs_left, usage_left),) = installation.sql(revisions)
    assert 0 < costs_left < costs
    assert 0 < usage_left < usage
    assert folded == costs + usage - costs_left - usage_left
    assert [installation.sql("FROM costs_as_of(?) ORDER BY ALL", moment) for moment in moments] == before
    assert before[0] != before[1]
    assert nightly(installation)["revisions folded"] == 0


def test_unchanged_pages_are_not_landed_again(installation: Installation):
    facts = "SELECT * EXCLUDE (raw_file, fetched_at) FROM daily_costs ORDER BY ALL"
    # From here on only the trailing days are fetched.
    installation.refresh()
    size, before = raw_bytes(installation), installation.sql(facts)
    asked = installation.openai.simulator.requests.total()
    again = installation.refresh()
    assert again.failed_users == []
    assert installation.openai.simulator.requests.total() > asked
    assert raw_bytes(installation) == size
    assert installation.sql(facts) == before
    assert {row.outcome for row in again.refreshes} == {"complete"}

    # A change is stored and counts, also when it is reverted.
    installation.openai.simulator.frozen_now = later(installation, 3)
    installation.refresh()
    assert raw_bytes(installation) > size
    installation.assert_exact("user-0", 0, installation.history(90))
    assert rebuild(warehouse_of(installation)).differences == []


def test_the_history_of_a_plan_that_grows_while_upkeep_waits_is_kept(installation: Installation, monkeypatch):
    accounts, lock = installation.accounts, Warehouse.lock
    before = first_days(installation)
    accounts.users.set_plan("user-0", "trial")
    with accounts.database.write() as database:
        database.execute(update(users).values(plan_since=datetime.now(UTC) - timedelta(days=30)))
    assert accounts.users.kept_from(datetime.now(UTC))["user-0"] > before["user-0"]

    def wait_for_it(warehouse: Warehouse) -> AbstractContextManager[None]:
        accounts.users.set_plan("user-0", "growth")
        return lock(warehouse)

    monkeypatch.setattr(Warehouse, "lock", wait_for_it)
    nightly(installation)
    assert first_days(installation) == before


def test_pruned_days_come_back_when_they_are_fetched_again(installation: Installation):
    warehouse = warehouse_of(installation)
    window = installation.history(20)
    installation.refresh(window)
    retention.prune(warehouse, lambda: {"user-0": installation.today - timedelta(days=3)})
    installation.refresh(window)
    installation.assert_exact("user-0", 0, window)


def test_old_directory_lists_stay_if_only_they_hold_a_name(start_openai, install):
    now = now_in_the_middle_of_today()
    gone = {"vanished_members": 1, "deleted_keys": 1, "gone_since": now.date() - timedelta(days=2)}
    openai = start_openai(days=8, services=False, **gone)
    installation = install(openai)
    installation.connect(plan="trial")
    for days_ago in (6, 5, 1, 0):
        openai.simulator.frozen_now = now - timedelta(days=days_ago)
        read_again(installation)
    warehouse = warehouse_of(installation)

    def lists() -> int:
        return len([f for f in RawPages(warehouse.raw).archived() if f.kind == "directory"])

    named = {
        table: installation.sql(f"FROM {table} ORDER BY ALL") for table in ("projects", "members", "api_keys")
    }
    assert lists() == 4
    retention.thin(warehouse, installation.today + timedelta(days=1))
    # The newest list, and the last one with the deleted member and key.
    assert lists() == 2
    assert CliRunner().invoke(main, ["rebuild", "--replace"]).exit_code == 0
    assert {table: installation.sql(f"FROM {table} ORDER BY ALL") for table in named} == named


def test_a_difference_between_facts_and_raw_pages_is_reported(installation: Installation):
    warehouse = warehouse_of(installation)
    with warehouse.writing() as connection:
        connection.execute(
            "UPDATE daily_costs SET amount_usd = amount_usd + 0.000000000000000001 "
            "WHERE user_id = 'user-0' AND date = ? AND line_item LIKE 'gpt-4.1%, input'",
            [installation.today],
        )
    rebuilt = rebuild(warehouse)
    assert {(d.table, d.user_id, d.date) for d in rebuilt.differences} == {
        ("daily_costs", "user-0", installation.today)
    }
    assert rebuild(warehouse, user_id="user-1").differences == []
    assert rebuild(warehouse, last=installation.today - timedelta(days=1)).differences == []
    shown = CliRunner().invoke(main, ["rebuild", "--user", "user-0"])
    assert shown.exit_code == 1
    assert "1 user-days differ" in shown.output


# A run moves the moment up to which today is known.
FIGURES = "SELECT * EXCLUDE (sparkline, known_until) FROM user_metrics ORDER BY ALL"


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_warehouse_with_unknown_tables_is_rebuilt(by_hand: bool, installation: Installation):
    installation.openai.simulator.frozen_now = later(installation, 5)
    installation.run()
    revisions = installation.sql("SELECT count(*) FROM cost_revisions")
    metrics = installation.sql(FIGURES)
    with warehouse_of(installation).writing() as connection:
        connection.execute("DROP TABLE pipeline.schema_version")
        connection.execute("ALTER TABLE daily_usage ADD COLUMN another VARCHAR")
    if by_hand:
        compared = CliRunner().invoke(main, ["rebuild"])
        assert compared.exit_code == 1
        assert "finora rebuild --replace" in compared.output
        done = CliRunner().invoke(main, ["rebuild", "--replace"])
        assert done.exit_code == 0, done.output
    else:
        assert installation.run().succeeded
    assert revisions == installation.sql("SELECT count(*) FROM cost_revisions") != [(0,)]
    assert installation.sql(FIGURES) == metrics
    assert installation.run().failed_users == []
    installation.assert_exact("user-0", 0, installation.history(90))


def test_pruned_days_in_a_kept_raw_file_are_not_a_difference(tmp_path):
    warehouse = Warehouse(tmp_path)
    days = [DAY + timedelta(days=number) for number in range(5)]
    land(warehouse, page_of(*(cost_day([cost_row('"5.00"')], day) for day in days)))
    load(warehouse)
    assert retention.prune(warehouse, lambda: {"acme": days[2]}).rows["daily_costs"] == 2
    assert rebuild(warehouse).differences == []
    with warehouse.writing() as connection:
        connection.execute("DELETE FROM daily_costs WHERE date = ?", [days[3]])
    (difference,) = rebuild(warehouse).differences
    assert (difference.date, difference.rows_only_held, difference.rows_only_raw) == (days[3], 0, 1)


def test_a_user_without_kept_days_has_no_figures(tmp_path):
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row('"5.00"')])))
    load(warehouse)
    refresh_metrics(warehouse, DAY)
    assert rows(warehouse, "SELECT count(*) > 0 FROM user_metrics") == [(True,)]
    retention.prune(warehouse, lambda: {"acme": DAY + timedelta(days=1)})
    refresh_metrics(warehouse, DAY)
    assert rows(warehouse, "SELECT count(*) FROM user_metrics WHERE user_id = 'acme'") == [(0,)]


def test_a_user_without_spend_whose_first_known_days_expire_is_stale(tmp_path):
    warehouse = Warehouse(tmp_path)
    days = [DAY - timedelta(days=1), DAY]
    land(warehouse, page_of(*(bucket([], day) for day in days)))
    load(warehouse)
    refresh_metrics(warehouse, DAY)
    assert rows(warehouse, "FROM pipeline.stale_users") == []
    retention.prune(warehouse, lambda: {"acme": DAY})
    assert rows(warehouse, "SELECT user_id FROM pipeline.stale_users") == [("acme",)]


def test_a_purged_user_leaves_no_trace(installation: Installation):
    organization = installation.openai.organizations[0]
    traces_of_user = [organization.id, organization.members[0].email, organization.projects[0].id]
    people = installation.accounts.logins
    people.save("ada@acme.example", user_id="user-0", password=None)
    refused = CliRunner().invoke(main, ["purge", "--user", "user-0", "--yes"])
    assert refused.exit_code == 1
    assert "This is the last login" in refused.output
    assert first_days(installation).keys() == {"user-0", "user-1"}
    people.save("ops@finora.example", user_id=None, password=None)
    done = CliRunner().invoke(main, ["purge", "--user", "user-0", "--yes"])
    assert done.exit_code == 0, done.output
    for path in installation.settings.home.rglob("*.duckdb"):
        content = path.read_bytes()
        assert not [text for text in traces_of_user if text.encode() in content], path
    assert set(retention.count_user_rows(warehouse_of(installation), "user-0").values()) == {0}
    assert first_days(installation).keys() == {"user-1"}
    installation.assert_exact("user-1", 1, installation.history(90))
    assert installation.accounts.connections.get("user-0") is None
    assert [entry.action for entry in installation.accounts.audit.of_user("user-0")] == ["purge"]
    assert rebuild(warehouse_of(installation)).differences == []
    unknown = CliRunner().invoke(main, ["purge", "--user", "missing", "--yes"])
    assert unknown.exit_code == 1
    assert "Unknown user missing." in unknown.output


def test_a_user_purged_during_a_run_leaves_no_trace(start_openai, install):
    installation: Installation = install(start_openai(organizations=2, days=6, services=False))
    installation.connect(plan="trial")

    def purge(done: int, *_: int) -> None:
        """Called when all users are fetched and nothing has landed."""
        if done == 2:
            with ThreadPoolExecutor(1) as elsewhere:
                purged = elsewhere.submit(CliRunner().invoke, main, ["purge", "--user", "user-0", "--yes"])
                assert purged.result().exit_code == 0, purged.result().output

    result = installation.run(on_user_done=purge)
    assert result.succeeded, result.errors
    assert set(retention.count_user_rows(warehouse_of(installation), "user-0").values()) == {0}
    assert installation.accounts.refreshes.of_run(result.run_id)[0].user_id == "user-1"
    installation.assert_exact("user-1", 1, installation.history(7))


@pytest.mark.parametrize("moment", ["waiting", "going"])
def test_a_purge_does_not_keep_others_from_their_first_load(start_openai, install, moment: str):
    installation = install(start_openai(organizations=4, days=2, services=False))
    user_ids = installation.connect(plan="growth")
    prepare_instance(installation.settings)

    def purge(*_: int) -> None:
        if installation.accounts.users.plan_of("user-0"):
            for user_id in ("user-0", "user-1", "user-3"):
                installation.accounts.purge(user_id)
                runs.delete_partition(installation.settings, user_id)

    with dg.DagsterInstance.get() as instance:
        ends = {
            "dagster/asset_partition_range_start": "user-0",
            "dagster/asset_partition_range_end": "user-3",
        }
        instance.add_dynamic_partitions(USERS_NAME, user_ids)
        defs = build_defs(installation.settings, openai_admin=installation.openai_admin)
        job = defs.resolve_job_def("load_user_history")
        if moment == "waiting":
            waiting = instance.create_run_for_job(job, tags=ends)
            purge()
            instance.delete_run(waiting.run_id)
        with watching(purge if moment == "going" else None):
            result = job.execute_in_process(instance=instance, tags=ends, raise_on_error=False)
        assert result.success
        assert [c.user_id for c in installation.accounts.connections.all() if c.history_from] == ["user-2"]
        assert instance.get_dynamic_partitions(USERS_NAME) == ["user-0", "user-2", "user-3"]
        nightly(installation)
        assert instance.get_dynamic_partitions(USERS_NAME) == ["user-2"]


@pytest.mark.parametrize("done", ["the accounts", "the warehouse, too"])
def test_an_interrupted_purge_can_be_repeated(installation: Installation, done: str):
    installation.accounts.purge("user-0")
    warehouse = warehouse_of(installation)
    if done == "the warehouse, too":
        retention.purge(warehouse, "user-0")
    assert retention.count_user_rows(warehouse, "user-0")["published/finora.duckdb"] > 0
    again = CliRunner().invoke(main, ["purge", "--user", "user-0", "--yes"])
    assert again.exit_code == 0, again.output
    assert set(retention.count_user_rows(warehouse, "user-0").values()) == {0}
    assert installation.sql("SELECT DISTINCT user_id FROM user_metrics") == [("user-1",)]
    installation.assert_exact("user-1", 1, installation.history(90))
