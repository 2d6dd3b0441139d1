"""`finora up` in a temporary folder on a simulator, for the benchmarks kills and soak."""

# psutil comes with `make bench` alone; `make check` reads this file without it.
# pyright: reportMissingModuleSource=false, reportMissingImports=false

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

from benchmarks.__main__ import admin_keys, window_of
from finora_pipeline.accounts import onboarding as connecting
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.instance.home import LOCATION, prepare_instance
from finora_pipeline.jobs import day_range_tags
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.reading import connect as connect_reader
from finora_pipeline.server.supervisor import check_port
from finora_pipeline.settings import ACCESS_TOKEN, Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.tables import GRAIN

# The simulated clock stays within the real day.
LAST_OF_DAY = timedelta(hours=23, minutes=59)
PATIENCE = 180.0
LOOK_SECONDS = 0.1
HELD_SECONDS = 30.0
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# Parts of command lines that identify an installation's processes.
PROCESSES = {
    "daemon": "parent_watch dagster._daemon",
    "code server": "parent_watch dagster api grpc",
    "webserver": "parent_watch finora_pipeline.server.dagster_ui",
    "dashboard": "parent_watch finora_pipeline dashboard",
    "a run": "spawn_main",
    "finora up": "finora_pipeline up",
}
_LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""


TOKEN = "access-token-of-the-benchmarks"


