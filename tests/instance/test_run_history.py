"""Dagster's run history stays bounded, and its UI still shows every asset and day."""

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from finora_pipeline.instance.config import INSTANCE_FILE
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.instance.postgres_storage import KeptEventLogStorage
from finora_pipeline.instance.run_retention import prune_runs
from tests.conftest import Installation
from tests.postgres_server import PostgresServer

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
# A section of a YAML file, its name in the first column.
STORAGE = re.compile(r"^storage:\n(?: .*\n)+", re.MULTILINE)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def installed(
    request: pytest.FixtureRequest, start_openai, install: Callable[..., Installation], monkeypatch
) -> Installation:
    """Six days of an organization, with Dagster's record and the accounts in either database."""
    openai = start_openai(days=6, services=False)
    if request.param == "sqlite":
        return install(openai)
    server: PostgresServer = request.getfixturevalue("postgres")
    installation = install(openai, server.new_url())
    move_to_postgres(installation, server, monkeypatch)
    return installation


def move_to_postgres(
    installation: Installation, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Move to Postgres as docs/operations.md describes."""
    monkeypatch.setenv("FINORA_ACCOUNTS_URL", installation.settings.accounts_url)
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", server.new_url())
    documented = STORAGE.search(OPERATIONS.read_text())
    assert documented is not None
    file = installation.settings.dagster_home / INSTANCE_FILE
    text, replaced = STORAGE.subn(documented[0], file.read_text())
    assert replaced == 1
    file.write_text(text)
    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.event_log_storage, KeptEventLogStorage)
        assert instance.get_runs_count() == 0


def test_old_runs_are_deleted_except_the_last_of_each_day(installed):
    installation = installed
    installation.connect(plan="growth")
    # Days 5 to 3 ago are not in the trailing window of the last run.
    first = installation.run(installation.history(6))
    repeated = [installation.run() for _ in range(2)]
    folder = Path(installation.settings.dagster_home)
    with dg.DagsterInstance.get() as instance:
        days = dg.AssetKey("daily_costs")
        before = instance.get_materialized_partitions(days)
        assert len(before) == 6
        assert prune_runs(instance, datetime.now(UTC) - timedelta(days=1)) == 0
        assert prune_runs(instance, datetime.now(UTC) + timedelta(minutes=1)) == 1
        assert {run.run_id for run in instance.get_runs()} == {first.run_id, repeated[-1].run_id}
        assert instance.get_materialized_partitions(days) == before
        assert instance.all_logs(repeated[0].run_id) == []
        for key in instance.all_asset_keys():
            assert instance.get_latest_materialization_event(key) is not None or "history" in key.to_string()
    gone = repeated[0].run_id
    assert [path for path in folder.rglob("*") if gone in str(path)] == []
    assert [path for path in folder.rglob("*") if first.run_id in str(path)] != []


def test_a_run_in_progress_is_kept(start_openai, install):
    installation = install(start_openai(days=1))
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        going = dg.DagsterRun(job_name="refresh", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(going)
        assert prune_runs(instance, datetime.now(UTC) + timedelta(days=1)) == 0
        assert instance.get_run_by_id(going.run_id) is not None


def test_dagster_works_after_postgres_ended_all_its_sessions(start_openai, install, postgres, monkeypatch):
    installation = install(start_openai(days=1))
    move_to_postgres(installation, postgres, monkeypatch)
    with dg.DagsterInstance.get() as instance:
        run = dg.DagsterRun(job_name="refresh")
        instance.add_run(run)
        url = os.environ["DAGSTER_POSTGRES_URL"]
        assert postgres.sessions(url) == 1
        postgres.drop_connections()
        assert instance.get_run_by_id(run.run_id) is not None
    assert postgres.left(url) == 0
