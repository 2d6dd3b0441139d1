"""The cost of latency: users fetched a second, by response time and concurrency.

python -m benchmarks.latency [USERS]

Each user is fetched as by a refresh: the last four days of costs, then everything else concurrently. The
floor is requests × latency ÷ concurrency; the ratio is measured time ÷ floor. Every line is a separate
process; its memory is the peak above that before the first request.
"""

import asyncio
import json
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from urllib.request import urlopen

from finora_pipeline.openai_admin.client import Limits, open_client
from finora_pipeline.openai_admin.endpoints import COSTS, EXTRA_ENDPOINTS
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator.process import in_own_process

LATENCIES = (0.0, 0.2, 0.5)
IN_FLIGHT = (32, 256, 512)


async def read_all(base_url: str, in_flight: int, keys: list[str]) -> int:
    """Fetch each user once; return the number of requests."""
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    window = Window(tomorrow - timedelta(days=4), tomorrow)
    # Enough users to fill the concurrency: each has at most three requests in flight.
    room = asyncio.Semaphore(max(36, in_flight * 3 // 5))

    async with open_client(base_url, Limits(concurrency=in_flight)) as client:

        async def read(key: str) -> None:
            organization = client.organization(AdminKey(key))
            async with room:
                await organization.fetch(COSTS, window)
                await asyncio.gather(*(organization.fetch(e, window) for e in EXTRA_ENDPOINTS.values()))

        await asyncio.gather(*map(read, keys))
        return client.outcomes.total()


def measure(base_url: str, latency: float, in_flight: int) -> None:
    """Print one line of the table."""
    with urlopen(base_url.removesuffix("/v1") + "/_simulator/organizations") as answer:
        keys = [organization["admin_key"] for organization in json.load(answer)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    requests = asyncio.run(read_all(base_url, in_flight, keys))
    seconds = time.monotonic() - started
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    floor = requests * latency / in_flight
    ratio = f"{seconds / floor:.1f}" if floor else "–"
    print(
        f"| {latency:g} s | {in_flight} | {seconds:.1f} s | {len(keys) / seconds:.1f} | {ratio} "
        f"| {megabytes:.0f} MB |",
        flush=True,
    )


def main(users: int) -> None:
    print("| an answer takes | in flight | all users | users a second | × the floor | memory |")
    print("|---|---|---|---|---|---|", flush=True)
    for latency in LATENCIES:
        options = ("--users", str(users), "--days", "6", "--completions-only", "--latency", str(latency))
        with in_own_process(*options, "--freeze-clock") as base_url:
            for in_flight in IN_FLIGHT:
                line = [sys.executable, "-m", "benchmarks.latency", base_url, str(latency), str(in_flight)]
                subprocess.run(line, check=True)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        measure(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
