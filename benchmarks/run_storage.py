"""What a run costs with Dagster's own SQLite storage and with ours: each run is a process of its own.

python -m benchmarks.run_storage [--times 5]
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import click
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.__main__ import admin_keys
from benchmarks.finora_refresh import connect_all
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.instance.config import INSTANCE_FILE, SHIPPED
from finora_pipeline.openai_simulator.process import in_own_process
from finora_pipeline.settings import Settings

USERS = 3
DAYS = (4, 30)
OWN_STORAGE = {"sqlite": {"base_dir": {"env": "DAGSTER_HOME"}}}
# Prints the seconds that passed, and those of the processor.
RUN = """
import json, resource, sys, time
began = time.monotonic()
from benchmarks.__main__ import window_of
from finora_pipeline.cli import runs
from finora_pipeline.settings import Settings
result = runs.refresh(Settings.from_environment(), window_of(int(sys.argv[1])))
assert result.succeeded, result.errors
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([time.monotonic() - began, used.ru_utime + used.ru_stime]))
"""


@click.command()
@click.option("--times", default=5, show_default=True, help="Runs of each kind; the fastest counts.")
def main(times: int) -> None:
    """Run refreshes of three users with each storage, in turn, and compare them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        in_own_process("--users", str(USERS), "--days", str(max(DAYS)), "--completions-only") as base_url,
    ):
        homes = {name: Path(folder, name) for name in ("Dagster's", "ours")}
        for name, home in homes.items():
            _prepare(home, base_url, with_ours=name == "ours")
        taken: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        for _ in track(range(times), description="runs"):
            for days in DAYS:
                for name, home in homes.items():
                    taken[name, days].append(_run(home, base_url, days))
        left = {name: [path.name for path in home.glob("dagster/**/*-wal")] for name, home in homes.items()}
    table = Table("storage", "days", "seconds", "seconds of CPU")
    for (name, days), seconds in sorted(taken.items()):
        passed, used = (min(one) for one in zip(*seconds, strict=True))
        table.add_row(name, str(days), f"{passed:.2f}", f"{used:.2f}")
    Console().print(table)
    Console().print(f"Write-ahead logs that stay behind: {left}")


def _prepare(home: Path, base_url: str, *, with_ours: bool) -> None:
    settings = Settings.from_environment(_environment(home, base_url))
    settings.dagster_home.mkdir(parents=True, mode=0o700)
    values = yaml.safe_load(SHIPPED.read_text())
    if not with_ours:
        values["storage"] = OWN_STORAGE
    (settings.dagster_home / INSTANCE_FILE).write_text(yaml.safe_dump(values))
    asyncio.run(connect_all(accounts_of(settings), settings, admin_keys(base_url)))


def _run(home: Path, base_url: str, days: int) -> tuple[float, float]:
    command = [sys.executable, "-c", RUN, str(days)]
    done = subprocess.run(command, env=_environment(home, base_url), capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr)
    passed, used = json.loads(done.stdout.splitlines()[-1])
    return passed, used


def _environment(home: Path, base_url: str) -> Mapping[str, str]:
    return os.environ | {"FINORA_HOME": str(home), "OPENAI_BASE_URL": base_url}


if __name__ == "__main__":
    main()
