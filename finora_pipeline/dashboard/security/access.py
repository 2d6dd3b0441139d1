"""The access token of a start: it opens pages and Dagster's UI on this machine to operators.

A browser opens the start link once and keeps a signed cookie; scripts send the token as a bearer token.
"""

import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from finora_pipeline.settings import ACCESS_TOKEN, SettingsError

# Set by finora up for the servers that it starts: the file with the token of this start.
TOKEN_FILE = "FINORA_ACCESS_TOKEN_FILE"
SHORTEST_TOKEN = 8
PARAMETER = "token"
COOKIE_SECONDS = 7 * 86_400
WRONG_LINK = "This link has expired. Open the link that finora printed at its latest start."


class Access:
    """One access token and the cookies signed with it."""

    def __init__(self, token: str, *, is_generated: bool = False, now: Callable[[], float] = time.time):
        if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
            raise SettingsError(
                f"{ACCESS_TOKEN} must have at least {SHORTEST_TOKEN} ASCII characters and no space."
            )
        self._token = token
        self._is_generated = is_generated
        self._now = now
        self._key = hmac.digest(token.encode(), b"finora access cookie", "sha256")
        # Cookies ignore ports: another installation on this machine must not overwrite this one's.
        self.cookie = f"finora-access-{hmac.digest(self._key, b'name', 'sha256').hex()[:8]}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Access":
        """The token of `finora up`, else FINORA_ACCESS_TOKEN, else a new token.

        Raises `SettingsError`.
        """
        if file := environment.get(TOKEN_FILE):
            return cls(Path(file).read_text())
        if token := environment.get(ACCESS_TOKEN):
            return cls(token)
        return cls(secrets.token_urlsafe(32), is_generated=True)

    def link(self, address: str) -> str:
        """The start link of a server. It never shows a token that the environment sets."""
        return f"{address}/?{PARAMETER}={self._token if self._is_generated else '…'}"

    def write(self, file: Path) -> None:
        """Write the token to a file with mode 0600, replacing an earlier one."""
        file.unlink(missing_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as new:
            new.write(self._token)

    def is_token(self, text: str) -> bool:
        """Whether a text is the token, compared in constant time."""
        return hmac.compare_digest(text.encode("utf-8", "replace"), self._token.encode())

    def has_bearer(self, headers: Headers) -> bool:
        """Whether the token is the bearer token: a header no other site can make a browser send."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self.is_token(token.strip())

    def is_operator(self, connection: HTTPConnection) -> bool:
        """Whether a request has the token, or a cookie signed with it."""
        if self.has_bearer(connection.headers):
            return True
        issued, _, signature = connection.cookies.get(self.cookie, "").partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(issued).encode()):
            return False
        return -60 <= self._now() - int(issued) <= COOKIE_SECONDS

    def grant(self, response: Response) -> None:
        """Set the cookie of an operator."""
        issued = str(int(self._now()))
        response.set_cookie(
            self.cookie,
            f"{issued}.{self._signature(issued)}",
            max_age=COOKIE_SECONDS,
            path="/",
            httponly=True,
            samesite="lax",
        )

    def withdraw(self, response: Response) -> None:
        """Delete the cookie from the browser."""
        response.delete_cookie(self.cookie, path="/", httponly=True, samesite="lax")

    def _signature(self, issued: str) -> str:
        return hmac.digest(self._key, issued.encode("utf-8", "replace"), "sha256").hex()


class StartLink:
    """Middleware that takes the token out of an address and sets the cookie for the right one.

    `accepts` decides whether a request may use the start link at all; `opened` is called after each use.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        accepts: Callable[[HTTPConnection], bool],
        opened: Callable[[], None],
    ) -> None:
        self._app = app
        self._access = access
        self._accepts = accepts
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_page = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True) if is_page else []
        tokens = [value for name, value in query if name == PARAMETER]
        if not tokens:
            await self._app(scope, receive, send)
            return
        rest = urlencode([(name, value) for name, value in query if name != PARAMETER])
        # Two leading slashes would lead to another host.
        path = "/" + scope["raw_path"].decode("latin-1").lstrip("/\\")
        response: Response
        if not self._accepts(HTTPConnection(scope)):
            response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
        elif self._access.is_token(tokens[-1]):
            response = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            await run_in_threadpool(self._opened)
            self._access.grant(response)
        else:
            response = PlainTextResponse(WRONG_LINK, 403)
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cache-Control"] = "no-store"
        await response(scope, receive, send)
