"""Passwords are checked on a few dedicated threads."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.dashboard.security.password_threads import Busy, PasswordThreads
from finora_pipeline.settings import Settings
from tests.dashboard.served import OWN, dashboard

PATIENCE = 30


def test_sign_ins_beyond_the_queue_are_refused() -> None:
    begun, may_end = threading.Semaphore(0), threading.Event()

    def check(number: int) -> int:
        begun.release()
        assert may_end.wait(PATIENCE)
        return number

    async def run() -> list[int]:
        threads = PasswordThreads(at_once=2, most_waiting=3)
        tasks = [asyncio.create_task(threads.run(check, number)) for number in range(5)]
        for _ in range(2):
            await asyncio.to_thread(begun.acquire)
        with pytest.raises(Busy):
            await threads.run(check, 5)
        # Two at a time, however many wait.
        assert not begun.acquire(blocking=False)
        may_end.set()
        results = await asyncio.gather(*tasks)
        assert await threads.run(check, 6) == 6
        threads.close()
        return results

    assert asyncio.run(run()) == [0, 1, 2, 3, 4]


def test_a_flood_of_sign_ins_does_not_block_pages(tmp_path: Path) -> None:
    settings = Settings.from_environment({"FINORA_HOME": str(tmp_path)})
    accounts_of(settings).logins.save("ada@acme.example", user_id=None, password="a long password")
    with dashboard(settings) as served:

        def guess(number: int) -> int:
            form = {"name": f"name {number % 40}", "password": "x"}
            return served.browser.post("/sign-in", data=form, headers=OWN).status_code

        with ThreadPoolExecutor(30) as threads:
            codes = threads.map(guess, range(90))
            assert [served.get("/users").status_code for _ in range(10)] == [200] * 10
            codes = list(codes)
    assert set(codes) <= {401, 429, 503}
    assert codes.count(401) <= 30
