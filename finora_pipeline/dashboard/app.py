"""The web server of the dashboard: routes, who may open what, and the forms that write to the accounts."""

import csv
import io
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import jinja2
from anyio.to_thread import current_default_thread_limiter
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from finora_pipeline.accounts.actors import acting_as
from finora_pipeline.accounts.logins import Login, Logins
from finora_pipeline.accounts.model import (
    AccountsError,
    Connection,
    OtherOrganization,
    Status,
    check_user_id,
)
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.accounts.vault import VaultError
from finora_pipeline.dashboard import formats
from finora_pipeline.dashboard.charts import share_bar
from finora_pipeline.dashboard.figures import export_rows, model_page, overview
from finora_pipeline.dashboard.notices import freshness, notices
from finora_pipeline.dashboard.periods import BadPeriod, view_of
from finora_pipeline.dashboard.security.access import Access, StartLink
from finora_pipeline.dashboard.security.exposure import Exposure
from finora_pipeline.dashboard.security.guard import Guard, Names
from finora_pipeline.dashboard.security.oidc import Oidc
from finora_pipeline.dashboard.snapshots import Copies
from finora_pipeline.dashboard.views.sign_in import SigningIn, fields
from finora_pipeline.openai_admin.addresses import AddressError
from finora_pipeline.openai_admin.errors import OpenAIAdminError
from finora_pipeline.openai_admin.keys import KeyFormError, redact
from finora_pipeline.plans import PLANS, Plan, UnknownPlan
from finora_pipeline.settings import Settings

# The user of an installation that has none yet, on its own machine.
FIRST_USER = "my-company"
USERS_A_PAGE = 50
# Rows of the audit trail on the API Keys page, and what each action is called there.
EVENTS_SHOWN = 20
EVENT_NAMES = {
    "active": "Works again",
    "bind address": "Key bound to an address",
    "connect": "OpenAI connected",
    "key use": "Key used by a refresh",
    "needs attention": "Needs attention",
    "plan": "Plan changed",
    "remove": "Key removed",
    "replace organization": "Organization replaced",
    "second factor off": "Second factor switched off",
    "second factor on": "Second factor switched on",
    "sign-in": "Signed in",
    "sign-in refused": "Sign-in slowed down",
    "update": "Key updated",
}
# The page shows the present key and its state above, once.
DETAILED_EVENTS = frozenset(("plan", "replace organization", "sign-in", "sign-in refused"))
# OpenAI's regional addresses. Others are given by command only: visitors must not choose the hosts that this
# server connects to.
REGIONS = {region: f"https://{region}.api.openai.com/v1" for region in ("us", "eu", "ae", "au", "in", "jp")}
# Requests that are answered at the same time.
THREADS = 4
# A spreadsheet would take these for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_FOLDER = Path(__file__).parent
_log = logging.getLogger("finora.dashboard")

Handler = Callable[[Request, Login, str], Response]


