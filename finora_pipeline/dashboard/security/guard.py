"""The guard in front of every server: host names, origins, body sizes, response headers."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finora_pipeline.dashboard.security.access import Access

LONGEST_BODY = 64_000
TOO_LARGE = "The request is too large."
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
# Headers of every server's answers.
COMMON_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
HEADERS = {"Content-Security-Policy": CONTENT_POLICY, "Cache-Control": "no-store", **COMMON_HEADERS}
_log = logging.getLogger("finora.dashboard")
_PROXY_HEADERS = ("x-forwarded-for", "x-forwarded-host", "forwarded", "via")
_LOOPBACK = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


def is_loopback_name(host: str) -> bool:
    """Whether a Host header names this machine; the port may be any, because of tunnels."""
    return _LOOPBACK.fullmatch(host.lower()) is not None


@dataclass(frozen=True, slots=True)
class HostNames:
    """The host names that a server answers to.

    `public` holds its https origins behind a proxy, such as https://finora.example.com; `allowed` further
    names, with or without a port; `on_loopback` adds this machine's own names.
    """

    public: frozenset[str] = frozenset()
    allowed: tuple[str, ...] = ()
    on_loopback: bool = True

    @property
    def is_public(self) -> bool:
        return bool(self.public)

    def origins(self, host: str) -> frozenset[str]:
        """The origins of the server's own pages under a host name; empty for a foreign name."""
        host = host.lower()
        if any(urlsplit(origin).netloc == host for origin in self.public):
            return self.public
        if self.on_loopback and is_loopback_name(host):
            return frozenset([f"http://{host}"])
        if host in self.allowed or host.rpartition(":")[0] in self.allowed:
            return frozenset([f"https://{host}"] if self.is_public else [f"http://{host}", f"https://{host}"])
        return frozenset()


class RequestGuard:
    """Middleware: refuses foreign hosts, cross-site requests and large bodies; adds headers.

    `failure` renders the answer where the app raises. A `strict` guard also refuses cross-site reads, except
    for followed links. `further` may refuse more.
    """

    def __init__(
        self,
        app: ASGIApp,
        names: HostNames,
        access: Access,
        failure: Callable[[Request], Response],
        *,
        headers: Mapping[str, str] = HEADERS,
        longest_body: int = LONGEST_BODY,
        strict: bool = False,
        further: Callable[[Request], Response | None] | None = None,
    ) -> None:
        self._app = app
        self._names = names
        self._access = access
        self._failure = failure
        self._longest_body = longest_body
        self._strict = strict
        self._further = further
        secure = {"Strict-Transport-Security": "max-age=31536000"} if names.is_public else {}
        self._headers = {**headers, **secure}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._refusal(scope)
        if refused:
            await answer(refused, scope, receive, send_with_headers)
            return
        try:
            bounded = _limited(receive, self._longest_body) if scope["type"] == "http" else receive
            await self._app(scope, bounded, send_with_headers)
        except Exception:
            # The path only: bodies may hold a key and are never logged.
            _log.exception("%s %s failed", scope.get("method", "WebSocket"), scope["path"])
            if has_begun or scope["type"] != "http":
                raise
            await self._failure(Request(scope))(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            return PlainTextResponse("A request must have one Host header.", 400)
        if scope["path"] == "/health":
            return None
        host = hosts[0] if hosts else ""
        # Without a public address a proxied request from a stranger would count as local.
        is_local = not self._names.is_public or is_loopback_name(host)
        if is_local and any(name in headers for name in _PROXY_HEADERS):
            return PlainTextResponse("Behind a proxy, start Finora with --public-url.", 421)
        # DNS rebinding: a foreign name that resolves to this server is refused by its name.
        own = self._names.origins(host)
        if not own:
            return PlainTextResponse("This server does not answer to that host name.", 421)
        if not self._is_allowed(scope, headers, own):
            return PlainTextResponse("Blocked: cross-site request.", 403)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._longest_body:
            return PlainTextResponse(TOO_LARGE, 413)
        return self._further(Request(scope)) if self._further and scope["type"] == "http" else None

    def _is_allowed(self, scope: Scope, headers: Headers, own: frozenset[str]) -> bool:
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if origin and origin not in own and (self._strict or _is_unsafe(scope)):
            return False
        if _is_unsafe(scope):
            if site is None and origin is None:
                # A script, not a browser: it must send the access token.
                return self._access.has_bearer(headers)
            # Over plain http, browsers send no Sec-Fetch-Site with a websocket's handshake.
            return site == "same-origin" if site else origin in own
        is_followed = headers.get("sec-fetch-mode") == "navigate"
        return not self._strict or site in (None, "same-origin", "none") or is_followed


def _is_unsafe(scope: Scope) -> bool:
    return scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS


async def answer(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a response; without support for responses, a websocket's handshake is closed instead."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
    else:
        await response(scope, receive, send)


def _limited(receive: Receive, longest: int) -> Receive:
    """Limit a body: beyond `longest` bytes the app sees a client that disconnected."""
    size = 0

    async def next_part() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > longest:
            return {"type": "http.disconnect"}
        return message

    return next_part
