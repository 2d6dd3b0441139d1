"""Places for the requests that are in flight at once, fewer while OpenAI refuses many of them."""

import asyncio


class InFlight:
    """Places for requests in flight: fewer while OpenAI answers many of them with 429, all again afterwards.

    Judged in rounds of as many answers as there are places, so that one organization's own rate limit slows
    no other: only a share of 429 over all organizations does.
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
        """Counts an answer; at the end of a round halves the places or gives a quarter of them back."""
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
