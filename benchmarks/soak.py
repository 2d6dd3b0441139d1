"""Two hundred users for half an hour: is data never late while OpenAI fails, is memory flat?

python -m benchmarks.soak [--minutes 30] [--users 200] [--seed 7]

The simulator runs in its own process, `finora up` with its children in a temporary data folder. Plans promise
minutes instead of hours (`benchmarks.fast`); the instance is the shipped one. Days change all the time,
requests fail in every way, keys are revoked and restored, and pages are opened.
"""

# psutil comes with `make bench` alone; `make check` reads this file without it.
# pyright: reportMissingModuleSource=false, reportMissingImports=false

import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

import click
import dagster as dg
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import func, select

from benchmarks.fast import accelerate, fast_copy
from benchmarks.installation import PROCESSES, Installation, NotHealed, open_as_operator, user_of, wait_for
from finora_pipeline.accounts.database import refreshes
from finora_pipeline.accounts.model import AccountsError, Status
from finora_pipeline.openai_admin.errors import OpenAIAdminError
from finora_pipeline.openai_simulator import FaultKind, KeyState
from finora_pipeline.openai_simulator.process import in_own_process
from finora_pipeline.plans import PLANS

# The retention of the smallest plan, so that every user has the whole history.
DAYS = 7
SAMPLE_SECONDS = 5.0
CLOCK_SECONDS = 15.0
FAULT_SECONDS = 10.0
REVOKE_SECONDS = 60.0
PROGRESS_SECONDS = 60.0
# Users that get faults at a time.
STRUCK = 0.015
# The simulated day from midnight to its end fits into the benchmark's time.
CLOCK_GOES_ON = timedelta(hours=23)
# The first fetches of all histories.
WARM_UP_PATIENCE = 1200.0
# Limit of the last third's median relative to the second third's.
FLAT = 0.10
# Each plan has a user with a permanently revoked key; two plans have a silent one.
REVOKED_FOR_GOOD = 4
DEAD_FOR_GOOD = 2
# Output to a file needs no line width.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class Strike(NamedTuple):
    """Faults for an organization; `fails`: whether its whole fetch fails."""

    kind: FaultKind
    times: tuple[int, int]
    seconds: float | None = None
    endpoint: str | None = None


STRIKES = {
    "429 with Retry-After": Strike(FaultKind.RATE_LIMIT, (1, 4), 2),
    "429 without it": Strike(FaultKind.RATE_LIMIT, (1, 4)),
    "429 for long": Strike(FaultKind.RATE_LIMIT, (5, 5), 9, "costs"),
    "500": Strike(FaultKind.SERVER_ERROR, (1, 4)),
    "500 for long": Strike(FaultKind.SERVER_ERROR, (12, 24), None, "costs"),
    "404": Strike(FaultKind.NOT_FOUND, (1, 2)),
    "no answer": Strike(FaultKind.HANG, (1, 1)),
    "slow answer": Strike(FaultKind.SLOW, (1, 3), 2),
    "cut body": Strike(FaultKind.CUT, (1, 2)),
    "connection reset": Strike(FaultKind.RESET, (1, 2)),
    "web page": Strike(FaultKind.HTML, (1, 3)),
    "null for results": Strike(FaultKind.NULL_RESULTS, (1, 2)),
    "no amounts": Strike(FaultKind.NO_AMOUNT, (1, 2), None, "costs"),
}


