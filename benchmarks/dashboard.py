"""Speed and memory of the dashboard with 1,000 users and 365 days, in its own process.

python -m benchmarks.dashboard
"""

import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

import click
import httpx
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from finora_pipeline.accounts.model import Organization
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.settings import ACCESS_TOKEN, Settings
from finora_pipeline.warehouse.database import Warehouse

console = Console()
MODELS, PROJECTS, MEMBERS = 6, 3, 12
SWAPS = 100
CHROMIUM = "/usr/bin/chromium"
# Resolves to the time of the first paint.
TOKEN = "access-token-of-the-benchmarks"
PAINTED = """() => new Promise((resolve) => new PerformanceObserver((list) => {
    const drawn = list.getEntriesByName("first-contentful-paint");
    if (drawn.length) resolve(drawn[0].startTime);
}).observe({ type: "paint", buffered: true }))"""


@click.command()
@click.option("--users", default=1000, show_default=True)
@click.option("--days", default=365, show_default=True)
@click.option("--views", default=10_000, show_default=True, help="Views over which memory is watched.")
def main(users: int, days: int, views: int) -> None:
    """Measure the dashboard: seconds of the server, of the browser, and memory."""
    with tempfile.TemporaryDirectory(prefix="finora-dashboard-") as folder:
        settings = Settings.from_environment({"FINORA_HOME": folder})
        user_ids = [f"user-{number:04d}" for number in range(users)]
        console.print(f"Making {users:,} users of {days} days …")
        _publish(settings, users, days)
        _connect(settings, user_ids)
        with _served(settings) as (client, process):
            table = Table("what", "measured", "limit")
            chance = random.Random(1)
            client.get(f"/users/{user_ids[0]}/overview")
            for period, limits in (("30d", "60 / 150"), ("90d", ""), ("year", "")):
                query = f"period={period}"
                if period == "year":
                    query = f"from={datetime.now(UTC).date() - timedelta(days=days - 1)}"
                seen = chance.sample(user_ids, min(users, 200))
                took = sorted(_view(client, user_id, query) for user_id in seen)
                middle, high = statistics.median(took), took[int(len(took) * 0.95)]
                table.add_row(f"Overview, {period}: median / 95 %, ms", f"{middle:.0f} / {high:.0f}", limits)
            table.add_row("page drawn in Chromium, ms", f"{_drawn(client, user_ids[1]):.0f}", "500")
            sizes = _watch(settings, client, process, user_ids, views)
            table.add_row(f"memory over {views:,} views and {SWAPS} swaps, MB", " → ".join(sizes), "150")
            table.add_row("published file, MB", f"{settings.published_database.stat().st_size / 1e6:.0f}", "")
    console.print(table)


