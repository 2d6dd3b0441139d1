"""A simulated week of an installation: the greatest age of data, by plan.

python -m benchmarks.cadence [--days 7]
"""

import asyncio
import tempfile
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import click
import dagster as dg
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.__main__ import admin_keys
from benchmarks.finora_refresh import connect_all
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.definitions import build_defs
from finora_pipeline.jobs import history_job
from finora_pipeline.openai_simulator.process import in_own_process
from finora_pipeline.plans import PLANS
from finora_pipeline.settings import Settings
from tests.cadence_simulation import Days, SimulatedRun

START = datetime(2026, 11, 25, tzinfo=UTC)
SCENARIOS = {
    "ordinary": "runs that take one or two minutes",
    "slow": "every tenth run takes 4 minutes more",
    "outage": "the daemon is down for an hour on the third day",
    "rush": "300 users of each plan connect at once on the second day",
}


@click.command()
@click.option("--days", default=7, show_default=True, help="How many days to simulate.")
def main(days: int) -> None:
    """Measure the greatest age of data in a simulated week, for each plan."""
    table = Table("scenario", "plan", "promise", "worst age", "runs a day")
    for name, description in SCENARIOS.items():
        world, launched = _simulate(name, days)
        for plan in PLANS.values():
            worst = world.worst[plan.name]
            is_kept = worst <= plan.refresh_interval
            table.add_row(
                f"{name}: {description}" if plan.name == "trial" else "",
                plan.name,
                str(plan.refresh_interval),
                f"[{'green' if is_kept else 'red'}]{worst}[/]",
                f"{launched[plan.name] / days:.1f}",
            )
    Console().print(table)


def _simulate(scenario: str, days: int) -> tuple[Days, Counter[str]]:
    random = Random(scenario)

    def minutes_of(run: SimulatedRun) -> int:
        if run.job == history_job.name:
            return 5
        return random.randint(1, 2) + (4 if scenario == "slow" and random.random() < 0.1 else 0)

    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as instance:
        settings, accounts = _connected_home(Path(folder) / "home")
        world = Days(build_defs(settings), instance, accounts, START, minutes_of)
        for plan in PLANS.values():
            for number in range(5):
                world.arrive("user-00000", [f"{plan.name}-{number}"], plan.name)
                world.settle([f"{plan.name}-{number}"], START - plan.refresh_interval * random.random() / 2)
        accounts.purge("user-00000")
        with closing(world):
            for hour in track(range(24 * days), description=scenario):
                if scenario == "rush" and hour == 30:
                    for plan in PLANS:
                        world.arrive("trial-0", [f"new-{plan}-{n}" for n in range(300)], plan)
                world.is_daemon_up = not (scenario == "outage" and hour == 60)
                for _ in range(60):
                    world.minute()
    return world, Counter(plan for _, _, plan in world.launched)


def _connected_home(home: Path) -> tuple[Settings, Accounts]:
    """Create a data folder with one connected user, the pattern of all others' rows."""
    with in_own_process("--users", "1", "--days", "1", "--completions-only") as base_url:
        settings = Settings.from_environment({"FINORA_HOME": str(home), "OPENAI_BASE_URL": base_url})
        accounts = accounts_of(settings)
        asyncio.run(connect_all(accounts, settings, admin_keys(base_url)))
    return settings, accounts


if __name__ == "__main__":
    main()
