"""One measured process of `benchmarks.scaling`.

python -m benchmarks.scaling_child MODE BASE_URL DAYS HOME
"""

import asyncio
import json
import resource
import statistics
import sys
import time
import urllib.parse
import urllib.request
from datetime import UTC, datetime, timedelta

from benchmarks.__main__ import admin_keys, warm, window_of
from benchmarks.finora_refresh import connect_all, mark_as_read
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.cli import runs
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.settings import Settings


def move_clock(base_url: str, minutes: int) -> None:
    """Advance the clock, so that days change: unchanged pages would cost nothing."""
    now = datetime.now(UTC) + timedelta(minutes=minutes)
    query = urllib.parse.urlencode({"now": now.isoformat()})
    urllib.request.urlopen(base_url.removesuffix("/v1") + f"/_simulator/clock?{query}").close()


def main(mode: str, base_url: str, days: int, home: str) -> None:
    settings = Settings.from_environment({"FINORA_HOME": home, "OPENAI_BASE_URL": base_url})
    accounts = accounts_of(settings)
    asyncio.run(connect_all(accounts, settings, admin_keys(base_url)))
    prepare_instance(settings)
    if mode == "everything":
        mark_as_read(accounts, window_of(days))
        results = [runs.refresh(settings, window_of(days))]
    else:
        (loaded,) = runs.load_history(settings, [c.user_id for c in accounts.connections.all()])
        assert loaded.succeeded, loaded.errors
        # The first refresh fetches the directory, which happens once a day.
        results = []
        for minutes in range(1, 6):
            move_clock(base_url, minutes)
            asyncio.run(warm(base_url, window_of(4)))
            results.append(runs.refresh(settings, window_of(4)))
    for result in results:
        assert result.succeeded, result.errors
        assert not result.failed_users, result.failed_users
    last = results[-1]
    took = [sum(runs.step_seconds(settings, result.run_id).values()) for result in results]
    measured = {
        "seconds": statistics.median(took[-3:]),
        "steps": runs.step_seconds(settings, last.run_id),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "at": time.strftime("%H:%M"),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
