"""The dashboard's ASGI app: routes, middleware and exception handlers."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import duckdb
from anyio.to_thread import current_default_thread_limiter
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from finora_pipeline.accounts.logins import Logins
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.dashboard.figures.periods import BadPeriod
from finora_pipeline.dashboard.security.access import Access, StartLink
from finora_pipeline.dashboard.security.exposure import Exposure
from finora_pipeline.dashboard.security.guard import TOO_LARGE, HostNames, RequestGuard
from finora_pipeline.dashboard.security.oidc import Oidc
from finora_pipeline.dashboard.security.permissions import SignInRequired
from finora_pipeline.dashboard.site import FOLDER, Site
from finora_pipeline.dashboard.snapshots import Snapshots, utc_now
from finora_pipeline.dashboard.views import errors, keys, model, overview, plan, users
from finora_pipeline.dashboard.views.sign_in import SignIn
from finora_pipeline.settings import Settings

# Requests that are answered at the same time; more would only hold more memory.
THREADS = 4


def create_app(
    settings: Settings,
    accounts: Accounts,
    logins: Logins,
    exposure: Exposure,
    access: Access,
    oidc: Oidc | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Starlette:
    """Build the dashboard of an installation as an ASGI app."""
    snapshots = Snapshots(settings.published_database, now)
    site = Site(settings, accounts, logins, exposure, access, oidc, snapshots, now)
    sign_in = SignIn(site)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = THREADS
        yield
        site.snapshots.close()
        sign_in.close()

    app = Starlette(
        routes=_routes(sign_in),
        middleware=_middleware(site, sign_in),
        exception_handlers=_exception_handlers(),
        lifespan=lifespan,
    )
    app.state.site = site
    # A redirect to the path without its slash would lead from a proxy's https to http.
    app.router.redirect_slashes = False
    return app


def _routes(sign_in: SignIn) -> list[BaseRoute]:
    user = "/users/{user_id}"
    return [
        Route("/", users.home),
        Route("/health", lambda _: PlainTextResponse("ok")),
        Route("/users", users.users),
        Route("/users", users.add_user, methods=["POST"]),
        Route(f"{user}/overview", overview.overview),
        Route(f"{user}/overview.csv", overview.overview_csv),
        Route(f"{user}/state", overview.state),
        Route(f"{user}/model", model.model),
        Route(f"{user}/plan", plan.plan),
        Route(f"{user}/plan", plan.change_plan, methods=["POST"]),
        Route(f"{user}/settings/keys", keys.keys),
        Route(f"{user}/settings/keys", keys.save_key, methods=["POST"]),
        Route(f"{user}/settings/keys/remove", keys.confirm_removal),
        Route(f"{user}/settings/keys/remove", keys.remove_key, methods=["POST"]),
        Route("/sign-in", sign_in.form),
        Route("/sign-in", sign_in.by_password, methods=["POST"]),
        Route("/sign-in/code", sign_in.by_code, methods=["POST"]),
        Route("/sign-in/oidc", sign_in.by_oidc),
        Route("/sign-in/oidc/callback", sign_in.oidc_callback, name="oidc_callback"),
        Route("/sign-out", sign_in.sign_out, methods=["POST"]),
        Mount("/static", _Static(directory=FOLDER / "static")),
    ]


def _middleware(site: Site, sign_in: SignIn) -> list[Middleware]:
    is_public = site.exposure.is_public
    names = HostNames(
        site.exposure.origins if is_public else frozenset(),
        site.settings.allowed_hosts,
        on_loopback=not is_public,
    )
    return [
        Middleware(RequestGuard, names=names, access=site.access, failure=errors.failure),
        Middleware(
            StartLink, access=site.access, accepts=site.accepts_start_link, opened=sign_in.record_start_link
        ),
        Middleware(GZipMiddleware, minimum_size=1_000, compresslevel=5),
        # Holds state, nonce and verifier while the browser is at the identity provider, for minutes.
        Middleware(
            SessionMiddleware,
            secret_key=secrets.token_urlsafe(32),
            session_cookie="finora-oidc",
            max_age=600,
            path="/sign-in",
            same_site="lax",
            https_only=is_public,
        ),
    ]


def _exception_handlers() -> Mapping[Any, Any]:
    return {
        HTTPException: errors.http_error,
        SignInRequired: errors.sign_in_required,
        BadPeriod: errors.bad_period,
        duckdb.CatalogException: errors.other_version,
        duckdb.BinderException: errors.other_version,
        duckdb.OutOfMemoryException: errors.out_of_memory,
        ClientDisconnect: lambda *_: PlainTextResponse(TOO_LARGE, 413),
    }


class _Static(StaticFiles):
    """Style and script. Their addresses name a version, so browsers may keep them for a day."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=86400"
        return response
