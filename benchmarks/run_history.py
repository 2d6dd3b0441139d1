"""Growth of Dagster's run history, and the effect of the nightly upkeep.

python -m benchmarks.run_history [--runs 60]
"""

import asyncio
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click
import dagster as dg
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.__main__ import admin_keys, window_of
from benchmarks.finora_refresh import connect_all
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.cli import runs
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.instance.run_retention import prune_runs
from finora_pipeline.openai_simulator.process import in_own_process
from finora_pipeline.settings import Settings

# From benchmarks.cadence: a simulated day of all four plans.
RUNS_A_DAY = 144 + 29 + 2 + 1


@click.command()
@click.option("--runs", "count", default=60, show_default=True, help="Refreshes to make.")
def main(count: int) -> None:
    """Make many small refreshes; show what a run leaves behind and what is left after pruning."""
    with (
        tempfile.TemporaryDirectory() as folder,
        in_own_process("--users", "4", "--days", "4", "--completions-only") as base_url,
    ):
        settings = Settings.from_environment({"FINORA_HOME": folder, "OPENAI_BASE_URL": base_url})
        accounts = accounts_of(settings)
        asyncio.run(connect_all(accounts, settings, admin_keys(base_url)))
        prepare_instance(settings)
        sizes = [_bytes(settings.dagster_home)]
        for _ in track(range(count), description="refreshes"):
            runs.refresh(settings, window_of(4))
            sizes.append(_bytes(settings.dagster_home))
        with dg.DagsterInstance.get() as instance:
            listed = _seconds(lambda: instance.get_run_records(limit=25))
            began = time.monotonic()
            removed = prune_runs(instance, datetime.now(UTC) + timedelta(minutes=1))
            took = time.monotonic() - began
        left = _bytes(settings.dagster_home)
        again = []
        for _ in range(5):
            runs.refresh(settings, window_of(4))
            again.append(_bytes(settings.dagster_home))
    a_run = (sizes[-1] - sizes[1]) / (count - 1)
    table = Table("what", "measured")
    table.add_row("a run leaves", f"{a_run / 1e3:,.0f} KB")
    table.add_row(f"a day of {RUNS_A_DAY} runs", f"{a_run * RUNS_A_DAY / 1e6:,.0f} MB")
    table.add_row(f"listing 25 of {count} runs", f"{listed * 1e3:.0f} ms")
    table.add_row("removing a run", f"{took / removed * 1e3:.0f} ms")
    table.add_row(f"size after {count} runs", f"{sizes[-1] / 1e6:.1f} MB")
    table.add_row(f"after {removed} of them were removed", f"{left / 1e6:.1f} MB")
    table.add_row("after 5 more", f"{again[-1] / 1e6:.1f} MB")
    Console().print(table)


def _seconds(work) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
