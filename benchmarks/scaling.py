"""How a refresh scales: all endpoints at once, many more users, much longer history.

python -m benchmarks.scaling            all three, each against its limit
python -m benchmarks.scaling everything
"""

import json
import urllib.request

import click
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import Workload, measure_once, measured_child
from finora_pipeline.openai_admin.endpoints import EXTRA_ENDPOINTS
from finora_pipeline.openai_simulator.process import in_own_process

console = Console()
PROJECTS = 3
# Costs, all other endpoints, and the directory: projects, members, keys of each project.
FEWEST_REQUESTS = 1 + len(EXTRA_ENDPOINTS) + 2 + PROJECTS
MOST_MEMORY = 1.3
MOST_TIME = 1.2


@click.command()
@click.argument("what", required=False, type=click.Choice(["everything", "memory", "history"]))
@click.option("--users", default=1000, show_default=True, help="Users of the first two.")
def main(what: str | None, users: int) -> None:
    """Measure how a refresh scales."""
    table = Table("what", "measured", "limit")
    if what in (None, "everything"):
        _everything(table, users)
    if what in (None, "memory"):
        _memory(table, users)
    if what in (None, "history"):
        _history(table)
    console.print(table)


def _everything(table: Table, users: int) -> None:
    with in_own_process("--users", str(users), "--days", "4", "--freeze-clock") as base_url:
        _child("everything", base_url, 4)
        before = _requests(base_url)
        measured = _child("everything", base_url, 4)
        made = _requests(base_url) - before
    # Connecting each user takes three requests.
    made -= 3 * users
    seconds = measured["seconds"]
    table.add_row(f"all endpoints and directory, {users:,} users: seconds", f"{seconds:.1f}", "")
    table.add_row("  requests a second", f"{made / measured['steps']['raw_openai_pages']:,.0f}", "")
    table.add_row("  requests ÷ fewest", f"{made / (users * FEWEST_REQUESTS):.3f}", "1")
    table.add_row("  peak memory, MB", f"{measured['peak_mb']:.0f}", "")
    for step, took in measured["steps"].items():
        table.add_row(f"  {step}", f"{took:.2f}", "")


def _memory(table: Table, users: int) -> None:
    one, four = (measure_once(Workload("refresh", count, 4)) for count in (users, 4 * users))
    ratio = four["peak_mb"] / one["peak_mb"]
    table.add_row(f"memory, {4 * users:,} users ÷ {users:,}", f"{ratio:.2f}", str(MOST_MEMORY))
    table.add_row("  MB", f"{one['peak_mb']:.0f} → {four['peak_mb']:.0f}", "")
    table.add_row("  seconds", f"{one['seconds']:.1f} → {four['seconds']:.1f}", "")


def _history(table: Table) -> None:
    seconds = []
    for days in (36, 360):
        with in_own_process(
            "--users", "50", "--days", str(days), "--freeze-clock", "--completions-only"
        ) as url:
            seconds.append(_child("history", url, days)["seconds"])
    ratio = seconds[1] / seconds[0]
    table.add_row("refresh of 4 days, 360 days stored ÷ 36", f"{ratio:.2f}", str(MOST_TIME))
    table.add_row("  seconds", f"{seconds[0]:.2f} → {seconds[1]:.2f}", "")


def _child(mode: str, base_url: str, days: int) -> dict:
    return measured_child(mode, "scaling_child", mode, base_url, days)


def _requests(base_url: str) -> int:
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/_simulator/requests") as answer:
        return sum(json.load(answer).values())


if __name__ == "__main__":
    main()