def _publish(settings: Settings, users: int, days: int) -> None:
    """Publish a file as after nightly upkeep: each month's rows ordered by user."""
    warehouse = Warehouse(settings.home)
    day = "current_date - d::INTEGER"
    grid = (
        f"(SELECT u, d FROM range({users}) AS u(u), range({days}) AS d(d) "
        f"ORDER BY date_trunc('month', {day}), u, d DESC)"
    )
    user = f"'user-' || lpad(u::VARCHAR, 4, '0') AS user_id, 'openai' AS provider, {day} AS date"
    parts = MODELS * PROJECTS * 2
    with warehouse.lock(), warehouse.connect() as connection:
        connection.execute("SET GLOBAL memory_limit = '4GB'; SET GLOBAL preserve_insertion_order = true")
        connection.execute(
            f"INSERT INTO daily_model_costs BY NAME SELECT {user}, 'model-' || m AS model, "
            "(random() * 10)::DECIMAL(38, 18) AS amount_usd, "
            "(random() * 5)::DECIMAL(38, 18) AS token_priced_usd, 100 AS requests, "
            "(random() * 1e6)::BIGINT AS input_tokens, (random() * 1e5)::BIGINT AS output_tokens, "
            f"false AS is_sample FROM {grid}, range({MODELS}) AS m(m)"
        )
        for table, principal in (("daily_member_costs", "member_id"), ("daily_key_costs", "api_key_id")):
            connection.execute(
                f"INSERT INTO {table} BY NAME SELECT {user}, "
                f"'proj_' || u || '_' || k % {PROJECTS} AS project_id, "
                f"'id_' || u || '_' || k % {MEMBERS} AS {principal}, 'model-' || k % {MODELS} AS model, "
                "(random() * 10)::DECIMAL(38, 18) AS amount_usd, "
                f"'billed' AS method, false AS is_sample FROM {grid}, range({parts}) AS k(k)"
            )
        connection.execute(
            f"INSERT INTO pipeline.loaded_days BY NAME SELECT {user}, "
            "unnest(['costs', 'completions']) AS endpoint, "
            f"now() AS first_fetched_at, now() AS fetched_at, 'made' AS raw_file FROM {grid}"
        )
        for table in ("daily_model_costs", "daily_member_costs", "daily_key_costs"):
            connection.execute(f"UPDATE {table} SET charges_usd = amount_usd")
        connection.execute("CHECKPOINT")
    settings.published_database.parent.mkdir(parents=True)
    shutil.move(warehouse.database, settings.published_database)


def _connect(settings: Settings, user_ids: list[str]) -> None:
    accounts = accounts_of(settings)
    for user_id in track(user_ids, "Connecting", console=console, transient=True):
        key = AdminKey("sk-admin-" + "x" * 40)
        accounts.connections.save(
            user_id,
            key,
            Organization("org-" + user_id),
            address="http://127.0.0.1/v1",
            known=None,
            plan="scale",
        )


@contextmanager
def _served(settings: Settings) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "finora_pipeline", "dashboard", "--port", str(port)]
    environment = os.environ | {"FINORA_HOME": str(settings.home), ACCESS_TOKEN: TOKEN}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
                until = time.monotonic() + 30
                while time.monotonic() < until:
                    try:
                        client.get("/health")
                        break
                    except httpx.ConnectError:
                        time.sleep(0.1)
                yield client, psutil.Process(process.pid)
        finally:
            process.terminate()


def _view(client: httpx.Client, user_id: str, query: str) -> float:
    started = time.perf_counter()
    answer = client.get(f"/users/{quote(user_id)}/overview?{query}")
    took = (time.perf_counter() - started) * 1000
    assert answer.status_code == 200, answer.text
    assert "sample data" not in answer.text
    return took


def _drawn(client: httpx.Client, user_id: str) -> float:
    """Return the median time until the page is loaded and drawn."""
    from playwright.sync_api import sync_playwright

    drawn_at = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{client.base_url}/?token={TOKEN}")
        for _ in range(7):
            page.goto(f"{client.base_url}/users/{user_id}/overview")
            drawn_at.append(page.evaluate(PAINTED))
        browser.close()
    return statistics.median(drawn_at)


def _watch(
    settings: Settings, client: httpx.Client, process: psutil.Process, user_ids: list[str], views: int
) -> list[str]:
    """Sample the process's memory during views and swaps."""
    published = settings.published_database
    copies = [published.with_name("a"), published.with_name("b")]
    published.rename(copies[0])
    shutil.copyfile(copies[0], copies[1])
    chance = random.Random(2)
    sizes = []
    for number in track(range(views), "Viewing", console=console, transient=True):
        if number % (views // SWAPS) == 0:
            aside = published.with_name(".swap")
            os.link(copies[number // (views // SWAPS) % 2], aside)
            aside.rename(published)
        client.get(f"/users/{chance.choice(user_ids)}/overview")
        if number % (views // 5) == views // 5 - 1:
            sizes.append(f"{process.memory_info().rss / 1e6:.0f}")
    return sizes


if __name__ == "__main__":
    main()
