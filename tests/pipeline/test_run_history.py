"""Dagster's record of runs stays bounded, and the UI knows of every asset and day all the same."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from finora_pipeline import runs
from finora_pipeline.run_history import prune_runs


def test_old_runs_go_with_their_files_but_not_the_last_of_a_day(start_openai, install):
    installation = install(start_openai(days=6, services=False))
    installation.connect(plan="growth")
    # Days 5 to 3 ago are not in the trailing window of the last run.
    first = installation.refresh(installation.history(6))
    repeated = [installation.refresh() for _ in range(3)]
    folder = Path(installation.settings.dagster_home)
    with dg.DagsterInstance.get() as instance:
        days = dg.AssetKey("daily_costs")
        before = instance.get_materialized_partitions(days)
        assert len(before) == 6
        assert prune_runs(instance, datetime.now(UTC) - timedelta(days=1)) == 0
        assert prune_runs(instance, datetime.now(UTC) + timedelta(minutes=1)) == 2
        assert {run.run_id for run in instance.get_runs()} == {first.run_id, repeated[-1].run_id}
        assert instance.get_materialized_partitions(days) == before
        for key in instance.all_asset_keys():
            assert instance.get_latest_materialization_event(key) is not None or "history" in key.to_string()
    gone = repeated[0].run_id
    assert [path for path in folder.rglob("*") if gone in str(path)] == []
    assert [path for path in folder.rglob("*") if first.run_id in str(path)] != []


def test_a_run_that_is_going_stays(start_openai, install):
    installation = install(start_openai(days=1))
    runs.prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        going = dg.DagsterRun(job_name="refresh", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(going)
        assert prune_runs(instance, datetime.now(UTC) + timedelta(days=1)) == 0
        assert instance.get_run_by_id(going.run_id) is not None
