"""A disk really full at each step of a refresh: one error, old snapshot, next run heals."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.conftest import Installation
from tests.data_folder.disk_child import POINTS

DAYS = 3
AFTER_THE_SWAP = ("writing the manifest", "recording what is published")
ALONE = ["unshare", "--mount", "--map-root-user"]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Any]:
    """Outcomes by point: one child process runs all, since its imports take longest."""
    return {}


@pytest.fixture
def outcome(outcomes: dict[str, Any], start_openai, install) -> Callable[[str], Any]:
    def of(point: str) -> Any:
        if not outcomes:
            outcomes.update(_outcomes(start_openai, install))
        return outcomes[point]

    return of


def _outcomes(start_openai, install) -> dict[str, Any]:
    try:
        can_mount = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
        refused = can_mount.stderr.decode().strip() if can_mount.returncode else ""
    except FileNotFoundError as error:
        refused = str(error)
    if refused:
        reason = f"A small disk cannot be mounted here: {refused}"
        if os.environ.get("FINORA_TEST_EVERYTHING"):
            pytest.fail(reason)
        pytest.skip(reason)
    openai = start_openai(days=DAYS, services=False, projects=1)
    installation: Installation = install(openai)
    installation.connect(plan="trial")
    assert installation.refresh().succeeded
    # The clock advances, so that new pages land.
    openai.simulator.frozen_now += timedelta(hours=5)
    command = [*ALONE, sys.executable, "-m", "tests.data_folder.disk_child", str(installation.settings.home)]
    environment = os.environ | {"OPENAI_BASE_URL": openai.base_url}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    window = installation.history(DAYS)
    found = {one["point"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found.keys() == POINTS.keys(), done.stderr[-3000:]
    return found | {"truth": openai.truth(0, window).by_row}


@pytest.mark.parametrize("point", POINTS)
def test_a_full_disk_is_reported_and_the_next_refresh_heals(
    point: str, outcome: Callable[[str], Any]
) -> None:
    found = outcome(point)
    (said,) = found["said"]
    assert "The disk of " in said
    assert " is full. Free some space" in said
    assert "Error" not in said
    assert "\n" not in said
    # If the new snapshot was already swapped in, readers see it.
    assert found["shown"] == ("new" if point in AFTER_THE_SWAP else "old")
    assert found["then"] == []
    assert found["left"] == []
    rows = found["rows"]
    facts = {(date.fromisoformat(day), project, item): Decimal(usd) for _, day, project, item, usd in rows}
    assert len(facts) == len(rows)
    assert facts == outcome("truth")
