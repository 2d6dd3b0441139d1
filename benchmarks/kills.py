"""SIGKILL at random moments to a whole installation at work, which must heal by itself and stay exact.

python -m benchmarks.kills [--kills 100] [--seed 7]

The simulator runs in a process of its own, `finora up` with all its children in a temporary data folder. Days
change, users connect and keys are updated all the time. Cadences of Dagster's daemon are shorter than in an
installation (`prepared_home`), so that many kills take minutes; nothing else differs.
"""

# psutil comes with `make bench` alone; `make check` reads this file without it.
# pyright: reportMissingModuleSource=false, reportMissingImports=false

import asyncio
import fcntl
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import click
import dagster as dg
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import admin_keys, window_of
from finora_pipeline import runs
from finora_pipeline.accounts import connections as connecting
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.partitions import day_range_tags
from finora_pipeline.liveness import is_alive
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_admin.simulator.process import in_own_process
from finora_pipeline.reading import connect as connect_reader
from finora_pipeline.settings import Settings
from finora_pipeline.up import check_port
from finora_pipeline.warehouse.load import _GRAIN
from finora_pipeline.warehouse.warehouse import Warehouse

DAYS = 8
USERS_AT_FIRST = 6
USERS = 12
PLANS = ("enterprise", "scale")
# Every so many kills all work is waited for, and the facts are compared.
KILLS_A_CHECK = 10
# A moment at which to kill, after something to do was given.
MOST_SECONDS_BEFORE = 3.0
# The simulated clock stays within the real day.
MINUTES_A_STEP = 7
LAST_OF_DAY = timedelta(hours=23, minutes=59)
PATIENCE = 180.0
LOOK_SECONDS = 0.1
VICTIMS = {
    "daemon": 4,
    "code server": 5,
    "webserver": 2,
    "dashboard": 1,
    "a run": 6,
    "finora up alone": 2,
    "the whole tree": 3,
}
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_BEGUN = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
_LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""
console = Console(highlight=False)


class NotHealed(Exception):
    """Something did not come back in time; the message says what."""


@dataclass
class Told:
    """What was seen: seconds until healed by victim, and all that was wrong."""

    healed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)
    checks: int = 0


@click.command()
@click.option("--kills", default=100, show_default=True, help="How many processes to kill.")
@click.option("--seed", default=7, show_default=True, help="Other victims at other moments.")
@click.option("--keep", is_flag=True, help="Keep the data folder.")
def main(kills: int, seed: int, keep: bool) -> None:
    """Kill processes of an installation at work; exit code 1 if anything does not heal."""
    # As on Ctrl-C, so that all that was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    told = Told()
    folder = Path(tempfile.mkdtemp(prefix="finora-kills-"))
    simulator = ("--users", str(USERS), "--days", str(DAYS), "--freeze-clock", "--completions-only")
    with in_own_process(*simulator) as base_url:
        site = Site(folder, base_url, Random(seed))
        try:
            _kill_all(site, kills, told)
        except NotHealed as error:
            told.wrong.append(str(error))
        finally:
            told.wrong += site.end()
            marked, finished = site.ended_runs()
            if not keep:
                shutil.rmtree(folder)
    table = Table("victim", "kills", "seconds until healed: median", "worst")
    for victim in VICTIMS:
        if seconds := told.healed.get(victim):
            median, worst = statistics.median(seconds), max(seconds)
            table.add_row(victim, str(len(seconds)), f"{median:.1f}", f"{worst:.1f}")
    every = [seconds for one in told.healed.values() for seconds in one]
    if every:
        table.add_section()
        table.add_row("all", str(len(every)), f"{statistics.median(every):.1f}", f"{max(every):.1f}")
    console.print(table)
    console.print(f"{finished} runs ended, {marked} of them were marked failed.")
    console.print(f"Facts compared {told.checks} times, equal: {'no' if told.wrong else 'yes'}.")
    console.print(f"Seed {seed}, {time.monotonic() - began:.0f} seconds.")
    for line in told.wrong:
        console.print(line, style="red", markup=False)
    if told.wrong or len(every) < kills:
        sys.exit(1)


