"""Run each workload with each contender in a fresh process and print a table.

The simulator runs in its own process with a stopped clock. Every response is requested once before the
first measurement, so that none includes its rendering.
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
# The endpoints that the peer fetches, too.
READ = (COSTS, ENDPOINTS["completions"])


@dataclass(frozen=True, slots=True)
class Workload:
    """Users and UTC days of a refresh: costs and completions, 6 models × 3 projects a user."""

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
        best = sorted(ours, key=lambda measured: measured["seconds"])[len(ours) // 2]
        peer = None if skip_peer else _run("dlt_refresh", workload, base_url)
    label = f"{workload.name}: {workload.users} users × {workload.days} days"
    for what, measured in (("finora", best), ("dlt", peer)):
        if measured is None:
            continue
        seconds = measured["seconds"]
        ratio = f"{peer['seconds'] / seconds:.1f}" if peer else "–"
        table.add_row(
            label,
            what,
            f"{seconds:.2f}",
            f"{workload.users / seconds:,.1f}",
            f"{measured['rows'] / seconds:,.0f}",
            f"{measured['peak_mb']:.0f}",
            ratio,
        )
    table.add_row("", "  whole call", f"{best['whole_call']:.2f}")
    for step, seconds in best.get("steps", {}).items():
        table.add_row("", f"  {step}", f"{seconds:.2f}")
    if peer and peer["total"] != best["total"]:
        raise click.ClickException(f"The totals differ: finora {best['total']}, dlt {peer['total']}.")


def measure_once(workload: Workload) -> dict:
    """Measure one fresh run of ours, with all responses cached by the simulator."""
    with _simulator(workload) as base_url:
        asyncio.run(warm(base_url, window_of(workload.days)))
        return _run("finora_refresh", workload, base_url)


def _run(module: str, workload: Workload, base_url: str) -> dict:
    return measured_child(workload.name, module, base_url, workload.days)


def measured_child(label: str, module: str, *arguments: object) -> dict:
    """Run a benchmark module in its own process and data folder; return its last line."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments), home]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        if done.returncode:
            raise click.ClickException(f"{module} failed:\n{done.stderr[-3000:]}")
        measured = json.loads(done.stdout.splitlines()[-1])
    console.print(f"{module}: {label} {measured}")
    return measured


def _simulator(workload: Workload) -> AbstractContextManager[str]:
    sizes = ("--users", str(workload.users), "--days", str(workload.days))
    return in_own_process(*sizes, "--freeze-clock", "--completions-only")


def admin_keys(base_url: str) -> list[str]:
    """Return the simulated organizations' keys, from the simulator's control endpoint."""
    with urllib.request.urlopen(base_url.removesuffix("/v1") + "/_simulator/organizations") as answer:
        return [organization["admin_key"] for organization in json.load(answer)]


def window_of(days: int) -> Window:
    """Return the days up to today of a workload."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    return Window(tomorrow - timedelta(days=days), tomorrow)


async def warm(base_url: str, window: Window) -> None:
    """Request every response once, so that no measurement includes its rendering."""
    keys = [AdminKey(key) for key in admin_keys(base_url)]
    async with open_client(base_url) as client:
        for first in range(0, len(keys), 50):
            reads = [
                client.organization(key).fetch(endpoint, window)
                for key in keys[first : first + 50]
                for endpoint in READ
            ]
            await asyncio.gather(*reads)
            if window.days > TRAILING_DAYS + 1:
                # The request for the first day of a history is cached, too.
                ever = Window(FIRST_DAY, window.end)
                walks = [client.organization(key).fetch(COSTS, ever, ()) for key in keys[first : first + 50]]
                await asyncio.gather(*walks)


if __name__ == "__main__":
    main()
