"""Sign-ins that wait for the code of the second factor. Kept in memory, for minutes."""

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
class PendingSignIn:
    """The login, the page to open afterwards, the password's attempt and its earlier failures."""

    login: Login
    after: str
    attempt: Attempt
    failures: int


class PendingSignIns:
    """Pending sign-ins by the token in the form for the code."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # With the time at which each began, and its number of wrong codes.
        self._known: OrderedDict[str, tuple[PendingSignIn, float, int]] = OrderedDict()

    def begin(self, pending: PendingSignIn) -> str:
        """Keep a sign-in; return its token."""
        token = secrets.token_urlsafe(32)
        self._known[token] = (pending, self._now(), 0)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return token

    def get(self, token: str) -> PendingSignIn | None:
        """The sign-in; None for an unknown token or after its time."""
        pending, began, _ = self._known.get(token, (None, 0.0, 0))
        if pending and self._now() - began > SECONDS:
            self.end(token)
            return None
        return pending

    def has_tries_left(self, token: str) -> bool:
        """Count a wrong code; return whether another may be entered."""
        if token not in self._known:
            return False
        pending, began, wrong = self._known[token]
        self._known[token] = (pending, began, wrong + 1)
        if wrong + 1 >= MOST_TRIES:
            self.end(token)
        return token in self._known

    def end(self, token: str) -> None:
        """Drop a sign-in."""
        self._known.pop(token, None)