@dataclass
class Seen:
    """Samples: ages in seconds by plan, MB by process and moment, and everything wrong."""

    ages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failing: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    broken: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    run_peaks: dict[psutil.Process, tuple[float, float]] = field(default_factory=dict)
    permanent_age: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    pages: Counter[str] = field(default_factory=Counter)
    sizes: list[dict[str, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Soaked(Installation):
    """The observed installation, and the events in it."""

    def __init__(self, home: Path, base_url: str, source: Path, users: int, random: Random) -> None:
        super().__init__(home, base_url, DAYS, source)
        self.users = users
        self.random = random
        self.seen = Seen()
        self.dead = set(range(REVOKED_FOR_GOOD, REVOKED_FOR_GOOD + DEAD_FOR_GOOD))
        self.gone = set(range(REVOKED_FOR_GOOD))
        self._revoked: set[int] = set()

    @property
    def permanent(self) -> set[str]:
        """Users whose faults are permanent."""
        return {user_of(number) for number in self.dead | self.gone}

    # Events

    def warm_up(self) -> None:
        """Connect all users and wait until each was fetched."""
        self.connect(range(self.users), list(PLANS))
        self.start()

        def is_read() -> bool:
            self.check_up()
            return all(c.last_refresh_at for c in self.accounts.connections.all())

        wait_for("the first fetch of all users", is_read, WARM_UP_PATIENCE)

    def break_for_good(self) -> None:
        for number in self.gone:
            self.ask("keys", organization=number, state=KeyState.REVOKED)
        for number in self.dead:
            self.ask("faults", organization=number, kind=FaultKind.SERVER_ERROR, endpoint="costs")

    def strike(self) -> None:
        """Give faults to some users."""
        for number in self.random.sample(range(self.users), max(1, round(self.users * STRUCK))):
            name = self.random.choice(list(STRIKES))
            strike = STRIKES[name]
            parameters = {"kind": strike.kind, "times": self.random.randint(*strike.times)}
            parameters |= {"seconds": strike.seconds} if strike.seconds else {}
            parameters |= {"endpoint": strike.endpoint} if strike.endpoint else {}
            self.ask("faults", organization=number, **parameters)
            self.seen.faults[name] += 1

    def revoke(self) -> None:
        """Revoke the key of another user."""
        number = self.random.randrange(REVOKED_FOR_GOOD + DEAD_FOR_GOOD, self.users)
        if number not in self._revoked:
            self.ask("keys", organization=number, state=KeyState.REVOKED)
            self._revoked.add(number)
            self.seen.faults["key revoked"] += 1

    def restore(self) -> None:
        """Save working keys for users whose refused key was reported."""
        for number in sorted(self._revoked):
            connection = self.accounts.connections.get(user_of(number))
            if connection and connection.status is Status.NEEDS_ATTENTION:
                self.ask("keys", organization=number, state=KeyState.ACTIVE)
                # The organization may have another fault now; the next call retries.
                with suppress(OpenAIAdminError, AccountsError):
                    self.update(number)
                    self._revoked.remove(number)
                    self.seen.faults["key restored"] += 1

    def visit_pages(self) -> None:
        """Open pages as an operator and a monitoring system do."""
        user_id = user_of(self.random.randrange(self.users))
        plan = self.accounts.users.plan_of(user_id)
        ui, health = self._ports
        pages = ["overview", "state", "plan", "settings/keys"]
        page = self.random.choice([*pages, "overview.csv"] if plan and plan.csv_exports else pages)
        for url in (
            f"http://127.0.0.1:{self._dashboard_port}/users/{user_id}/{page}",
            f"http://127.0.0.1:{ui}/server_info",
            f"http://127.0.0.1:{health}/metrics",
        ):
            try:
                with open_as_operator(url) as answer:
                    answer.read()
                    self.seen.pages[str(answer.status)] += 1
            except OSError as error:
                self.seen.pages[str(getattr(error, "code", type(error).__name__))] += 1

    def heal(self) -> None:
        """End all faults and restore all keys."""
        self.ask("calm")
        for number in self.gone | self._revoked:
            self.ask("keys", organization=number, state=KeyState.ACTIVE)
        # Running fetches may still be refused.
        wait_for("an end of all runs", lambda: not self.unfinished())
        for connection in self.accounts.connections.all():
            if connection.status is Status.NEEDS_ATTENTION:
                self.update(int(connection.user_id.removeprefix("user-")))

    # Observations

    def sample(self, at: float) -> None:
        self.check_up()
        self._sample_ages()
        self._sample_memory(at)

    def _sample_ages(self) -> None:
        connections = self.accounts.connections.all()
        failed = self._last_failures()
        now = datetime.now(UTC)
        for connection in connections:
            since = connection.last_refresh_at or connection.connected_at
            age, plan = (now - since).total_seconds(), connection.plan
            if connection.user_id in self.permanent:
                self.seen.permanent_age = max(age, self.seen.permanent_age)
                continue
            if connection.status is not Status.ACTIVE:
                continue
            last_failure = failed.get(connection.user_id)
            if last_failure and last_failure > since:
                self.seen.failing[plan.name].append(age)
                continue
            self.seen.ages[plan.name].append(age)
            if age > plan.refresh_interval.total_seconds():
                self.seen.broken[plan.name].add(connection.user_id)

    def _last_failures(self) -> dict[str, datetime]:
        query = (
            select(refreshes.c.user_id, func.max(refreshes.c.started_at))
            .where(refreshes.c.outcome == "failed")
            .group_by(refreshes.c.user_id)
        )
        with self.accounts.database.read() as database:
            return {row[0]: row[1] for row in database.execute(query)}

    def _sample_memory(self, at: float) -> None:
        for process in self.processes():
            with suppress(psutil.Error):
                command = " ".join(process.cmdline())
                megabytes = process.memory_info().rss / 1e6
                name = next((name for name, part in PROCESSES.items() if part in command), None)
                if name == "a run":
                    begun, peak = self.seen.run_peaks.get(process, (at, 0.0))
                    self.seen.run_peaks[process] = (begun, max(peak, megabytes))
                elif name:
                    self.seen.memory[name].append((at, megabytes))

    def measure(self) -> None:
        """Return the size of the data folder."""
        home = self.settings.home
        parts = [path for path in home.iterdir() if path.is_dir()]
        sizes = {path.name: _megabytes(path) for path in parts}
        sizes["accounts"] = sum(path.stat().st_size for path in home.glob("accounts.sqlite*")) / 1e6
        self.seen.sizes.append(sizes)

    def state(self) -> str:
        """Return the progress in a few words."""
        ages = [
            f"{name} {max(self.seen.ages[name], default=0):.0f}/{plan.refresh_interval.total_seconds():.0f} s"
            for name, plan in PLANS.items()
        ]
        return f"worst ages {', '.join(ages)}; {self.seen.faults.total()} faults"


@click.command()
@click.option(
    "--minutes", default=30.0, show_default=True, help="Duration after the first fetch of all users."
)
@click.option("--users", default=200, show_default=True, type=click.IntRange(8), help="Users, of all plans.")
@click.option("--seed", default=7, show_default=True, help="Seed of faults and their times.")
@click.option("--keep", is_flag=True, help="Keep the data folder.")
def main(minutes: float, users: int, seed: int, keep: bool) -> None:
    """Observe a working installation; exit code 1 if data is late, wrong, or memory grows."""
    # Handled as Ctrl-C, so that all started processes end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    accelerate()
    folder = Path(tempfile.mkdtemp(prefix="finora-soak-"))
    source = fast_copy(folder / "source")
    with in_own_process("--users", str(users), "--days", str(DAYS), "--freeze-clock") as base_url:
        site = Soaked(folder, base_url, source, users, Random(seed))
        try:
            tables = list(_soak(site, minutes))
        except NotHealed as error:
            site.seen.wrong.append(str(error))
            tables = []
        finally:
            site.seen.wrong += site.end()
            if keep:
                console.print(f"Kept: {folder}")
            else:
                shutil.rmtree(folder)
    for table in tables:
        console.print(table)
    for line in site.seen.wrong:
        console.print(line, style="red", markup=False)
    if site.seen.wrong:
        sys.exit(1)


def _soak(site: Soaked, minutes: float) -> Iterator[Table]:
    began = time.monotonic()
    site.move_clock(timedelta(minutes=5))
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task("the first fetch of all users", total=None)
        site.warm_up()
        console.print(f"Each user was fetched once after {time.monotonic() - began:.0f} s.")
        _go_on(site, minutes * 60, progress, task)
        progress.update(task, description="comparing facts")
        try:
            site.heal()
            facts = site.settle()
        except (NotHealed, OpenAIAdminError, OSError) as error:
            # The observations so far are still printed.
            facts = [str(error)]
        site.measure()
    site.seen.wrong += facts
    console.print(f"Facts equal: {'no' if facts else 'yes'}. {time.monotonic() - began:.0f} seconds in all.")
    yield _table_of_ages(site)
    yield from _tables_of_work(site)
    yield _table_of_memory(site.seen, minutes * 60)
    yield _table_of_sizes(site.seen)


def _go_on(site: Soaked, seconds: float, progress: Progress, task: TaskID) -> None:
    """Run events and samples, each at its own interval."""
    site.measure()
    site.break_for_good()
    steps = seconds / CLOCK_SECONDS
    began = time.monotonic()
    rhythms = [
        (SAMPLE_SECONDS, lambda: site.sample(time.monotonic() - began)),
        (SAMPLE_SECONDS, site.visit_pages),
        (SAMPLE_SECONDS, site.restore),
        (CLOCK_SECONDS, lambda: site.move_clock(CLOCK_GOES_ON / steps)),
        (FAULT_SECONDS, site.strike),
        (REVOKE_SECONDS, site.revoke),
        (
            PROGRESS_SECONDS,
            lambda: console.print(f"{(time.monotonic() - began) / 60:4.0f} min: {site.state()}"),
        ),
    ]
    due = [0.0] * len(rhythms)
    while (at := time.monotonic() - began) < seconds:
        for number, (rhythm, act) in enumerate(rhythms):
            if at >= due[number]:
                due[number] += rhythm
                act()
        progress.update(task, total=seconds, completed=at, description=site.state())
        threading.Event().wait(0.2)


def _table_of_ages(site: Soaked) -> Table:
    seen = site.seen
    table = Table("plan", "users", "promise", "median age", "worst age", "kept", "worst of who failed")
    connections = [c for c in site.accounts.connections.all() if c.user_id not in site.permanent]
    for name, plan in PLANS.items():
        ages, failing = seen.ages[name], seen.failing[name]
        broken = seen.broken[name]
        if broken:
            who = ", ".join(sorted(broken)[:5])
            seen.wrong.append(f"The promise of {name} was broken for {len(broken)} users: {who}.")
        table.add_row(
            name,
            str(sum(c.plan == plan for c in connections)),
            f"{plan.refresh_interval.total_seconds():.0f} s",
            f"{statistics.median(ages):.0f} s" if ages else "–",
            f"{max(ages):.0f} s" if ages else "–",
            "no" if broken else "yes",
            f"{max(failing):.0f} s" if failing else "–",
        )
    table.caption = (
        f"Besides, {len(site.gone)} users whose keys were refused and {len(site.dead)} whose costs were "
        f"never answered, all the time; the oldest data of these: {seen.permanent_age:.0f} s."
    )
    return table


def _tables_of_work(site: Soaked) -> Iterator[Table]:
    seen = site.seen
    table = Table("what", "how many")
    for name, count in seen.faults.most_common():
        table.add_row(f"faults: {name}", str(count))
    table.add_section()
    outcomes = site.accounts.refreshes.outcomes_since(datetime.now(UTC) - timedelta(days=1))
    for name, (count, pages) in sorted(outcomes.items()):
        table.add_row(f"reads: {name}", f"{count:,} of {pages:,} pages")
    failed, healed = _healed(site)
    table.add_row("users whose read failed at least once", str(failed))
    table.add_row("of them read well afterwards", str(healed))
    if healed < failed:
        seen.wrong.append(f"{failed - healed} users were not read well after their failure.")
    table.add_section()
    with site.instance() as instance:
        records = instance.get_run_records()
    statuses = Counter((r.dagster_run.job_name, r.dagster_run.status.value.lower()) for r in records)
    for (job, status), count in sorted(statuses.items()):
        table.add_row(f"runs of {job}: {status}", str(count))
    seconds = [r.end_time - r.start_time for r in records if r.start_time and r.end_time]
    if seconds:
        took = f"{statistics.median(seconds):.0f} s, {max(seconds):.0f} s"
        table.add_row("seconds of a run: median, worst", took)
    if bad := [r for r in records if r.dagster_run.status is dg.DagsterRunStatus.FAILURE]:
        seen.wrong.append(f"{len(bad)} runs failed: {', '.join(r.dagster_run.run_id[:8] for r in bad[:5])}.")
    table.add_section()
    for status, count in sorted(seen.pages.items()):
        table.add_row(f"pages looked at: {status}", str(count))
        if status != "200":
            seen.wrong.append(f"{count} pages were answered with {status}.")
    yield table


def _healed(site: Soaked) -> tuple[int, int]:
    """Count users that failed at least once, and those fetched well afterwards."""
    query = select(refreshes.c.user_id, refreshes.c.outcome, refreshes.c.started_at).order_by(
        refreshes.c.started_at
    )
    last: dict[str, str] = {}
    failed: set[str] = set()
    with site.accounts.database.read() as database:
        for user_id, outcome, _ in database.execute(query):
            last[user_id] = outcome
            if outcome == "failed":
                failed.add(user_id)
    return len(failed), sum(last[user_id] == "complete" for user_id in failed)


def _table_of_memory(seen: Seen, seconds: float) -> Table:
    table = Table("process", "first MB", "median", "last", "worst", "last third ÷ second", "flat")
    every = dict(seen.memory)
    every["a run, its peak"] = sorted(seen.run_peaks.values())
    for name, samples in sorted(every.items()):
        megabytes = [size for _, size in samples]
        thirds = [[size for at, size in samples if low <= at / seconds * 3 < low + 1] for low in (1, 2)]
        if not all(thirds):
            seen.wrong.append(f"{name} was not there all the time.")
            continue
        second, last = map(statistics.median, thirds)
        is_flat = last <= second * (1 + FLAT)
        if not is_flat:
            seen.wrong.append(f"The memory of {name} is not flat: {second:.0f} MB, then {last:.0f} MB.")
        table.add_row(
            name,
            f"{megabytes[0]:.0f}",
            f"{statistics.median(megabytes):.0f}",
            f"{megabytes[-1]:.0f}",
            f"{max(megabytes):.0f}",
            f"{last / second:.2f}",
            "yes" if is_flat else "no",
        )
    return table


def _table_of_sizes(seen: Seen) -> Table:
    table = Table("folder", "MB before", "MB after", "growth")
    before, after = seen.sizes
    for name in sorted(after):
        was = before.get(name, 0.0)
        table.add_row(name, f"{was:.1f}", f"{after[name]:.1f}", f"{after[name] - was:+.1f}")
    total = sum(before.values()), sum(after.values())
    table.add_section()
    table.add_row("all", f"{total[0]:.1f}", f"{total[1]:.1f}", f"{total[1] - total[0]:+.1f}")
    return table


def _megabytes(folder: Path) -> float:
    size = 0
    for path in folder.rglob("*"):
        # Files may disappear at any time.
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size / 1e6


if __name__ == "__main__":
    main()