def create_app(
    settings: Settings,
    accounts: Accounts,
    sign_in: Logins,
    exposed: Exposure,
    access: Access,
    oidc: Oidc | None = None,
) -> Starlette:
    """The dashboard as an ASGI app."""
    pages = _Pages(settings, accounts, sign_in, exposed, access, oidc)
    signing_in = pages.signing_in

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        # More at once would only hold more memory.
        current_default_thread_limiter().total_tokens = THREADS
        yield
        pages.copies.close()
        signing_in.close()

    user = "/users/{user_id}"
    routes = [
        Route("/", pages.home),
        Route("/health", lambda _: PlainTextResponse("ok")),
        Route("/users", pages.users),
        Route("/users", pages.open_user, methods=["POST"]),
        Route(f"{user}/overview", pages.of_user(pages.overview)),
        Route(f"{user}/overview.csv", pages.of_user(pages.overview_csv)),
        Route(f"{user}/model", pages.of_user(pages.model)),
        Route(f"{user}/state", pages.of_user(pages.state)),
        Route(f"{user}/plan", pages.of_user(pages.plan)),
        Route(f"{user}/plan", pages.change_plan, methods=["POST"]),
        Route(f"{user}/settings/keys", pages.of_user(pages.keys)),
        Route(f"{user}/settings/keys", pages.save_key, methods=["POST"]),
        Route(f"{user}/settings/keys/remove", pages.of_user(pages.ask_removal)),
        Route(f"{user}/settings/keys/remove", pages.remove_key, methods=["POST"]),
        *signing_in.routes(),
        Mount("/static", _Static(directory=_FOLDER / "static")),
    ]
    names = Names(
        exposed.origins if exposed.is_public else frozenset(),
        settings.allowed_hosts,
        on_loopback=not exposed.is_public,
    )
    middleware = [
        Middleware(Guard, names=names, access=access, failure=pages.failure),
        Middleware(
            StartLink, access=access, opens=signing_in.opens_by_link, opened=signing_in.note_start_link
        ),
        Middleware(GZipMiddleware, minimum_size=1_000, compresslevel=5),
        # Holds state, nonce and verifier between here and the identity provider, for minutes.
        Middleware(
            SessionMiddleware,
            secret_key=secrets.token_urlsafe(32),
            session_cookie="finora-oidc",
            max_age=600,
            path="/sign-in",
            same_site="lax",
            https_only=exposed.is_public,
        ),
    ]
    handlers: Mapping[Any, Any] = {
        HTTPException: pages.http_error,
        BadPeriod: pages.bad_period,
        duckdb.CatalogException: pages.other_version,
        duckdb.BinderException: pages.other_version,
        duckdb.OutOfMemoryException: pages.too_much,
        ClientDisconnect: lambda *_: PlainTextResponse("That is too large.", 413),
    }
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    # It would lead from a proxy's https to http.
    app.router.redirect_slashes = False
    return app


