"""Runs each workload with each contender in a fresh process and prints a table.

The simulator runs in its own process with a stopped clock, and every answer is asked for once before the
clock of the first contender starts, so that nobody waits for it to be rendered.
"""

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from finora_pipeline.ingest.windows import TRAILING_DAYS
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_admin.provider import FIRST_DAY
from finora_pipeline.openai_simulator.process import in_own_process

console = Console()
# What the peer reads, too.
READ = (COSTS, ENDPOINTS["completions"])


@dataclass(frozen=True, slots=True)
class Workload:
    """Users and UTC days that a refresh reads: costs and completions, 6 models × 3 projects a user."""

    name: str
    users: int
    days: int


@click.command()
@click.option("--users", default=1000, show_default=True, help="Users of the first workload.")
@click.option("--only", type=click.Choice(["refresh", "history"]), help="One workload alone.")
@click.option("--skip-peer", is_flag=True, help="Without dlt, which takes the most time.")
@click.option("--repeats", default=3, show_default=True, help="Fresh runs of ours; the median counts.")
def main(users: int, only: str | None, skip_peer: bool, repeats: int) -> None:
    """Measure a refresh of many users and a long history, ours against dlt."""
    workloads = [
        Workload("refresh", users, TRAILING_DAYS + 1),
        Workload("history", 5, 180),
    ]
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    table = Table("workload", "what", "seconds", "users/s", "rows/s", "peak MB", "× dlt")
    for workload in workloads:
        if only in (None, workload.name):
            _measure(workload, table, skip_peer, repeats)
    console.print(table)


def _measure(workload: Workload, table: Table, skip_peer: bool, repeats: int) -> None:
    with _simulator(workload) as base_url:
        asyncio.run(warm(base_url, window_of(workload.days)))
        ours = [_run("finora_refresh", workload, base_url) for _ in range(repeats)]
        best = sorted(ours, key=lambda told: told["seconds"])[len(ours) // 2]
        peer = None if skip_peer else _run("dlt_refresh", workload, base_url)
    label = f"{workload.name}: {workload.users} users × {workload.days} days"
    for what, told in (("finora", best), ("dlt", peer)):
        if told is None:
            continue
        seconds = told["seconds"]
        ratio = f"{peer['seconds'] / seconds:.1f}" if peer else "–"
        table.add_row(
            label,
            what,
            f"{seconds:.2f}",
            f"{workload.users / seconds:,.1f}",
            f"{told['rows'] / seconds:,.0f}",
            f"{told['peak_mb']:.0f}",
            ratio,
        )
    table.add_row("", "  whole call", f"{best['whole_call']:.2f}")
    for step, seconds in best.get("steps", {}).items():
        table.add_row("", f"  {step}", f"{seconds:.2f}")
    if peer and peer["total"] != best["total"]:
        raise click.ClickException(f"The totals differ: finora {best['total']}, dlt {peer['total']}.")


def measure_once(workload: Workload) -> dict:
    """One fresh run of ours, whose answers the simulator has ready."""
    with _simulator(workload) as base_url:
        asyncio.run(warm(base_url, window_of(workload.days)))
        return _run("finora_refresh", workload, base_url)


def _run(module: str, workload: Workload, base_url: str) -> dict:
    return measured_child(workload.name, module, base_url, workload.days)


def measured_child(label: str, module: str, *arguments: object) -> dict:
    """What a module of the benchmarks tells in its last line; it runs in its own process and data folder."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments), home]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        if done.returncode:
            raise click.ClickException(f"{module} failed:\n{done.stderr[-3000:]}")
        told = json.loads(done.stdout.splitlines()[-1])
    console.print(f"{module}: {label} {told}")
    return told


def _simulator(workload: Workload) -> AbstractContextManager[str]:
    sizes = ("--users", str(workload.users), "--days", str(workload.days))
    return in_own_process(*sizes, "--freeze-clock", "--completions-only")


def admin_keys(base_url: str) -> list[str]:
    """The simulated organizations' keys, from the simulator's side door."""
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/_simulator/organizations") as answer:
        return [organization["admin_key"] for organization in json.load(answer)]


def window_of(days: int) -> Window:
    """The days up to today that a workload reads."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    return Window(tomorrow - timedelta(days=days), tomorrow)


async def warm(base_url: str, window: Window) -> None:
    """Asks for every answer once, so that nobody measured waits for it to be rendered."""
    keys = [AdminKey(key) for key in admin_keys(base_url)]
    async with open_client(base_url) as client:
        for first in range(0, len(keys), 50):
            reads = [
                client.organization(key).read(endpoint, window)
                for key in keys[first : first + 50]
                for endpoint in READ
            ]
            await asyncio.gather(*reads)
            if window.days > TRAILING_DAYS + 1:
                # Where a history begins is asked, too.
                ever = Window(FIRST_DAY, window.end)
                walks = [client.organization(key).read(COSTS, ever, ()) for key in keys[first : first + 50]]
                await asyncio.gather(*walks)


if __name__ == "__main__":
    main()
