"""One measured process of `benchmarks.memory`.

python -m benchmarks.memory_child STEP BASE_URL DAYS REFRESHES HOME
"""

import asyncio
import json
import logging
import resource
import sys
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta

from benchmarks.__main__ import admin_keys, window_of
from benchmarks.finora_refresh import connect_all, mark_as_read
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.cli import runs
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.reading import connect
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse import retention
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.folding import fold_revisions
from finora_pipeline.warehouse.periods import EXACT_DAYS
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.rebuild import rebuild, replace_warehouse

# Step of OpenAI's clock before each later refresh: days that are not final change.
MOVED = timedelta(minutes=37)


class Halvings(logging.Handler):
    """Counts warnings of work that did not fit at once and was repeated in smaller portions."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += "at once" in record.getMessage()


def move_clock(base_url: str) -> None:
    """Advance the simulator's clock, so that it restates the last days."""
    clock = base_url.removesuffix("/v1") + "/_simulator/clock"
    with urllib.request.urlopen(clock) as answer:
        now = datetime.fromisoformat(json.load(answer)["now"]) + MOVED
    urllib.request.urlopen(f"{clock}?{urllib.parse.urlencode({'now': now.isoformat()})}").close()


def refresh_often(
    settings: Settings, accounts: Accounts, base_url: str, days: int, refreshes: int
) -> tuple[list[float], list[str]]:
    """Refresh repeatedly, with the last days restated; return seconds of each and failures."""
    asyncio.run(connect_all(accounts, settings, admin_keys(base_url)))
    window = window_of(days)
    mark_as_read(accounts, window)
    seconds: list[float] = []
    failures: list[str] = []
    for number in range(refreshes):
        if number:
            move_clock(base_url)
        began = time.monotonic()
        result = runs.refresh(settings, window)
        seconds.append(time.monotonic() - began)
        failures += failures_of(result, f"refresh {number + 1}")
    return seconds, failures


def load_history(settings: Settings, accounts: Accounts, base_url: str) -> tuple[list[float], list[str]]:
    """Fetch the whole history of all users; return the seconds and failures."""
    asyncio.run(connect_all(accounts, settings, admin_keys(base_url)))
    began = time.monotonic()
    results = runs.load_history(settings, [c.user_id for c in accounts.connections.all()])
    seconds = time.monotonic() - began
    return [seconds], [failure for result in results for failure in failures_of(result, "history")]


def failures_of(result: runs.RunResult, label: str) -> list[str]:
    failures = [f"{label}: {error}" for error in result.errors]
    return failures + [f"{label}: {one.user_id}: {one.message}" for one in result.failed_users]


def compare_rebuilt(warehouse: Warehouse) -> tuple[list[float], list[str]]:
    """Rebuild the facts and compare; return the seconds, failures and differences."""
    began = time.monotonic()
    rebuilt = rebuild(warehouse)
    seconds = time.monotonic() - began
    failures = [f"{one.file}: {one.reason}" for one in rebuilt.unloadable]
    return [seconds], failures + [f"differs: {difference}" for difference in rebuilt.differences[:5]]


def replace_and_publish(accounts: Accounts, warehouse: Warehouse) -> tuple[list[float], list[str]]:
    """Replace the warehouse by a rebuilt one and publish it; return the seconds."""
    began = time.monotonic()
    replace_warehouse(warehouse)
    publish_refreshes(accounts, warehouse)
    return [time.monotonic() - began], []


def keep_up(accounts: Accounts, warehouse: Warehouse) -> tuple[list[float], list[str]]:
    """Run a night's upkeep, as if a week had passed, and publish; return the seconds."""
    today = datetime.now(UTC).date()
    began = time.monotonic()
    retention.prune(warehouse, lambda: accounts.users.kept_from(datetime.now(UTC)))
    retention.thin(warehouse, today + timedelta(days=1))
    fold_revisions(warehouse, datetime.now(UTC) + timedelta(days=EXACT_DAYS + 1))
    retention.cluster(warehouse, today)
    publish_refreshes(accounts, warehouse)
    return [time.monotonic() - began], []


def main(step: str, base_url: str, days: int, refreshes: int, home: str) -> None:
    settings = Settings.from_environment({"FINORA_HOME": home, "OPENAI_BASE_URL": base_url})
    accounts = accounts_of(settings)
    warehouse = Warehouse(settings.home)
    prepare_instance(settings)
    halvings = Halvings()
    for name in ("finora_pipeline.warehouse", "finora.warehouse"):
        logging.getLogger(name).addHandler(halvings)
    if step == "refresh":
        seconds, failures = refresh_often(settings, accounts, base_url, days, refreshes)
    elif step == "history":
        seconds, failures = load_history(settings, accounts, base_url)
    elif step == "rebuild":
        seconds, failures = compare_rebuilt(warehouse)
    elif step == "upkeep":
        seconds, failures = keep_up(accounts, warehouse)
    else:
        seconds, failures = replace_and_publish(accounts, warehouse)
    used = resource.getrusage(resource.RUSAGE_SELF)
    users = [connection.user_id for connection in accounts.connections.all()]
    for user_id, parts in accounts.refreshes.part_failures(users).items():
        failures += [f"{user_id}, {one.part} since {one.since}: {one.message}" for one in parts]
    failures += [f"quarantined: {one.file.name}" for one in RawPages(warehouse.raw).quarantined()]
    with connect(settings.published_database) as connection:
        tables = "(SELECT count(*) FROM daily_costs) + (SELECT count(*) FROM daily_usage)"
        ((rows,),) = connection.execute(f"SELECT {tables}").fetchall()
    measured = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "rows": rows}
    measured |= {"peak_mb": used.ru_maxrss / 1024, "halvings": halvings.count, "failures": failures}
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
