"""Refreshes killed between and inside steps: the next one heals, nothing lost or twice."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import dagster as dg
import pytest

from finora_pipeline.definitions import build_defs
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.jobs import refresh_job
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.raw import RawPages
from tests.conftest import Installation
from tests.pipeline.crash_child import POINTS

DAYS = 9


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[[Installation, str], int]]:
    """Run a refresh in another process, killed at a point; return its exit code."""
    command = [sys.executable, "-m", "tests.pipeline.crash_child"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        to_it, from_it = process.stdin, process.stdout

        def refresh_elsewhere(installation: Installation, point: str) -> int:
            environment = {
                "FINORA_HOME": str(installation.settings.home),
                "DAGSTER_HOME": str(installation.settings.dagster_home),
                "OPENAI_BASE_URL": installation.settings.openai_base_url,
            }
            print(json.dumps({"point": point, "environment": environment}), file=to_it, flush=True)
            return int(from_it.readline())

        yield refresh_elsewhere


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_refresh_is_healed_by_the_next(point: str, elsewhere, install_loaded):
    installation = install_loaded("trial", organizations=2, days=DAYS)
    openai = installation.openai
    # The clock advances, so that the killed refresh fetches other pages than are stored.
    openai.simulator.frozen_now += timedelta(hours=5)

    assert elsewhere(installation, point) == -signal.SIGKILL

    window = installation.history(7)
    for number in range(2):
        # Readers see one consistent state: the one before or the one after.
        facts = {k: v for k, v in installation.costs(f"user-{number}").items() if k[0] >= window.start}
        now = openai.simulator.now
        states = [
            openai.organizations[number].truth(window.start, window.end, moment).by_row
            for moment in (now - timedelta(hours=5), now)
        ]
        assert facts in states

    result = installation.refresh()
    assert result.succeeded, result.errors
    assert not result.failed_users
    for number in range(2):
        installation.assert_exact(f"user-{number}", number, window)
    assert RawPages(Warehouse(installation.settings.home).raw).pending() == []
    spend = installation.sql("SELECT sum(amount_usd) FROM daily_model_costs")
    assert spend == installation.sql("SELECT sum(amount_usd) FROM daily_costs")
    assert all(c.last_refresh_at for c in installation.accounts.connections.all())


def the_refresh_job() -> dg.JobDefinition:
    return build_defs().resolve_job_def(refresh_job.name)


def repeat(run_id: str) -> dg.DagsterRun:
    """Execute a run again, as Dagster does when a run's process has died."""
    with dg.DagsterInstance.get() as instance:
        parent = instance.get_run_by_id(run_id)
        assert parent is not None
        result = dg.execute_job(
            dg.reconstructable(the_refresh_job),
            instance,
            run_config=parent.run_config,
            tags=dict(parent.tags),
            reexecution_options=dg.ReexecutionOptions(parent_run_id=run_id),
        )
        assert result.success
        run = instance.get_run_by_id(result.run_id)
    assert run is not None
    return run


def test_the_repeat_of_a_killed_run_fetches_only_missing_users(
    elsewhere, start_openai, install, monkeypatch: pytest.MonkeyPatch
):
    openai = start_openai(organizations=3, days=DAYS, services=False)
    installation = install(openai)
    monkeypatch.setenv("OPENAI_BASE_URL", openai.base_url)
    user_ids = ["user-0", "user-1", "user-2"]
    installation.connect(plan="trial", users=user_ids[:2])
    assert elsewhere(installation, "after fetching, before loading") == -signal.SIGKILL
    prepare_instance(installation.settings)
    with dg.DagsterInstance.get() as instance:
        (killed,) = instance.get_runs()
        instance.report_run_failed(killed)
    installation.connect(plan="trial", users=user_ids)

    again = repeat(killed.run_id)

    read = {row.user_id for row in installation.accounts.refreshes.of_run(again.run_id)}
    assert read == {"user-2"}
    for number, user_id in enumerate(user_ids):
        installation.assert_exact(user_id, number, installation.history(7))
    # A successful run is repeated on request, for all its users.
    whole = repeat(again.run_id)
    assert {row.user_id for row in installation.accounts.refreshes.of_run(whole.run_id)} == set(user_ids)


def test_two_refreshes_at_once_agree(start_openai, install):
    openai = start_openai(organizations=3, days=DAYS)
    installation = install(openai)
    installation.connect(plan="trial")
    environment = os.environ | {
        "FINORA_HOME": str(installation.settings.home),
        "OPENAI_BASE_URL": installation.settings.openai_base_url,
    }
    command = [sys.executable, "-m", "finora_pipeline", "refresh", "--json"]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    for number in range(3):
        installation.assert_exact(f"user-{number}", number, installation.history(7))
