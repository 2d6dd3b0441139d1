"""A refresh killed by SIGKILL between and inside its steps: the next one heals it, nothing twice or lost."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.warehouse import Warehouse
from tests.conftest import Installation
from tests.pipeline.crash_child import POINTS

DAYS = 9


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[[Installation, str], int]]:
    """Runs a refresh that is killed at a point in another process; returns its exit code."""
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
def test_a_killed_refresh_is_healed_by_the_next(point: str, elsewhere, start_openai, install):
    openai = start_openai(organizations=2, days=DAYS)
    installation = install(openai)
    installation.connect(plan="trial")
    installation.refresh()
    # Time goes on, so that what the killed refresh reads is not what is stored.
    openai.simulator.frozen_now += timedelta(hours=5)

    assert elsewhere(installation, point) == -signal.SIGKILL

    window = installation.history(7)
    for number in range(2):
        # What readers see in the meantime is one whole state: the one before or the one after.
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
    assert all(c.last_refresh_at for c in installation.accounts.connections())


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