def _kill_all(site: "Site", kills: int, told: Told) -> None:
    site.connect(USERS_AT_FIRST)
    site.start()
    site.wait_until_healed()
    site.check(told)
    random = site.random
    for number in range(1, kills + 1):
        (victim,) = random.choices(list(VICTIMS), list(VICTIMS.values()))
        site.give_work()
        killed = site.kill(victim, random.uniform(0, MOST_SECONDS_BEFORE))
        began = time.monotonic()
        site.wait_until_healed(killed)
        seconds = time.monotonic() - began
        told.healed[victim].append(seconds)
        console.print(f"{number:4} {victim}: {len(killed)} processes, healed after {seconds:.1f} s")
        if number % KILLS_A_CHECK == 0 or number == kills:
            site.check(told)
            if told.wrong:
                return


class Site:
    """An installation of its own: `finora up` below a temporary folder, and what is done to it."""

    def __init__(self, home: Path, base_url: str, random: Random) -> None:
        self.random = random
        self._environment = os.environ | {
            "FINORA_HOME": str(home / "data"),
            "DAGSTER_HOME": str(home / "data" / "dagster"),
            "OPENAI_BASE_URL": base_url,
        }
        self.settings = Settings.from_environment(self._environment)
        self._door = base_url.removesuffix("/v1") + "/_simulator/"
        self._keys = admin_keys(base_url)
        self._log = home / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self._ports = check_port(0), check_port(0)
        self._dashboard_port = check_port(0)
        self._midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self._clock = self._midnight
        self._move_clock()
        prepared_home(self.settings)
        runs.prepare_instance(self.settings)
        self._accounts: Accounts = runs.accounts_of(self.settings)

    # What is going on.

    def start(self) -> None:
        ui, health = map(str, self._ports)
        command = [sys.executable, "-m", "finora_pipeline", "up", "--port", ui, "--health-port", health]
        command += ["--dashboard-port", str(self._dashboard_port)]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which ends all in order.
            self._up = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def connect(self, count: int) -> None:
        """Connects the next users."""
        known = len(self._accounts.connections())
        lines = [
            connecting.NewConnection(user_of(number), PLANS[number % 2], self._keys[number])
            for number in range(known, min(known + count, USERS))
        ]

        async def run() -> None:
            async with open_client(self.settings.openai_base_url) as client:
                async for _, outcome in connecting.connect_many(self._accounts, client, lines):
                    assert not isinstance(outcome, str), outcome

        asyncio.run(run())

    def give_work(self) -> None:
        """Days change, beside the refresh that has just begun; one more of a plan, or of those that the
        sensor starts by itself."""
        self._move_clock()
        todo = self.random.choice(["plan", "connect", "update"])
        users = len(self._accounts.connections())
        if todo == "connect" and users < USERS:
            self.connect(1)
        elif todo in ("connect", "update"):
            self._update(self.random.randrange(users))
        else:
            with suppress(OSError, NotHealed):
                self.launch({"plan": self.random.choice(PLANS)})

    def _update(self, number: int) -> None:
        async def run() -> None:
            async with open_client(self.settings.openai_base_url) as client:
                await connecting.update(self._accounts, client, user_of(number), self._keys[number])

        asyncio.run(run())

    def launch(self, config: dict[str, Any]) -> str:
        """Starts the refresh job as the UI does; returns the run's id. Raises `OSError`, `NotHealed`."""
        window = window_of(4)
        tags = day_range_tags(window.start, window.last)
        params = {
            "selector": {
                "repositoryLocationName": runs.LOCATION,
                "repositoryName": "__repository__",
                "jobName": "refresh",
            },
            "runConfigData": {"ops": {"raw_openai_pages": {"config": config}}},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        body = json.dumps({"query": _LAUNCH, "variables": {"params": params}}).encode()
        url = f"http://127.0.0.1:{self._ports[0]}/graphql"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            launched = json.load(answer)["data"]["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise NotHealed(f"The run could not be launched: {launched}")
        return launched["run"]["runId"]

    def _move_clock(self) -> None:
        self._clock = min(self._clock + timedelta(minutes=MINUTES_A_STEP), self._midnight + LAST_OF_DAY)
        self._ask("clock", now=self._clock.isoformat())

    def _ask(self, action: str, **params: object) -> Any:
        with urllib.request.urlopen(f"{self._door}{action}?{urllib.parse.urlencode(params)}") as answer:
            return json.load(answer)

    # Its processes.

    def processes(self) -> list[psutil.Process]:
        """All that belong to this installation, whoever started them: their environment says so."""
        mine = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and (
                    process.environ().get("FINORA_HOME") == self._environment["FINORA_HOME"]
                ):
                    mine.append(process)
        return mine

    def kill(self, victim: str, seconds_before: float) -> set[int]:
        """Sends SIGKILL after a while; returns the ids of the processes it was sent to."""
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
        """Sees to it that there is a run before long."""
        with self._instance() as instance:
            if not instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED), limit=1):
                with suppress(OSError, NotHealed):
                    self.launch({})

    def _victims(self, victim: str) -> list[psutil.Process]:
        mine = self.processes()
        if victim == "the whole tree":
            return mine
        wanted = {
            "daemon": "follower dagster._daemon",
            "code server": "follower dagster api grpc",
            "webserver": "follower dagster_webserver",
            "dashboard": "follower finora_pipeline dashboard",
            "a run": "spawn_main",
            "finora up alone": "finora_pipeline up",
        }[victim]
        found = []
        for process in mine:
            with suppress(psutil.Error):
                if wanted in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return [self.random.choice(found)] if found else []

    # Is all well?

    @contextmanager
    def _instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.get() as instance:
            yield instance

    def wait_until_healed(self, killed: Set[int] = frozenset()) -> None:
        """Every process runs, in place of one that was killed; a refresh that is asked for now begins; and no
        run that lost its process is taken for going."""
        wait_for("all processes", lambda: self._is_well(killed))
        wait_for("a refresh that begins", self._begins_a_refresh)
        wait_for("an end of the runs without a process", lambda: not self._dead_runs())

    def _is_well(self, killed: Set[int]) -> bool:
        if self._up and self._up.poll() is not None:
            raise NotHealed(f"finora up ended: {self._log.read_text()[-2000:]}")
        ui, health = self._ports
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{ui}/server_info", timeout=30).close()
            with urllib.request.urlopen(f"http://127.0.0.1:{health}/health", timeout=30) as answer:
                told = json.load(answer)["processes"]
        except OSError:
            return False
        return not any(one["pid"] in killed for one in told.values())

    def _begins_a_refresh(self) -> bool:
        """Through the web server, the queue, the daemon and the code server to a process of its own."""
        try:
            run_id = self.launch({})
        except (OSError, NotHealed):
            return False
        with self._instance() as instance:

            def begun() -> dg.DagsterRunStatus | None:
                status = getattr(instance.get_run_by_id(run_id), "status", None)
                return status if status in _BEGUN else None

            return wait_for("the begin of a refresh", begun) is not dg.DagsterRunStatus.FAILURE

    def _dead_runs(self) -> list[str]:
        with self._instance() as instance:
            started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        return [run.run_id for run in started if not is_alive(self.settings.home, run.run_id)]

    def check(self, told: Told) -> None:
        """Waits until nothing is left to do, refreshes once more and compares everything."""
        wait_for("an end of all runs", lambda: not self._unfinished())
        last = wait_for("the last refresh", self._refreshed)
        assert last
        wait_for("an end of all runs", lambda: not self._unfinished())
        told.checks += 1
        told.wrong += [*self._what_differs(), *self._what_is_held()]
        status = [sys.executable, "-m", "finora_pipeline", "status", "--json"]
        done = subprocess.run(status, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            told.wrong.append(f"finora status: {done.stderr[-500:]}")

    def _refreshed(self) -> bool:
        """Whether a refresh that began now has succeeded; a run that fails is told by the next one's end."""
        try:
            run_id = self.launch({})
        except (OSError, NotHealed):
            return False
        with self._instance() as instance:

            def end() -> dg.DagsterRun | None:
                run = instance.get_run_by_id(run_id)
                return run if run and run.is_finished else None

            return wait_for("the end of a refresh", end).is_success

    def _unfinished(self) -> list[str]:
        with self._instance() as instance:
            found = instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED))
        return [f"{run.job_name} {run.run_id[:8]} {run.status.value}" for run in found]

    def _what_differs(self) -> Iterator[str]:
        window = Window(window_of(DAYS).start, window_of(1).end)
        with connect_reader(self.settings.published_database) as connection:
            for table, grain in _GRAIN.items():
                query = f"SELECT count(*) FROM (FROM {table} SELECT 1 GROUP BY {grain} HAVING count(*) > 1)"
                (repeated,) = connection.execute(query).fetchall()[0]
                if repeated:
                    yield f"{table}: {repeated} grains stand twice"
            rows = connection.execute(
                "SELECT user_id, date, project_id, line_item, amount_usd FROM daily_costs WHERE NOT is_sample"
            ).fetchall()
        held: dict[str, dict[str, Decimal]] = defaultdict(dict)
        for user_id, day, project_id, line_item, amount in rows:
            held[user_id][f"{day}|{project_id}|{line_item}"] = amount
        for number in range(len(self._accounts.connections())):
            truth = self._ask("truth", organization=number, start=window.start, end=window.end)["by_row"]
            wanted = {key: Decimal(amount) for key, amount in truth.items()}
            got = held.get(user_of(number), {})
            if got != wanted:
                keys = sorted(key for key in {*got, *wanted} if got.get(key) != wanted.get(key))
                days = sorted({date.fromisoformat(key[:10]) for key in keys})
                total = sum(got.values(), Decimal()), sum(wanted.values(), Decimal())
                yield f"{user_of(number)}: {len(keys)} rows of {days[0]} to {days[-1]} differ; {total}"

    def _what_is_held(self) -> Iterator[str]:
        lock = Warehouse(self.settings.home).database.with_name("write.lock")
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield "The warehouse's lock is held while no run is going."
        with self._instance() as instance:
            storage = instance.event_log_storage
            for key in storage.get_concurrency_keys():
                if storage.get_concurrency_info(key).claimed_slots:
                    yield f"A slot of the pool {key} is held while no run is going."
        pending = list((self.settings.home / "raw" / "pending").glob("*.parquet"))
        if pending:
            yield f"{len(pending)} raw files have not been loaded."

    def ended_runs(self) -> tuple[int, int]:
        """Runs that were marked failed, and all that ended."""
        with self._instance() as instance:
            ended = instance.get_runs()
        return sum(run.is_failure for run in ended), sum(run.is_finished for run in ended)

    def end(self) -> list[str]:
        """Ends all there is; tells what was left after `finora up` had ended."""
        wrong = []
        if self._up and self._up.poll() is None:
            self._up.send_signal(signal.SIGINT)
            try:
                if code := self._up.wait(PATIENCE):
                    wrong.append(f"finora up ended with {code}.")
            except subprocess.TimeoutExpired:
                wrong.append("finora up did not end.")
        left = self.processes()
        for process in left:
            with suppress(psutil.Error):
                wrong.append(f"Left after the end: {' '.join(process.cmdline())[:200]}")
                process.kill()
        if self._up:
            self._up.wait(PATIENCE)
        return wrong


def user_of(number: int) -> str:
    return f"user-{number:02}"


def prepared_home(settings: Settings) -> None:
    """The shipped `dagster.yaml`, but for how often the daemon looks and how long it waits."""
    shipped = Path(runs.__file__).parent / runs.INSTANCE_FILE
    config = yaml.safe_load(shipped.read_text())
    config["run_launcher"]["config"] = {"start_seconds": 5}
    config["run_monitoring"] |= {"poll_interval_seconds": 2, "start_timeout_seconds": 30}
    config["run_queue"] |= {"dequeue_interval_seconds": 1, "user_code_failure_retry_delay": 2}
    settings.dagster_home.mkdir(parents=True)
    (settings.dagster_home / runs.INSTANCE_FILE).write_text(yaml.safe_dump(config))


def wait_for(what: str, look: Callable[[], Any]) -> Any:
    """What `look` gives as soon as it is something. Raises `NotHealed`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := look():
            return found
        threading.Event().wait(LOOK_SECONDS)
    raise NotHealed(f"Waited {PATIENCE:.0f} s for {what}.")


if __name__ == "__main__":
    main()
