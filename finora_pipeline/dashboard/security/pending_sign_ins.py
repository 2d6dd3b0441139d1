"""Sign-ins whose password was right and whose code is still to come. Kept in memory, for minutes."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from finora_pipeline.accounts.logins import Login
from finora_pipeline.dashboard.security.throttle import Attempt

SECONDS = 300.0
MOST_TRIES = 5
REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class HalfSignedIn:
    """The login, the page that was asked for, and how the password was tried."""

    login: Login
    after: str
    attempt: Attempt
    failures: int


class Unfinished:
    """Begun sign-ins by the token that the form holds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # When each began, and how many codes were wrong.
        self._known: OrderedDict[str, tuple[HalfSignedIn, float, int]] = OrderedDict()

    def begin(self, half: HalfSignedIn) -> str:
        token = secrets.token_urlsafe(32)
        self._known[token] = (half, self._now(), 0)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return token

    def of(self, token: str) -> HalfSignedIn | None:
        """The sign-in, unless its time is over."""
        half, began, _ = self._known.get(token, (None, 0.0, 0))
        if half and self._now() - began > SECONDS:
            self.end(token)
            return None
        return half

    def has_tries_left(self, token: str) -> bool:
        """Counts a wrong code; whether another may be tried."""
        if token not in self._known:
            return False
        half, began, wrong = self._known[token]
        self._known[token] = (half, began, wrong + 1)
        if wrong + 1 >= MOST_TRIES:
            self.end(token)
        return token in self._known

    def end(self, token: str) -> None:
        self._known.pop(token, None)
