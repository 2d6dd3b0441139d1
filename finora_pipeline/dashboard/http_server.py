"""Limits for ASGI apps under uvicorn: half-sent requests time out, idle connections yield.

Every server of the project uses them, so that clients that send or read nothing cannot block it.
"""

import asyncio
import resource
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

# From the first byte of a request to the last of its body.
REQUEST_SECONDS = 10.0
# A client that reads nothing of its answer for this long is disconnected.
STALLED_SECONDS = 60.0
MOST_CONNECTIONS = 1_000
# Files left for the rest of the process.
RESERVED_FILES = 100
# Used where the operating system has no limit; macOS refuses more.
MOST_FILES = 10_240
STOP_SECONDS = 5
_HEADERS_400 = [
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"connection", b"close"),
]


def raise_file_limit() -> int:
    """Raise the process's limit of open files to its hard limit; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def most_connections(files: int) -> int:
    """The connections that a server keeps open in a process with this limit of open files."""
    return max(16, min(MOST_CONNECTIONS, files - RESERVED_FILES))


def config(app: ASGIApp, *, host: str | None = None, port: int = 0, **options: Any) -> uvicorn.Config:
    """uvicorn's settings for a server of this project; `options` override them."""
    own = {
        "http": BoundedConnection,
        "limit_concurrency": most_connections(raise_file_limit()),
        "timeout_graceful_shutdown": STOP_SECONDS,
        # An access log would hold start links.
        "access_log": False,
        "log_level": "warning",
        # Only proxies named in the settings are trusted with the client's address; see `client_address`.
        "proxy_headers": False,
        "server_header": False,
    }
    return uvicorn.Config(app, host=host or "127.0.0.1", port=port, **{**own, **options})


class BoundedConnection(H11Protocol):
    """A connection that ends when a request is not sent in time.

    Without a request under way it also ends when a newer connection needs its place.
    """

    request_seconds = REQUEST_SECONDS
    stalled_seconds = STALLED_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._until: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._opened_at = self.loop.time()
        self._wait_for_request()
        # From this number of connections on uvicorn refuses requests.
        if self.limit_concurrency and len(self.connections) >= self.limit_concurrency:
            self._make_room()

    def handle_events(self) -> None:
        super().handle_events()
        has_begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if not has_begun and self.conn.their_state is not h11.SEND_BODY:
            self._request_is_complete()
        elif self._until is None:
            # Further parts of a request do not extend its time.
            self._wait_for_request()

    def on_response_complete(self) -> None:
        # Before a request begins, uvicorn's own timeout for idle connections applies.
        self._request_is_complete()
        super().on_response_complete()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._request_is_complete()
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._request_is_complete()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        # As uvicorn's own, with the security headers of all other answers.
        self._request_is_complete()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        for part in (
            h11.Response(status_code=400, headers=_HEADERS_400, reason=b"Bad Request"),
            h11.Data(data=msg.encode("ascii", "replace")),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    @property
    def may_be_closed(self) -> bool:
        """Whether no complete request is being answered."""
        return self._until is not None or self.cycle is None or self.cycle.response_complete

    def _wait_for_request(self) -> None:
        self._until = self.loop.call_later(self.request_seconds, self.transport.abort)

    def _request_is_complete(self) -> None:
        if self._until:
            self._until.cancel()
            self._until = None

    def _make_room(self) -> None:
        others = [
            one
            for one in self.connections
            if isinstance(one, BoundedConnection) and one is not self and one.may_be_closed
        ]
        if others:
            oldest = min(others, key=lambda one: one._opened_at)
            self.connections.discard(oldest)
            oldest.transport.abort()
