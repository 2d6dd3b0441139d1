"""Given an organization, when refreshed, then the published facts equal the truth."""

import asyncio
from dataclasses import replace

import pytest

from finora_pipeline.cli import runs
from finora_pipeline.ingest import fetch
from finora_pipeline.ingest.selection import already_fetched
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.openai_admin.pages import Window


def test_the_first_refresh_fetches_the_plans_whole_history(start_openai, install):
    installation = install(start_openai(organizations=2, days=30))
    installation.connect(plan="growth")
    result = installation.refresh()
    assert result.succeeded
    assert result.failed_users == []
    for number in range(2):
        installation.assert_exact(f"user-{number}", number, installation.history(90))


def test_a_refresh_in_this_process_writes_no_log_to_the_terminal(start_openai, install, capfd):
    installation = install(start_openai(days=2))
    installation.connect(plan="trial")
    assert installation.refresh().succeeded
    written = capfd.readouterr()
    assert "DEBUG" not in written.out + written.err


def test_a_second_identical_refresh_changes_nothing(start_openai, install):
    installation = install(start_openai(days=12))
    installation.connect()
    installation.refresh()
    before = installation.costs("user-0")
    installation.refresh()
    assert installation.costs("user-0") == before
    window: Window = installation.history(90)
    installation.assert_exact("user-0", 0, window)


def test_one_long_window_leaves_slots_for_many_short_ones():
    async def most_at_once(days: list[int]) -> int:
        """Return how many of these windows, requested at once, are fetched concurrently."""
        room, reading, most = fetch._DayBudget(900), 0, 0

        async def read(window: int) -> None:
            nonlocal reading, most
            async with room.taken(window):
                reading += 1
                most = max(most, reading)
                await asyncio.sleep(0)
                reading -= 1

        await asyncio.gather(*map(read, days))
        return most

    assert asyncio.run(most_at_once([4] * 30)) == 30
    assert asyncio.run(most_at_once([*[4] * 30, 2_000])) == 31
    assert asyncio.run(most_at_once([2_000] * 5)) == 2
    assert asyncio.run(most_at_once([365] * 5)) == 2
    assert asyncio.run(most_at_once([90] * 40)) == 10


@pytest.mark.parametrize("plan", ["growth", "enterprise"])
def test_history_fetched_by_an_interrupted_run_is_not_fetched_again(plan: str, start_openai, install):
    installation = install(start_openai(days=6, services=False))
    installation.connect(plan=plan)
    chosen = [replace(installation.accounts.connections.get("user-0"), history_from=None, read_until=None)]
    asked = trailing_window(installation.today)
    (loaded,) = runs.load_history(installation.settings, ["user-0"], openai_admin=installation.openai_admin)
    assert loaded.succeeded, loaded.errors
    assert already_fetched(installation.accounts, loaded.run_id, chosen, asked) == {"user-0"}
