"""The supervisor's own pages: /health, /metrics and the documentation."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from finora_pipeline.accounts.store import Accounts
from finora_pipeline.dashboard import http_server
from finora_pipeline.dashboard.security.access import Access
from finora_pipeline.dashboard.security.guard import HostNames, RequestGuard
from finora_pipeline.instance.processes import daemon_is_alive
from finora_pipeline.server.child import Child
from finora_pipeline.server.docs_site import docs_routes
from finora_pipeline.server.metrics import metrics_page
from finora_pipeline.settings import Settings

LONGEST_WAIT_SECONDS = 120.0


class Health:
    """Whether all processes run and the daemon works; concurrent requests share one check."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        self._check: asyncio.Task[bool] | None = None

    async def is_well(self) -> bool:
        """Whether every process is running and every daemon sent a heartbeat recently."""
        if not all(child.is_running for child in self._children):
            return False
        if self._check is None or self._check.done():
            self._check = asyncio.create_task(run_in_threadpool(daemon_is_alive))
        return await asyncio.shield(self._check)

    def processes(self) -> dict[str, dict[str, bool | int | None]]:
        """State, process id and number of starts of each process, by name."""
        return {
            child.name: {"running": child.is_running, "pid": child.process_id, "starts": child.starts}
            for child in self._children
        }


def page_server(
    settings: Settings, accounts: Accounts, access: Access, children: Sequence[Child], port: int
) -> uvicorn.Server:
    """The server of these pages on loopback; it stops when its `should_exit` is set."""
    state = Health(children)

    async def health(request: Request) -> JSONResponse:
        loop = asyncio.get_running_loop()
        wait = request.query_params.get("wait", "0")
        end = loop.time() + (min(float(wait), LONGEST_WAIT_SECONDS) if wait.isdecimal() else 0)
        while not (well := await state.is_well()) and loop.time() < end:
            await asyncio.sleep(0.2)
        answer: dict[str, object] = {"status": "ok" if well else "failing"}
        # The guard admits any host name here, so only the access token reveals more than the status.
        if access.has_bearer(request.headers):
            answer["processes"] = state.processes()
        return JSONResponse(answer, 200 if well else 503)

    async def metrics(_: Request) -> Response:
        page = await run_in_threadpool(metrics_page, settings, accounts)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [Route("/health", health), Route("/metrics", metrics), *docs_routes()]
    guard = Middleware(
        RequestGuard,
        names=HostNames(allowed=settings.allowed_hosts),
        access=access,
        failure=lambda _: PlainTextResponse("The request failed. The log shows why.", 500),
        strict=True,
    )
    app = Starlette(routes=routes, middleware=[guard])
    server = uvicorn.Server(http_server.config(app, port=port))
    # The supervisor handles signals; uvicorn would only stop this page.
    server.capture_signals = _no_signals
    return server


@contextmanager
def _no_signals() -> Iterator[None]:
    yield
