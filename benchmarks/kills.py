"""SIGKILL at random moments to a whole installation, which must recover and stay exact.

python -m benchmarks.kills [--kills 100] [--seed 7]

The simulator runs in its own process, `finora up` with its children in a temporary data folder. Days change,
users connect and keys are updated all the time. Dagster's daemon has shorter intervals than usual
(`prepared_home`), so that many kills take minutes; nothing else differs.
"""

# psutil comes with `make bench` alone; `make check` reads this file without it.
# pyright: reportMissingModuleSource=false, reportMissingImports=false

import json
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random

import click
import dagster as dg
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.installation import (
    PATIENCE,
    PROCESSES,
    UNFINISHED,
    Installation,
    NotHealed,
    open_as_operator,
    wait_for,
)
from finora_pipeline.data_folder.run_locks import is_alive
from finora_pipeline.instance.config import INSTANCE_FILE, SHIPPED
from finora_pipeline.openai_simulator.process import in_own_process
from finora_pipeline.settings import Settings

DAYS = 8
USERS_AT_FIRST = 6
USERS = 12
PLANS = ("enterprise", "scale")
# Number of kills after which the work is awaited and the facts are compared.
KILLS_A_CHECK = 10
# Seconds from giving work to the kill.
MOST_SECONDS_BEFORE = 3.0
# Step of the simulated clock.
STEP = timedelta(minutes=7)
VICTIMS = {
    "daemon": 4,
    "code server": 5,
    "webserver": 2,
    "dashboard": 1,
    "a run": 6,
    "finora up alone": 2,
    "the whole tree": 3,
}
_BEGUN = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
console = Console(highlight=False)


@dataclass
class Seen:
    """Observations: seconds until recovery by victim, and everything wrong."""

    healed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)
    checks: int = 0


@click.command()
@click.option("--kills", default=100, show_default=True, help="How many processes to kill.")
@click.option("--seed", default=7, show_default=True, help="Other victims at other moments.")
@click.option("--keep", is_flag=True, help="Keep the data folder.")
def main(kills: int, seed: int, keep: bool) -> None:
    """Kill processes of a working installation; exit code 1 if anything does not recover."""
    # Handled as Ctrl-C, so that all started processes end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    seen = Seen()
    folder = Path(tempfile.mkdtemp(prefix="finora-kills-"))
    simulator = ("--users", str(USERS), "--days", str(DAYS), "--freeze-clock", "--completions-only")
    with in_own_process(*simulator) as base_url:
        site = Site(folder, base_url, Random(seed))
        try:
            _kill_all(site, kills, seen)
        except NotHealed as error:
            seen.wrong.append(str(error))
        finally:
            seen.wrong += site.end()
            marked, finished = site.ended_runs()
            if not keep:
                shutil.rmtree(folder)
    table = Table("victim", "kills", "seconds until healed: median", "worst")
    for victim in VICTIMS:
        if seconds := seen.healed.get(victim):
            median, worst = statistics.median(seconds), max(seconds)
            table.add_row(victim, str(len(seconds)), f"{median:.1f}", f"{worst:.1f}")
    every = [seconds for one in seen.healed.values() for seconds in one]
    if every:
        table.add_section()
        table.add_row("all", str(len(every)), f"{statistics.median(every):.1f}", f"{max(every):.1f}")
    console.print(table)
    console.print(f"{finished} runs ended, {marked} of them were marked failed.")
    console.print(f"Facts compared {seen.checks} times, equal: {'no' if seen.wrong else 'yes'}.")
    console.print(f"Seed {seed}, {time.monotonic() - began:.0f} seconds.")
    for line in seen.wrong:
        console.print(line, style="red", markup=False)
    if seen.wrong or len(every) < kills:
        sys.exit(1)


def _kill_all(site: "Site", kills: int, seen: Seen) -> None:
    site.connect_next(USERS_AT_FIRST)
    site.start()
    site.wait_until_healed()
    site.check(seen)
    random = site.random
    for number in range(1, kills + 1):
        (victim,) = random.choices(list(VICTIMS), list(VICTIMS.values()))
        site.give_work()
        killed = site.kill(victim, random.uniform(0, MOST_SECONDS_BEFORE))
        began = time.monotonic()
        site.wait_until_healed(killed)
        seconds = time.monotonic() - began
        seen.healed[victim].append(seconds)
        console.print(f"{number:4} {victim}: {len(killed)} processes, healed after {seconds:.1f} s")
        if number % KILLS_A_CHECK == 0 or number == kills:
            site.check(seen)
            if seen.wrong:
                return


