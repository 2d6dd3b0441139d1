"""The cost of a slow organization: seconds until 50 others are published, and to the end.

python -m benchmarks.slow_answers [USERS]

One more organization never responds to costs, sends them byte by byte, does so at a usage endpoint, or takes
10 s for each response. Every case has its own process and data folder.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.__main__ import admin_keys, window_of
from benchmarks.finora_refresh import connect_all, mark_as_read
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.cli import runs
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.openai_simulator import OrganizationSpec, Simulator, running
from finora_pipeline.reading import NothingPublished, connect
from finora_pipeline.settings import Settings

HEALTHY = 50
DAYS = 4
LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Case:
    """The slow organization's behaviour, and the simulator's fault for it."""

    title: str
    fault: dict[str, str]


CASES = (
    Case("none is slow", {}),
    Case("costs are never answered", {"kind": "hang", "endpoint": "costs"}),
    Case("costs drip: a byte in 50 ms", {"kind": "drip", "endpoint": "costs", "seconds": "0.05"}),
    Case("one usage endpoint is never answered", {"kind": "hang", "endpoint": "completions"}),
    Case("one usage endpoint drips", {"kind": "drip", "endpoint": "completions", "seconds": "0.05"}),
    Case("each answer takes 10 s", {"kind": "slow", "seconds": "10"}),
    Case("nothing is ever answered", {"kind": "hang"}),
)


class PublishedAfter:
    """Waits until so many users' costs are published; `seconds` is the time of that."""

    def __init__(self, database: Path, users: int) -> None:
        self.seconds: float | None = None
        self._database = database
        self._users = users
        self._ended = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            if self._published() >= self._users:
                self.seconds = time.monotonic() - self._began
                return

    def _published(self) -> int:
        query = "SELECT count(DISTINCT user_id) FROM daily_costs"
        try:
            with connect(self._database) as connection:
                return connection.execute(query).fetchall()[0][0]
        except NothingPublished:
            return 0


def measure(base_url: str, home: str, fault: str) -> None:
    """Print the outcome of a refresh of all organizations, the last of which has the fault."""
    settings = Settings.from_environment({"FINORA_HOME": home, "OPENAI_BASE_URL": base_url})
    accounts = accounts_of(settings)
    keys = admin_keys(base_url)
    asyncio.run(connect_all(accounts, settings, keys))
    window = window_of(DAYS)
    mark_as_read(accounts, window)
    prepare_instance(settings)
    if parameters := json.loads(fault):
        query = urllib.parse.urlencode(parameters | {"organization": len(keys) - 1})
        urllib.request.urlopen(base_url.removesuffix("/v1") + f"/_simulator/faults?{query}").close()
    watch = PublishedAfter(settings.published_database, len(keys) - 1)
    began = time.monotonic()
    result = runs.refresh(settings, window)
    seconds = time.monotonic() - began
    watch.stop()
    assert result.succeeded, result.errors
    slow = f"user-{len(keys) - 1:05d}"
    assert {row.user_id for row in result.failed_users} <= {slow}, result.failed_users
    reasons = [row.reason for row in result.failed_users]
    parts = [f"{one.part}: {one.reason}" for one in accounts.refreshes.part_failures([slow]).get(slow, [])]
    print(
        json.dumps({"published": watch.seconds or seconds, "ended": seconds, "slow": [*reasons, *parts]}),
        flush=True,
    )


def main(healthy: int, cases: Sequence[Case] = CASES) -> None:
    print("| one more organization | healthy users published | the run ended | the slow one |")
    print("|---|---|---|---|", flush=True)
    now = datetime.now(UTC)
    since = now.date() - timedelta(days=DAYS - 1)
    for case in cases:
        simulator = Simulator([OrganizationSpec(n, since=since) for n in range(healthy + 1)], now=now)
        with tempfile.TemporaryDirectory() as home, running(simulator) as base_url:
            command = [
                sys.executable,
                "-m",
                "benchmarks.slow_answers",
                base_url,
                home,
                json.dumps(case.fault),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        slow = ", ".join(measured["slow"]) or "read whole"
        print(
            f"| {case.title} | {measured['published']:.1f} s | {measured['ended']:.1f} s | {slow} |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(sys.argv[1], sys.argv[2], sys.argv[3])
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else HEALTHY)
