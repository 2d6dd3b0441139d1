"""Limits the requests in flight at once, and lowers the limit while OpenAI refuses many."""

import asyncio


class InFlight:
    """A semaphore whose number of places falls while many answers are 429 and rises again after.

    A round is as many answers as there are places. The share of 429 among all organizations' answers of a
    round decides, so that an organization's own rate limit does not slow the others.
    """

    _SHORTEST_ROUND = 16
    _FEWEST = 4
    _SHARE = 0.1

    def __init__(self, most: int) -> None:
        self.most = most
        self.places = most
        self._existing = most
        self._semaphore = asyncio.Semaphore(most)
        self._answers = self._limited = 0

    async def __aenter__(self) -> None:
        await self._semaphore.acquire()

    async def __aexit__(self, *_: object) -> None:
        if self._existing > self.places:
            self._existing -= 1
        else:
            self._semaphore.release()

    def answered(self, is_rate_limited: bool) -> None:
        """Count an answer; at the end of a round halve the places or add a quarter."""
        self._answers += 1
        self._limited += is_rate_limited
        if self._answers < max(self.places, self._SHORTEST_ROUND):
            return
        if self._limited > self._SHARE * self._answers:
            self.places = max(min(self._FEWEST, self.most), self.places // 2)
        else:
            self.places = min(self.most, self.places + max(1, self.places // 4))
        self._answers = self._limited = 0
        while self._existing < self.places:
            self._existing += 1
            self._semaphore.release()
