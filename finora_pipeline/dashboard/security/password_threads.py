"""Threads for password checks only.

Hashing takes much memory and time, and pages must not wait for it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# Each hash takes 19 MiB.
AT_ONCE = 2
MOST_WAITING = 16


class Busy(Exception):
    """The queue of passwords to check is full."""


class PasswordThreads:
    """Runs `at_once` checks at a time; up to `most_waiting` more wait."""

    def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self._threads = ThreadPoolExecutor(at_once, "passwords")
        self._most = at_once + most_waiting
        self._taken = 0

    async def run(self, check: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """Run a check and return its result. Raises `Busy`."""
        if self._taken >= self._most:
            raise Busy
        self._taken += 1
        try:
            work = partial(check, *args, **options)
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._taken -= 1

    def close(self) -> None:
        """Drop the waiting checks and end the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