class Site(Installation):
    """The installation whose processes are killed, and its work."""

    def __init__(self, home: Path, base_url: str, random: Random) -> None:
        self.random = random
        super().__init__(home, base_url, DAYS)
        self.move_clock(STEP)

    def prepare(self) -> None:
        prepared_home(self.settings)

    # Actions

    def connect_next(self, count: int) -> None:
        """Connect the next users."""
        known = len(self.accounts.connections.all())
        self.connect(range(known, min(known + count, USERS)), PLANS)

    def give_work(self) -> None:
        """Change days, and start a refresh of a plan or one by the sensor."""
        self.move_clock(STEP)
        todo = self.random.choice(["plan", "connect", "update"])
        users = len(self.accounts.connections.all())
        if todo == "connect" and users < USERS:
            self.connect_next(1)
        elif todo in ("connect", "update"):
            self.update(self.random.randrange(users))
        else:
            with suppress(OSError, NotHealed):
                self.launch({"plan": self.random.choice(PLANS)})

    # Processes

    def kill(self, victim: str, seconds_before: float) -> set[int]:
        """Send SIGKILL after a while; return the ids of the killed processes."""
        if victim == "a run":
            wait_for("a run to kill", lambda: self._victims(victim) or self._launched())
        threading.Event().wait(seconds_before)
        found = wait_for(f"{victim} to kill", lambda: self._victims(victim) or self._launched())
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._up and victim in ("finora up alone", "the whole tree"):
            self._up.wait(PATIENCE)
            self.start()
        return {process.pid for process in found}

    def _launched(self) -> None:
        """Ensure that a run starts soon."""
        with self.instance() as instance:
            if not instance.get_runs(dg.RunsFilter(statuses=UNFINISHED), limit=1):
                with suppress(OSError, NotHealed):
                    self.launch({})

    def _victims(self, victim: str) -> list[psutil.Process]:
        mine = self.processes()
        if victim == "the whole tree":
            return mine
        wanted = PROCESSES[victim.removesuffix(" alone")]
        found = []
        for process in mine:
            with suppress(psutil.Error):
                if wanted in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return [self.random.choice(found)] if found else []

    # Checks

    def wait_until_healed(self, killed: Set[int] = frozenset()) -> None:
        """Wait until processes are replaced, a refresh begins, and no dead run counts as running."""
        wait_for("all processes", lambda: self._is_well(killed))
        wait_for("a refresh that begins", self._begins_a_refresh)
        wait_for("an end of the runs without a process", lambda: not self._dead_runs())

    def _is_well(self, killed: Set[int]) -> bool:
        self.check_up()
        ui, health = self._ports
        try:
            open_as_operator(f"http://127.0.0.1:{ui}/server_info").close()
            with open_as_operator(f"http://127.0.0.1:{health}/health") as answer:
                seen = json.load(answer)["processes"]
        except OSError:
            return False
        return not any(one["pid"] in killed for one in seen.values())

    def _begins_a_refresh(self) -> bool:
        """Start a refresh through web server, queue, daemon and code server to its own process."""
        try:
            run_id = self.launch({})
        except (OSError, NotHealed):
            return False
        with self.instance() as instance:

            def begun() -> dg.DagsterRunStatus | None:
                status = getattr(instance.get_run_by_id(run_id), "status", None)
                return status if status in _BEGUN else None

            return wait_for("the begin of a refresh", begun) is not dg.DagsterRunStatus.FAILURE

    def _dead_runs(self) -> list[str]:
        with self.instance() as instance:
            started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        return [run.run_id for run in started if not is_alive(self.settings.home, run.run_id)]

    def check(self, seen: Seen) -> None:
        seen.checks += 1
        seen.wrong += self.settle()

    def ended_runs(self) -> tuple[int, int]:
        """Return the numbers of failed and of all ended runs."""
        with self.instance() as instance:
            ended = instance.get_runs()
        return sum(run.is_failure for run in ended), sum(run.is_finished for run in ended)


def prepared_home(settings: Settings) -> None:
    """Use the shipped `dagster.yaml` with shorter intervals and waits of the daemon."""
    shipped = SHIPPED
    config = yaml.safe_load(shipped.read_text())
    config["run_launcher"]["config"] = {"start_seconds": 5}
    config["run_monitoring"] |= {"poll_interval_seconds": 2, "start_timeout_seconds": 30}
    config["run_queue"] |= {"dequeue_interval_seconds": 1, "user_code_failure_retry_delay": 2}
    settings.dagster_home.mkdir(parents=True)
    (settings.dagster_home / INSTANCE_FILE).write_text(yaml.safe_dump(config))


if __name__ == "__main__":
    main()
