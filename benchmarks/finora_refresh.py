"""One refresh of all simulated users in one Dagster run, until the file is published.

python -m benchmarks.finora_refresh BASE_URL DAYS HOME
"""

import asyncio
import json
import resource
import sys
import time
from datetime import UTC, datetime

from benchmarks.__main__ import READ, admin_keys, window_of
from finora_pipeline.accounts.model import Refresh
from finora_pipeline.accounts.onboarding import NewConnection, connect_many
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.cli import runs
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.reading import connect
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.settings import Settings


async def connect_all(accounts: Accounts, settings: Settings, keys: list[str]) -> None:
    lines = [NewConnection(f"user-{number:05d}", "enterprise", key) for number, key in enumerate(keys)]
    async with open_client(settings.openai_base_url) as client:
        async for _, outcome in connect_many(accounts, client, lines):
            if isinstance(outcome, str):
                raise SystemExit(outcome)


def mark_as_read(accounts: Accounts, window: Window) -> None:
    """Mark the users as fetched before, so that the measured run fetches only these days."""
    now = datetime.now(UTC)
    read = [Refresh(c.user_id, window.start, window.end, now, now, 0) for c in accounts.connections.all()]
    accounts.refreshes.record("before", read)
    accounts.refreshes.mark_published(accounts.refreshes.unpublished(), now)


def main(base_url: str, days: int, home: str) -> None:
    settings = Settings.from_environment({"FINORA_HOME": home, "OPENAI_BASE_URL": base_url})
    accounts = accounts_of(settings)
    keys = admin_keys(base_url)
    asyncio.run(connect_all(accounts, settings, keys))
    window = window_of(days)
    mark_as_read(accounts, window)
    # The first run in a data folder creates Dagster's databases, which happens once.
    prepare_instance(settings)

    openai_admin = OpenAIAdmin(
        settings.openai_base_url,
        endpoints=[endpoint for endpoint in READ if endpoint is not COSTS],
        directory=False,
    )
    started = time.time()
    if days > 30:
        users = [c.user_id for c in accounts.connections.all()]
        (result,) = runs.load_history(settings, users, openai_admin=openai_admin)
    else:
        result = runs.refresh(settings, window, openai_admin=openai_admin)
    whole_call = time.time() - started
    assert result.succeeded, result.errors
    assert not result.failed_users, result.failed_users
    with connect(settings.published_database) as connection:
        rows, total = connection.execute(
            "SELECT (SELECT count(*) FROM daily_costs) + (SELECT count(*) FROM daily_usage), "
            "(SELECT sum(amount_usd) FROM daily_costs)"
        ).fetchall()[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # From the run's start to the published file; the whole call adds Dagster's preparation.
    seconds = settings.published_database.stat().st_mtime - runs.started_at(settings, result.run_id)
    result_line = {
        "seconds": seconds,
        "whole_call": whole_call,
        "rows": rows,
        "total": str(total),
        "peak_mb": peak,
    }
    print(json.dumps(result_line | {"steps": runs.step_seconds(settings, result.run_id)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
