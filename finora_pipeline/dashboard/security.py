"""What stands before every page: headers, where a request comes from, its size, how often one may try."""

import logging
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LONGEST_BODY = 64_000
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_log = logging.getLogger("finora.dashboard")
_OF_PROXIES = ("x-forwarded-for", "x-forwarded-host", "forwarded", "via")
_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")
_SAFE = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """Refuses foreign hosts, unsafe requests from other origins and large bodies; adds the headers, and
    answers with `failure` where the app fails.

    `origins` are the addresses that this server has for a browser, such as https://finora.example.com.
    """

    def __init__(
        self, app: ASGIApp, origins: frozenset[str], is_public: bool, failure: Callable[[Request], Response]
    ) -> None:
        self._is_public = is_public
        self._app = app
        self._failure = failure
        self._origins = origins
        self._hosts = frozenset(urlsplit(origin).netloc for origin in origins)
        self._headers = HEADERS | ({"Strict-Transport-Security": "max-age=31536000"} if is_public else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = self._refusal(scope)
        if refused:
            await refused(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, _limited(receive), send_with_headers)
        except Exception:
            # The path tells what was asked for; bodies, which may hold a key, are never logged.
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if has_begun:
                raise
            await self._failure(Request(scope))(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if scope["path"] == "/health":
            return None
        if not self._is_public and any(name in headers for name in _OF_PROXIES):
            # It would make everybody out there somebody on this machine.
            return PlainTextResponse("Behind a proxy the pages must be served with --public-url.", 421)
        # A page elsewhere whose name was made to lead here (DNS rebinding) gives itself away by the name.
        host = headers.get("host", "")
        if not self._is_known(host):
            return PlainTextResponse("This server does not answer to that host name.", 421)
        if scope["method"] in _SAFE:
            return None
        own = self._origins if self._is_public else {f"http://{host}"}
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        is_own = site == "same-origin" if site else origin in own
        if not is_own or (origin and origin not in own):
            return PlainTextResponse("This request comes from another site and was not carried out.", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LONGEST_BODY:
            return PlainTextResponse("That is too large.", 413)
        return None

    def _is_known(self, host: str) -> bool:
        """Whether the server has that name. On this machine any port may lead here, through a tunnel, say."""
        return host in self._hosts or (not self._is_public and _LOOPBACK.fullmatch(host) is not None)


def _limited(receive: Receive) -> Receive:
    """Gives up a body that goes on for longer than it said."""
    size = 0

    async def next_part() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > LONGEST_BODY:
            return {"type": "http.disconnect"}
        return message

    return next_part


class Attempts:
    """Counts failures, to slow down who guesses. Kept in memory: a restart forgives."""

    def __init__(
        self, most: int, seconds: float, now: Callable[[], float] = time.monotonic, remembered: int = 10_000
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._now = now
        self._remembered = remembered
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def is_blocked(self, *keys: str) -> bool:
        """Whether any of them has failed too often lately."""
        return any(len(self._recent(key)) >= self._most for key in keys)

    def failed(self, *keys: str) -> None:
        """Notes a failure of each."""
        for key in keys:
            self._recent(key).append(self._now())

    def take_back(self, key: str) -> None:
        """Takes back the latest failure, which was none."""
        if failures := self._recent(key):
            failures.pop()

    def forget(self, *keys: str) -> None:
        """Forgives."""
        for key in keys:
            self._failures.pop(key, None)

    def _recent(self, key: str) -> deque[float]:
        failures = self._failures.setdefault(key, deque(maxlen=self._most))
        self._failures.move_to_end(key)
        while len(self._failures) > self._remembered:
            self._failures.popitem(last=False)
        while failures and self._now() - failures[0] > self._seconds:
            failures.popleft()
        return failures