class _Static(StaticFiles):
    """The style and script: named by their content's age, so that a browser may keep them for a day."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Cache-Control"] = "public, max-age=86400"
        return response


class _Pages:
    """The endpoints, and what they share."""

    def __init__(
        self,
        settings: Settings,
        accounts: Accounts,
        sign_in: Logins,
        exposed: Exposure,
        access: Access,
        oidc: Oidc | None,
    ) -> None:
        self._settings = settings
        self.copies = Copies(settings.published_database)
        self._accounts = accounts
        self.signing_in = SigningIn(settings, accounts, sign_in, exposed, access, oidc, self._page)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals |= {
            "usd": formats.usd,
            "price": formats.price,
            "exact": formats.exact,
            "count": formats.count,
            "percent": formats.percent,
            "moment": formats.moment,
            "share_bar": share_bar,
            "PLANS": PLANS,
            "version": str(int(max(path.stat().st_mtime for path in (_FOLDER / "static").iterdir()))),
        }

    # What a request may open.

    def _allowed(self, request: Request) -> tuple[Login, str] | Response:
        """Who comes and whose page they open, or the way to the sign-in. What is another's is not there."""
        who = self.signing_in.who(request)
        if who is None:
            return self.signing_in.ask(request)
        user_id = request.path_params["user_id"]
        try:
            is_id = check_user_id(user_id) == user_id
        except AccountsError:
            is_id = False
        if not is_id or not who.may_see(user_id):
            raise HTTPException(404)
        return who, user_id

    def of_user(self, handler: Handler) -> Callable[[Request], Response]:
        """An endpoint of one user's, for who may see that user."""

        def endpoint(request: Request) -> Response:
            allowed = self._allowed(request)
            return allowed if isinstance(allowed, Response) else handler(request, *allowed)

        return endpoint

    def _page(
        self, request: Request, template: str, who: Login | None, status: int = 200, **values: Any
    ) -> Response:
        shared = {
            "who": who,
            "signed_in": who is not None,
            "path": request.url.path,
            "user_id": values.pop("user_id", None),
            "base": None,
            "own": None,
        }
        if shared["user_id"]:
            # As a link writes it, and as a request's path reads it.
            shared["base"] = f"/users/{quote(shared['user_id'])}"
            shared["own"] = f"/users/{shared['user_id']}"
        return HTMLResponse(self._templates.get_template(template).render(shared | values), status)

    # Pages.

    def home(self, request: Request) -> Response:
        who = self.signing_in.who(request)
        if who is None:
            return self.signing_in.ask(request)
        if who.user_id:
            return RedirectResponse(f"/users/{quote(who.user_id)}/overview", 303)
        known = self._accounts.users.ids()
        if len(known) > 1:
            return RedirectResponse("/users", 303)
        return RedirectResponse(f"/users/{quote(known[0] if known else FIRST_USER)}/overview", 303)

    def users(self, request: Request) -> Response:
        who = self._operator(request)
        if isinstance(who, Response):
            return who
        return self._users_page(request, who)

    def _users_page(
        self, request: Request, who: Login, error: str | None = None, status: int = 200
    ) -> Response:
        wanted = request.query_params.get("q", "").strip()[:100]
        first = request.query_params.get("from", "0")
        first = int(first) if first.isdecimal() and len(first) < 9 else 0
        plans = self._accounts.users.plans()
        found = [user_id for user_id in plans if wanted.casefold() in user_id.casefold()]
        shown = found[first : first + USERS_A_PAGE]
        connections = {c.user_id: c for c in self._accounts.connections.all(user_ids=shown)}
        spend = self.copies.everybody()
        now = datetime.now(UTC)
        rows = [
            {
                "user_id": user_id,
                "plan": plans[user_id].name,
                "connection": connections.get(user_id),
                "freshness": freshness(connections.get(user_id), now),
                "usd": spend.get(user_id),
            }
            for user_id in shown
        ]
        return self._page(
            request, "users.html", who, status, rows=rows, wanted=wanted, first=first, found=len(found),
            size=USERS_A_PAGE, error=error,
        )  # fmt: skip

    async def open_user(self, request: Request) -> Response:
        who = await run_in_threadpool(self._operator, request)
        if isinstance(who, Response):
            return who
        asked = (await fields(request)).get("user_id", "")
        try:
            with acting_as(who.name):
                user_id = await run_in_threadpool(self._accounts.users.add, asked)
        except AccountsError as error:
            # Somebody may have pasted a key there.
            return await run_in_threadpool(self._users_page, request, who, redact(str(error)), 422)
        return RedirectResponse(f"/users/{quote(user_id)}/settings/keys", 303)

    def _operator(self, request: Request) -> Login | Response:
        who = self.signing_in.who(request)
        if who is None:
            return self.signing_in.ask(request)
        if not who.is_operator:
            raise HTTPException(404)
        return who

    def _plan(self, user_id: str) -> Plan:
        return self._accounts.users.plan_of(user_id) or next(iter(PLANS.values()))

    def _known(self, user_id: str) -> tuple[Connection | None, str | None]:
        """The connection, and what the latest attempt said if it failed."""
        connection = self._accounts.connections.get(user_id)
        return connection, self._accounts.refreshes.last_failures([user_id]).get(user_id)

    def overview(self, request: Request, who: Login, user_id: str) -> Response:
        now = datetime.now(UTC)
        plan = self._plan(user_id)
        view = view_of(request.query_params, plan, now.date())
        connection, failure = self._known(user_id)
        figures, is_sample = self.copies.read(
            user_id, lambda copy: (overview(copy, view, now.date()), copy.is_sample)
        )
        told = self._told(connection, failure, is_sample, plan, now)
        state = _state(connection, is_sample)
        return self._page(
            request, "overview.html", who, user_id=user_id, view=view, figures=figures, state=state, **told
        )

    @staticmethod
    def _told(
        connection: Connection | None, failure: str | None, is_sample: bool, plan: Plan, now: datetime
    ) -> dict[str, Any]:
        """What stands around the figures of every page that has some."""
        return {
            "plan": plan,
            "is_sample": is_sample,
            "notices": notices(connection, failure, is_sample),
            "freshness": freshness(connection, now),
            "today": now.date(),
        }

    def overview_csv(self, request: Request, who: Login, user_id: str) -> Response:  # noqa: ARG002
        plan = self._plan(user_id)
        if not plan.csv_exports:
            raise HTTPException(403, f"The {plan.name} plan has no CSV exports.")
        view = view_of(request.query_params, plan, datetime.now(UTC).date())
        rows, is_sample = self.copies.read(user_id, lambda copy: (export_rows(copy, view), copy.is_sample))
        name = f"{'sample' if is_sample else user_id}-costs-{view.first}-{view.last}.csv"
        return Response(
            _csv(rows),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"},
        )

    def model(self, request: Request, who: Login, user_id: str) -> Response:
        now = datetime.now(UTC)
        plan = self._plan(user_id)
        view = view_of(request.query_params, plan, now.date())
        if not view.model:
            raise HTTPException(404)
        page, is_sample = self.copies.read(user_id, lambda copy: (model_page(copy, view), copy.is_sample))
        connection, failure = self._known(user_id)
        told = self._told(connection, failure, is_sample, plan, now)
        return self._page(request, "model.html", who, user_id=user_id, view=view, page=page, **told)

    def state(self, request: Request, who: Login, user_id: str) -> Response:  # noqa: ARG002
        """What a page that waits asks for, to load itself again when it changes."""
        connection = self._accounts.connections.get(user_id)
        with self.copies.of(user_id) as copy:
            return JSONResponse({"state": _state(connection, copy.is_sample)})

    def plan(self, request: Request, who: Login, user_id: str) -> Response:
        return self._plan_page(request, who, user_id)

    def _plan_page(
        self, request: Request, who: Login, user_id: str, error: str | None = None, status: int = 200
    ) -> Response:
        plan = self._plan(user_id)
        saved = request.query_params.get("saved") == "yes"
        return self._page(
            request, "plan.html", who, status, user_id=user_id, plan=plan, error=error, saved=saved,
            today=datetime.now(UTC).date(),
        )  # fmt: skip

    async def change_plan(self, request: Request) -> Response:
        allowed = await run_in_threadpool(self._allowed, request)
        if isinstance(allowed, Response):
            return allowed
        who, user_id = allowed
        if not who.is_operator:
            raise HTTPException(403, "An operator changes plans.")
        chosen = (await fields(request)).get("plan", "")

        def change() -> None:
            self._accounts.users.add(user_id)
            self._accounts.users.set_plan(user_id, chosen)

        try:
            with acting_as(who.name):
                await run_in_threadpool(change)
        except (AccountsError, UnknownPlan) as error:
            return await run_in_threadpool(self._plan_page, request, who, user_id, redact(str(error)), 422)
        return RedirectResponse(f"/users/{quote(user_id)}/plan?saved=yes", 303)

    def keys(self, request: Request, who: Login, user_id: str) -> Response:
        return self._keys_page(request, who, user_id)

    def _keys_page(
        self,
        request: Request,
        who: Login,
        user_id: str,
        error: str | None = None,
        status: int = 200,
        may_replace: bool = False,
    ) -> Response:
        connection, failure = self._known(user_id)
        now = datetime.now(UTC)
        return self._page(
            request,
            "keys.html",
            who,
            status,
            user_id=user_id,
            connection=connection,
            is_connected=connection is not None and connection.status is not Status.REMOVED,
            is_active=connection is not None and connection.status is Status.ACTIVE,
            failure=failure,
            parts=self._accounts.refreshes.part_failures([user_id]).get(user_id, []),
            expiry=connection.expiry_warning(now) if connection else None,
            freshness=freshness(connection, now),
            error=error,
            may_replace=may_replace,
            saved=request.query_params.get("saved", "") if error is None else "",
            wants_update=request.query_params.get("update") == "yes" or error is not None,
            plan=self._plan(user_id),
            regions=REGIONS,
            events=self._accounts.audit.recent(user_id, EVENTS_SHOWN),
            event_names=EVENT_NAMES,
            detailed_events=DETAILED_EVENTS,
        )

    async def save_key(self, request: Request) -> Response:
        allowed = await run_in_threadpool(self._allowed, request)
        if isinstance(allowed, Response):
            return allowed
        who, user_id = allowed
        form = await fields(request)
        # Saved rarely: what asks OpenAI is not carried until then.
        from finora_pipeline.accounts import onboarding as connecting
        from finora_pipeline.openai_admin.client import open_client

        known = await run_in_threadpool(self._accounts.connections.get, user_id)
        is_update = known is not None and known.status is not Status.REMOVED
        save = connecting.update if is_update else connecting.connect
        try:
            if form.get("provider") != "openai":
                raise AccountsError("Choose a provider: OpenAI is the one there is.")
            region = form.get("region", "")
            if region and region not in REGIONS:
                raise AccountsError("Choose one of OpenAI's regions from the list.")
            address = connecting.address_to_check(REGIONS.get(region), known, self._settings.openai_base_url)
            async with open_client(str(address), connecting.CHECK_LIMITS) as client:
                replaces = form.get("replace_organization") == "yes"
                key = form.get("key", "")
                with acting_as(who.name):
                    await save(self._accounts, client, user_id, key, replace_organization=replaces)
        except (KeyFormError, OpenAIAdminError, AccountsError, VaultError, AddressError) as error:
            is_other = isinstance(error, OtherOrganization)
            return await run_in_threadpool(self._keys_page, request, who, user_id, str(error), 422, is_other)
        _log.info("User %s %s OpenAI.", user_id, "updated" if is_update else "connected")
        told = "updated" if is_update else "connected"
        return RedirectResponse(f"/users/{quote(user_id)}/settings/keys?saved={told}", 303)

    def ask_removal(self, request: Request, who: Login, user_id: str, error: str | None = None) -> Response:
        connection = self._accounts.connections.get(user_id)
        if connection is None or connection.status is Status.REMOVED:
            return RedirectResponse(f"/users/{quote(user_id)}/settings/keys", 303)
        status = 409 if error else 200
        return self._page(
            request, "remove.html", who, status, user_id=user_id, connection=connection, error=error
        )

    async def remove_key(self, request: Request) -> Response:
        allowed = await run_in_threadpool(self._allowed, request)
        if isinstance(allowed, Response):
            return allowed
        who, user_id = allowed
        seen = (await fields(request)).get("key_version", "")
        version = int(seen) if re.fullmatch("[0-9]{1,10}", seen) else None
        try:
            with acting_as(who.name):
                await run_in_threadpool(self._accounts.connections.remove, user_id, version)
        except AccountsError as error:
            return await run_in_threadpool(self.ask_removal, request, who, user_id, str(error))
        return RedirectResponse(f"/users/{quote(user_id)}/settings/keys?saved=removed", 303)

    # What goes wrong.

    def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        told = error.detail if error.status_code in (403, 422) else _TOLD.get(error.status_code, error.detail)
        headers = error.headers
        response = self._page(
            request, "error.html", None, error.status_code, title=_title(error.status_code), told=told
        )
        response.headers.update(headers or {})
        return response

    def other_version(self, request: Request, error: Exception) -> Response:
        _log.error("The published copy is of another version: %s", error)
        told = "The published figures are of another version of finora; the next refresh makes new ones."
        return self._page(request, "error.html", None, 503, title="Not at the moment", told=told)

    def too_much(self, request: Request, error: Exception) -> Response:
        first_line = str(error).partition("\n")[0]
        _log.warning("%s did not fit into memory: %s", request.url.path, first_line)
        told = "Too much is asked at once: try again in a moment, or ask for fewer days."
        return self._page(request, "error.html", None, 503, title="Not at the moment", told=told)

    def bad_period(self, request: Request, error: Exception) -> Response:
        return self._page(
            request, "error.html", None, 400, title="These days cannot be shown", told=str(error)
        )

    def failure(self, request: Request) -> Response:
        told = "It has been logged. Try again; if it stays, tell who runs this installation."
        return self._page(request, "error.html", None, 500, title="Something went wrong here", told=told)


_TOLD = {
    401: "Sign in first.",
    404: "There is no such page, or it is not yours to see.",
    405: "That cannot be done with this page.",
}


def _title(status: int) -> str:
    return {401: "Sign in", 403: "Not allowed", 404: "Not found"}.get(status, "That did not work")


def _state(connection: Connection | None, is_sample: bool) -> str:
    """Changes whenever a waiting page should be loaded again."""
    if connection is None:
        return "none"
    return f"{connection.status}/{connection.last_attempt_at}/{connection.last_refresh_at}/{is_sample}"


def _csv(rows: list[Mapping[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("date", "project_id", "project_name", "model", "amount_usd"))
    writer.writerows(_cells(row) for row in rows)
    return text.getvalue()


def _cells(row: Mapping[str, str]) -> Iterator[str]:
    for name, value in row.items():
        is_formula = name != "amount_usd" and value.startswith(_FORMULA)
        yield f"'{value}" if is_formula else value
