"""Whether ordinary work fits into DuckDB's memory limit, and the memory of whole processes.

python -m benchmarks.memory                        every workload under every limit
python -m benchmarks.memory history --limit 512MB
python -m benchmarks.memory --users 5 --days 3     small, in seconds

Each step is a process with that FINORA_MEMORY_LIMIT. Afterwards every user's USD a day and tokens must equal
the simulator's exactly, and nothing may have failed or be quarantined.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator import OrganizationSpec, Simulator, running
from finora_pipeline.reading import connect
from finora_pipeline.settings import Settings

console = Console()
DEFAULT_LIMIT = "default"
COST_TABLES = (
    "daily_costs",
    "daily_model_costs",
    "daily_attributed_costs",
    "daily_member_costs",
    "daily_key_costs",
)


@dataclass(frozen=True, slots=True)
class Workload:
    """Users, their UTC days, the steps (a process each) and repetitions of the refresh."""

    title: str
    users: int
    days: int
    steps: tuple[str, ...] = ("refresh",)
    refreshes: int = 1
    keys_per_project: int = 2


WORKLOADS = {
    "restated": Workload("restated", 1_000, 4, ("refresh", "rebuild", "replace", "upkeep"), 5),
    "history": Workload("history", 50, 365, ("history", "rebuild")),
    # 12 keys of each of the 3 projects, of 4 members, with 6 models.
    "many-keys": Workload("many keys", 100, 4, refreshes=20, keys_per_project=12),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of a process.

    Seconds of each repetition, processor seconds, peak resident MB, fact rows, halvings of work that did
    not fit at once, and failures.
    """

    seconds: list[float]
    cpu_seconds: float
    peak_mb: float
    rows: int
    halvings: int
    failures: list[str]


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(WORKLOADS)))
@click.option("--users", type=click.IntRange(1), help="Instead of each workload's own number.")
@click.option("--days", type=click.IntRange(1), help="Instead of each workload's own number.")
@click.option("--refreshes", type=click.IntRange(1), help="Instead of each workload's own number.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    default=(DEFAULT_LIMIT, "512MB", "1GB"),
    show_default=True,
    help="FINORA_MEMORY_LIMIT of the processes; may be given several times.",
)
def main(
    names: Sequence[str], users: int | None, days: int | None, refreshes: int | None, limits: Sequence[str]
) -> None:
    """Measure memory and seconds of refreshes, histories and rebuilds under memory limits."""
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    table = Table("workload", "step", "limit", "seconds", "CPU s", "peak MB", "rows", "halved", "failures")
    failures: list[str] = []
    for name in names or WORKLOADS:
        workload = WORKLOADS[name]
        workload = replace(
            workload,
            users=users or workload.users,
            days=days or workload.days,
            refreshes=refreshes or workload.refreshes,
        )
        for limit in limits:
            for step, measured in measure(workload, limit):
                row = _row(workload, step, limit, measured)
                console.print(" | ".join(row), soft_wrap=True)
                table.add_row(*row)
                failures += measured.failures
    console.print(table)
    if failures:
        raise click.ClickException("\n".join(failures[:20]))


def measure(workload: Workload, limit: str) -> Iterator[tuple[str, Measured]]:
    """Run the workload's steps on one data folder, comparing each with the truth."""
    now = datetime.now(UTC)
    since = now.date() - timedelta(days=workload.days - 1)
    specs = [
        OrganizationSpec(number, since=since, keys_per_project=workload.keys_per_project)
        for number in range(workload.users)
    ]
    simulator = Simulator(specs, now=now)
    window = Window(since, now.date() + timedelta(days=1))
    with tempfile.TemporaryDirectory() as home, running(simulator) as base_url:
        for step in workload.steps:
            measured = _measured(step, base_url, workload, limit, home)
            different = differences(Path(home), simulator, window)
            yield step, replace(measured, failures=measured.failures + different)


def differences(home: Path, simulator: Simulator, window: Window) -> list[str]:
    """Compare published data with the simulator; return at most one sentence a table."""
    true_costs: dict[tuple[str, date], Any] = {}
    true_tokens: dict[str, tuple[int, int]] = {}
    for number, organization in enumerate(simulator.organizations):
        truth = organization.truth(window.start, window.end, simulator.now)
        user_id = f"user-{number:05d}"
        true_costs |= {(user_id, day): usd for day, usd in truth.by_day.items() if usd}
        read, written = zip(*truth.tokens_by_model.values(), strict=True)
        true_tokens[user_id] = (sum(read), sum(written))
    different = []
    with connect(Settings.from_environment({"FINORA_HOME": str(home)}).published_database) as connection:
        for table in COST_TABLES:
            query = f"SELECT user_id, date, sum(amount_usd) FROM {table} GROUP BY ALL"
            costs = {(user_id, day): usd for user_id, day, usd in connection.execute(query).fetchall() if usd}
            if costs != true_costs:
                wrong = min(key for key in {*costs, *true_costs} if costs.get(key) != true_costs.get(key))
                different.append(f"{table} differs from the simulator, first for {wrong[0]} on {wrong[1]}.")
        query = (
            "SELECT user_id, sum(input_tokens)::BIGINT, sum(output_tokens)::BIGINT FROM daily_usage "
            "WHERE service = 'completions' GROUP BY ALL"
        )
        tokens = {user_id: (read, written) for user_id, read, written in connection.execute(query).fetchall()}
        if tokens != true_tokens:
            different.append("daily_usage differs from the simulator in tokens.")
        ((users,),) = connection.execute("SELECT count(DISTINCT user_id) FROM user_metrics").fetchall()
        if users != len(true_tokens):
            different.append(f"user_metrics has {users} of {len(true_tokens)} users.")
    return different


def _measured(step: str, base_url: str, workload: Workload, limit: str, home: str) -> Measured:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("FINORA_MEMORY_LIMIT", "FINORA_THREADS")
    }
    if limit != DEFAULT_LIMIT:
        environment["FINORA_MEMORY_LIMIT"] = limit
    arguments = (step, base_url, str(workload.days), str(workload.refreshes), home)
    command = [sys.executable, "-m", "benchmarks.memory_child", *arguments]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    if done.returncode:
        raise click.ClickException(f"{workload.title}, {step}, {limit}:\n{done.stderr[-3000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _row(workload: Workload, step: str, limit: str, measured: Measured) -> list[str]:
    times = f" × {workload.refreshes}" if step == "refresh" else ""
    return [
        f"{workload.title}: {workload.users:,} users × {workload.days} days",
        f"{step}{times}",
        limit,
        f"{statistics.median(measured.seconds):.1f}",
        f"{measured.cpu_seconds:.0f}",
        f"{measured.peak_mb:,.0f}",
        f"{measured.rows:,}",
        str(measured.halvings),
        str(len(measured.failures)),
    ]


if __name__ == "__main__":
    main()
