"""Dagster's web server for operators only: Dagster's app behind the dashboard's guard and sign-in.

    python -m finora_pipeline.server.dagster_ui --port 3000 --workspace FILE [--public-url https://…]

Dagster's app has neither, so any web page and any account of this machine could launch runs. With a public
address it is served at /dagster of the dashboard's host, where browsers send the dashboard's session.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlencode

import click
import uvicorn
from starlette.concurrency import run_in_threadpool
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finora_pipeline.accounts.actors import OPERATORS, START_LINK, acting_as
from finora_pipeline.accounts.logins import Logins
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.dashboard import http_server
from finora_pipeline.dashboard.security.access import Access, StartLink
from finora_pipeline.dashboard.security.exposure import public_origin, session_cookie
from finora_pipeline.dashboard.security.guard import (
    COMMON_HEADERS,
    HostNames,
    RequestGuard,
    answer,
    is_loopback_name,
)
from finora_pipeline.instance.processes import web_app
from finora_pipeline.settings import Settings

PUBLIC_PATH = "/dagster"
# Requests may hold run configs; Dagster sets no limit.
LONGEST_BODY = 10_000_000
# Queries of Dagster's own pages have a few hundred tokens.
MOST_TOKENS = 5_000
# For responses without a policy of their own.
HEADERS = {"Content-Security-Policy": "frame-ancestors 'none'", **COMMON_HEADERS}
_ASSETS = (".js", ".css", ".svg", ".png", ".woff", ".woff2", ".map", ".ico", ".json", ".txt")
_SIGN_IN = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Dagster · Finora</title></head><body>
<h1>Sign in first</h1>
<p>Open the link to the Dagster UI that <code>finora up</code> printed at its start, or sign in to the
dashboard as an operator and come back.</p>
</body></html>
"""
_OPERATORS_ONLY = "The Dagster UI is for operators. Sign in with an operator's login."


def guarded(
    app: ASGIApp,
    accounts: Accounts,
    access: Access,
    allowed: tuple[str, ...],
    public_url: str | None,
) -> ASGIApp:
    """Dagster's app behind the guard, the start link and the sign-in."""
    origin = public_origin(public_url) if public_url else None
    names = HostNames(frozenset([origin] if origin else []), allowed)

    def opened() -> None:
        with acting_as(START_LINK):
            accounts.audit.note(OPERATORS, "sign-in", "to Dagster by start link")

    app = OperatorsOnly(app, accounts.logins, access, is_public=names.is_public)
    # The start link's token is not accepted under the public address.
    app = StartLink(app, access, opens_by_link, opened)
    return RequestGuard(
        app,
        names,
        access,
        lambda _: PlainTextResponse("Dagster failed to respond. Its log shows why.", 500),
        headers=HEADERS,
        longest_body=LONGEST_BODY,
        strict=True,
        further=refuse_mutation,
    )


def opens_by_link(connection: HTTPConnection) -> bool:
    """Whether the start link opens the UI: only under this machine's names."""
    return is_loopback_name(connection.headers.get("host", ""))


def refuse_mutation(request: Request) -> Response | None:
    """Refuse a GraphQL document in an address unless it is a query: an image tag could send a mutation."""
    if request.method == "POST" or request.scope["path"].rstrip("/").rpartition("/")[2] != "graphql":
        return None
    from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

    for text in request.query_params.getlist("query"):
        try:
            document = parse(text, no_location=True, max_tokens=MOST_TOKENS)
        except (GraphQLError, RecursionError):
            return PlainTextResponse("Invalid GraphQL query.", 400)
        for node in document.definitions:
            if isinstance(node, OperationDefinitionNode) and node.operation is not OperationType.QUERY:
                return PlainTextResponse("Send GraphQL mutations by POST.", 405, {"Allow": "POST"})
    return None


class OperatorsOnly:
    """Admits operators: by a session of the dashboard, or on this machine by the access token."""

    def __init__(self, app: ASGIApp, sign_in: Logins, access: Access, *, is_public: bool) -> None:
        self._app = app
        self._sign_in = sign_in
        self._access = access
        self._is_public = is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            connection = HTTPConnection(scope)
            refused = await self._refusal(connection)
            if refused:
                await answer(refused, scope, receive, send)
                return
            send = _uncached(send, connection.url.path)
        await self._app(scope, receive, send)

    async def _refusal(self, connection: HTTPConnection) -> Response | None:
        is_public = self._is_public and not is_loopback_name(connection.headers.get("host", ""))
        if not is_public and self._access.is_operator(connection):
            return None
        token = connection.cookies.get(session_cookie(is_public=is_public))
        login = await run_in_threadpool(self._sign_in.of_session, token, datetime.now(UTC)) if token else None
        if login:
            return None if login.is_operator else PlainTextResponse(_OPERATORS_ONLY, 403)
        if is_public and connection.scope.get("method") == "GET" and _is_page(connection):
            return RedirectResponse("/sign-in?" + urlencode({"next": connection.url.path}), 303)
        return HTMLResponse(_SIGN_IN, 401)


def _is_page(connection: HTTPConnection) -> bool:
    return "text/html" in connection.headers.get("accept", "")


def _uncached(send: Send, path: str) -> Send:
    """Keep Dagster's pages out of caches; its scripts and styles are revalidated by their tag."""
    policy = "private, no-cache" if path.endswith(_ASSETS) else "no-store"

    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", []) if pair[0].lower() != b"cache-control"]
            message["headers"] = [*headers, (b"cache-control", policy.encode())]
        await send(message)

    return with_header


@asynccontextmanager
async def _lifespan(_: object) -> AsyncIterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        logging.getLogger("dagster-webserver").info("The Dagster web server was stopped.")


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--workspace", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--public-url")
def main(port: int, workspace: Path, public_url: str | None) -> None:
    """Serve Dagster's UI on loopback until SIGINT or SIGTERM."""
    settings = Settings.from_environment()
    access = Access.from_environment()
    accounts = accounts_of(settings)
    with web_app(workspace, PUBLIC_PATH if public_url else "", _lifespan) as app:
        served = guarded(app, accounts, access, settings.allowed_hosts, public_url)
        uvicorn.Server(http_server.config(served, port=port)).run()


if __name__ == "__main__":
    main()