def open_as_operator(url: str, body: bytes | None = None) -> HTTPResponse:
    """Send a request to a server of the installation, as a script does. Raises `OSError`."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30)


class NotHealed(Exception):
    """Something did not recover in time; the message names it."""


class Installation:
    """`finora up` with the users of a simulator, known by their number in its list.

    `days` is the simulator's history. `source` is a folder to run the package from instead of this process's.
    """

    def __init__(self, home: Path, base_url: str, days: int, source: Path | None = None) -> None:
        self._environment = os.environ | {
            "FINORA_HOME": str(home / "data"),
            "DAGSTER_HOME": str(home / "data" / "dagster"),
            "OPENAI_BASE_URL": base_url,
            ACCESS_TOKEN: TOKEN,
        }
        if source:
            self._environment |= {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": ""}
        self.settings = Settings.from_environment(self._environment)
        self._days = days
        self._source = source
        self._door = base_url.removesuffix("/v1") + "/_simulator/"
        self._keys = admin_keys(base_url)
        self._log = home / "up.log"
        self._up: subprocess.Popen[bytes] | None = None
        self._ports = check_port(0), check_port(0)
        self._dashboard_port = check_port(0)
        self._midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        self._clock = self._midnight
        self.prepare()
        prepare_instance(self.settings)
        self.accounts: Accounts = accounts_of(self.settings)

    def prepare(self) -> None:
        """Prepare the data folder before the first start."""

    # Actions

    def start(self) -> None:
        ui, health = map(str, self._ports)
        command = [sys.executable, "-m", "finora_pipeline", "up", "--port", ui, "--health-port", health]
        command += ["--dashboard-port", str(self._dashboard_port)]
        with self._log.open("ab") as log:
            # A new session: Ctrl-C reaches only this process, which then ends the others.
            self._up = subprocess.Popen(
                command,
                env=self._environment,
                cwd=self._source,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def connect(self, numbers: Sequence[int], plans: Sequence[str]) -> None:
        """Connect users, with these plans by turns."""
        lines = [
            connecting.NewConnection(user_of(number), plans[number % len(plans)], self._keys[number])
            for number in numbers
        ]

        async def run() -> None:
            async with open_client(self.settings.openai_base_url) as client:
                async for _, outcome in connecting.connect_many(self.accounts, client, lines):
                    assert not isinstance(outcome, str), outcome

        asyncio.run(run())

    def update(self, number: int) -> None:
        """Save a user's key again. Raises `OpenAIAdminError`."""

        async def run() -> None:
            async with open_client(self.settings.openai_base_url, connecting.CHECK_LIMITS) as client:
                await connecting.update(self.accounts, client, user_of(number), self._keys[number])

        asyncio.run(run())

    def launch(self, config: dict[str, Any]) -> str:
        """Start the refresh job as the UI does; return the run's id.

        Raises `OSError` and `NotHealed`.
        """
        window = window_of(4)
        tags = day_range_tags(window.start, window.last)
        params = {
            "selector": {
                "repositoryLocationName": LOCATION,
                "repositoryName": "__repository__",
                "jobName": "refresh",
            },
            "runConfigData": {"ops": {"raw_openai_pages": {"config": config}}},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        body = json.dumps({"query": _LAUNCH, "variables": {"params": params}}).encode()
        url = f"http://127.0.0.1:{self._ports[0]}/graphql"
        with open_as_operator(url, body) as answer:
            launched = json.load(answer)["data"]["launchRun"]
        if launched["__typename"] != "LaunchRunSuccess":
            raise NotHealed(f"The run could not be launched: {launched}")
        return launched["run"]["runId"]

    def move_clock(self, step: timedelta) -> None:
        """Advance the simulator's clock, which restates its last three days."""
        self._clock = min(self._clock + step, self._midnight + LAST_OF_DAY)
        self.ask("clock", now=self._clock.isoformat())

    def ask(self, action: str, **params: object) -> Any:
        """Call the simulator's control endpoint."""
        with urllib.request.urlopen(f"{self._door}{action}?{urllib.parse.urlencode(params)}") as answer:
            return json.load(answer)

    # Processes

    def processes(self) -> list[psutil.Process]:
        """Return all processes whose environment names this installation."""
        mine = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and (
                    process.environ().get("FINORA_HOME") == self._environment["FINORA_HOME"]
                ):
                    mine.append(process)
        return mine

    def check_up(self) -> None:
        """Raise `NotHealed` if `finora up` has exited."""
        if self._up and self._up.poll() is not None:
            raise NotHealed(f"finora up ended: {self._log.read_text()[-2000:]}")

    # Checks

    @contextmanager
    def instance(self) -> Iterator[dg.DagsterInstance]:
        with dg.DagsterInstance.get() as instance:
            yield instance

    def settle(self) -> list[str]:
        """Wait for all work, refresh once more and compare everything; return what is wrong."""
        wait_for("an end of all runs", lambda: not self.unfinished())
        wait_for("the last refresh", self._refreshed)
        wait_for("an end of all runs", lambda: not self.unfinished())
        wrong = [*self._what_differs(), *self._what_stays_held()]
        status = [sys.executable, "-m", "finora_pipeline", "status", "--json"]
        done = subprocess.run(
            status, env=self._environment, cwd=self._source, capture_output=True, text=True, check=False
        )
        if done.returncode:
            wrong.append(f"finora status: {done.stderr[-500:]}")
        return wrong

    def _refreshed(self) -> bool:
        """Return whether a refresh begun now succeeded; a failed run fails with the next one."""
        try:
            run_id = self.launch({})
        except (OSError, NotHealed):
            return False
        with self.instance() as instance:

            def end() -> dg.DagsterRun | None:
                run = instance.get_run_by_id(run_id)
                return run if run and run.is_finished else None

            return wait_for("the end of a refresh", end).is_success

    def unfinished(self) -> list[str]:
        with self.instance() as instance:
            found = instance.get_runs(dg.RunsFilter(statuses=UNFINISHED))
        return [f"{run.job_name} {run.run_id[:8]} {run.status.value}" for run in found]

    def _what_differs(self) -> Iterator[str]:
        window = Window(window_of(self._days).start, window_of(1).end)
        with connect_reader(self.settings.published_database) as connection:
            for table, grain in GRAIN.items():
                query = f"SELECT count(*) FROM (FROM {table} SELECT 1 GROUP BY {grain} HAVING count(*) > 1)"
                (repeated,) = connection.execute(query).fetchall()[0]
                if repeated:
                    yield f"{table}: {repeated} grains stand twice"
            rows = connection.execute(
                "SELECT user_id, date, project_id, line_item, amount_usd FROM daily_costs"
            ).fetchall()
        held: dict[str, dict[str, Decimal]] = defaultdict(dict)
        for user_id, day, project_id, line_item, amount in rows:
            held[user_id][f"{day}|{project_id}|{line_item}"] = amount
        for number in range(len(self.accounts.connections.all())):
            truth = self.ask("truth", organization=number, start=window.start, end=window.end)["by_row"]
            wanted = {key: Decimal(amount) for key, amount in truth.items()}
            got = held.get(user_of(number), {})
            if got != wanted:
                keys = sorted(key for key in {*got, *wanted} if got.get(key) != wanted.get(key))
                days = sorted({date.fromisoformat(key[:10]) for key in keys})
                total = sum(got.values(), Decimal()), sum(wanted.values(), Decimal())
                yield f"{user_of(number)}: {len(keys)} rows of {days[0]} to {days[-1]} differ; {total}"

    def _what_stays_held(self) -> list[str]:
        """Return locks held without a run; a scheduled run just begun releases them."""
        end = time.monotonic() + HELD_SECONDS
        while (held := list(self._what_is_held())) and time.monotonic() < end:
            threading.Event().wait(LOOK_SECONDS)
        return held

    def _what_is_held(self) -> Iterator[str]:
        lock = Warehouse(self.settings.home).database.with_name("write.lock")
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield "The warehouse's lock is held while no run is going."
        with self.instance() as instance:
            storage = instance.event_log_storage
            for key in storage.get_concurrency_keys():
                if storage.get_concurrency_info(key).claimed_slots:
                    yield f"A slot of the pool {key} is held while no run is going."
        pending = list((self.settings.home / "raw" / "pending").glob("*.parquet"))
        if pending:
            yield f"{len(pending)} raw files have not been loaded."

    def end(self) -> list[str]:
        """End all processes; return what was left after `finora up` exited."""
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
    return f"user-{number:03}"


def wait_for(what: str, probe: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Return the first true result of `probe`. Raises `NotHealed`."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := probe():
            return found
        threading.Event().wait(LOOK_SECONDS)
    raise NotHealed(f"Waited {patience:.0f} s for {what}.")
