"""No refresh is late, whatever happens to an installation (a week: benchmarks/cadence.py)."""

from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest

from finora_pipeline.definitions import build_defs
from finora_pipeline.jobs import history_job
from finora_pipeline.plans import PLANS
from tests.cadence_simulation import Days, SimulatedRun

START = datetime(2026, 11, 25, 9, 0, tzinfo=UTC)


@pytest.fixture
def installation(start_openai, install):
    made = install(start_openai(days=2, services=False))
    made.connect(plan="trial")
    return made


def days(installation, tmp_path: Path, minutes_of) -> tuple[Days, dg.DagsterInstance]:
    instance = dg.DagsterInstance.local_temp(str(tmp_path))
    made = Days(build_defs(installation.settings), instance, installation.accounts, START, minutes_of)
    for plan in PLANS.values():
        residents = [f"{plan.name}-{number}" for number in range(3)]
        made.arrive("user-0", residents, plan.name)
        for number, user_id in enumerate(residents):
            made.settle([user_id], START - plan.refresh_interval * number / 4)
    installation.accounts.purge("user-0")
    return made, instance


def test_no_refresh_is_late_with_slow_runs_and_300_new_users(installation, tmp_path):
    def minutes_of(run: SimulatedRun) -> int:
        # A whole history is slow, and so is each plan's refresh for ten minutes an hour.
        assert run.began is not None
        return 6 if run.job == history_job.name else 5 if 20 <= run.began.minute < 30 else 1

    world, instance = days(installation, tmp_path, minutes_of)
    with instance, closing(world):
        for hour in range(5):
            if hour == 1:
                world.arrive("trial-0", [f"new-{n}" for n in range(300)], "enterprise")
            for _ in range(60):
                world.minute()
    assert {plan: world.worst[plan] <= PLANS[plan].refresh_interval for plan in PLANS} == dict.fromkeys(
        PLANS, True
    )
    assert world.most_of_a_plan == 1
    histories = [moment for moment, job, _ in world.launched if job == history_job.name]
    assert len(histories) == 3
    # Hardly more runs than the intervals need.
    refreshes = Counter(plan for _, job, plan in world.launched if job == "refresh")
    assert refreshes["enterprise"] <= 5 * 60 / 10
    assert refreshes["trial"] == 0


def test_an_hour_without_the_daemon_is_made_up_by_one_refresh(installation, tmp_path):
    world, instance = days(installation, tmp_path, lambda _: 2)
    outage = timedelta(hours=1)
    with instance, closing(world):
        for minute in range(12 * 60):
            # When users of the daily plans, refreshed half a day ago, become due.
            world.is_daemon_up = not 9.5 * 60 <= minute < 10.5 * 60
            world.minute()
    for plan in PLANS.values():
        # The daily plans are still on time; a promise of minutes cannot be kept.
        kept = plan.refresh_interval if plan.lead > outage else plan.refresh_interval + outage
        assert world.worst[plan.name] <= kept
    back = START + timedelta(hours=10.5)
    caught_up = Counter(
        plan for moment, _, plan in world.launched if back <= moment < back + timedelta(minutes=5)
    )
    assert max(caught_up.values()) == 1
    assert caught_up["enterprise"] == caught_up["scale"] == 1


def test_a_plan_never_has_two_refreshes_at_once(installation, tmp_path):
    world, instance = days(installation, tmp_path, lambda _: 23)
    with instance, closing(world):
        for _ in range(180):
            world.minute()
    assert world.most_of_a_plan == 1
    starts = [moment for moment, _, plan in world.launched if plan == "enterprise"]
    # The next run begins with the first tick after it.
    assert {later - earlier for earlier, later in pairwise(starts)} == {timedelta(minutes=25)}
