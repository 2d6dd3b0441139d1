"""The memory benchmarks run and detect wrong figures."""

from datetime import timedelta
from pathlib import Path

import duckdb
import pytest

from benchmarks.memory import Workload, differences, measure
from finora_pipeline.openai_admin.pages import Window
from tests.conftest import Installation


@pytest.mark.slow
@pytest.mark.parametrize(
    "workload",
    [
        Workload("restated", 2, 4, ("refresh", "replace"), 2),
        Workload("history", 2, 10, ("history", "rebuild")),
    ],
    ids=lambda workload: workload.title,
)
def test_a_measured_refresh_is_exact(workload: Workload):
    for step, measured in measure(workload, "128MB"):
        assert measured.failures == [], step
        assert measured.rows > 200, step
        assert measured.peak_mb > 100, step


def test_a_published_cost_that_differs_from_openais_is_found(start_openai, install):
    installation: Installation = install(start_openai(organizations=2, days=4))
    installation.connect(users=["user-00000", "user-00001"])
    installation.refresh()
    home: Path = installation.settings.home
    simulator = installation.openai.simulator
    today = installation.today
    window = Window(today - timedelta(days=3), today + timedelta(days=1))
    assert differences(home, simulator, window) == []
    database = installation.settings.published_database
    database.chmod(0o600)
    with duckdb.connect(database) as connection:
        connection.execute(
            "UPDATE daily_costs SET amount_usd = amount_usd + 1e-18::DECIMAL(38, 18) "
            "WHERE user_id = 'user-00001' AND date = ?",
            [today - timedelta(days=1)],
        )
    yesterday = today - timedelta(days=1)
    expected = f"daily_costs differs from the simulator, first for user-00001 on {yesterday}."
    assert differences(home, simulator, window) == [expected]
