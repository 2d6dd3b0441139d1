"""Who opens a page, and how people sign in and out: start link, password and code, identity provider."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from finora_pipeline.accounts.actors import OPERATORS, START_LINK, acting_as
from finora_pipeline.accounts.logins import DEVICE_KNOWN, SESSION_LONGEST, Login, Logins
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.dashboard.security.access import Access
from finora_pipeline.dashboard.security.exposure import Exposure, session_cookie
from finora_pipeline.dashboard.security.oidc import Oidc, OidcError
from finora_pipeline.dashboard.security.password_threads import Busy, PasswordThreads
from finora_pipeline.dashboard.security.pending_sign_ins import HalfSignedIn, Unfinished
from finora_pipeline.dashboard.security.throttle import FREE_FAILURES, Attempt, SignInThrottle, client_address
from finora_pipeline.settings import Settings

_log = logging.getLogger("finora.dashboard")

Page = Callable[..., Response]


class SigningIn:
    """The endpoints of sign-in, and the answer to who sends a request. `page` renders a template."""

    def __init__(
        self,
        settings: Settings,
        accounts: Accounts,
        sign_in: Logins,
        exposed: Exposure,
        access: Access,
        oidc: Oidc | None,
        page: Page,
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._second_factor = accounts.second_factor
        self._unfinished = Unfinished()
        self._sign_in = sign_in
        self._exposed = exposed
        self._access = access
        self._oidc = oidc
        self._page = page
        self._throttle = SignInThrottle()
        self._threads = PasswordThreads()
        self._cookie = session_cookie(is_public=exposed.is_public)
        self._device_cookie = f"{self._cookie}-device"

    def routes(self) -> list[Route]:
        return [
            Route("/sign-in", self.form),
            Route("/sign-in", self.by_password, methods=["POST"]),
            Route("/sign-in/code", self.by_code, methods=["POST"]),
            Route("/sign-in/oidc", self.by_oidc),
            Route("/sign-in/oidc/callback", self.back_from_oidc, name="oidc_callback"),
            Route("/sign-out", self.sign_out, methods=["POST"]),
        ]

    def close(self) -> None:
        self._threads.close()

    def opens_by_link(self, _: HTTPConnection) -> bool:
        """Whether the start link opens the pages: on this machine, where no proxy brings strangers."""
        return not self._exposed.is_public

    def who(self, request: Request) -> Login | None:
        """The login of the request's session, or an operator who has opened the start link."""
        now = datetime.now(UTC)
        token = request.cookies.get(self._cookie)
        login = self._sign_in.of_session(token, now) if token else None
        if login is None and self.opens_by_link(request) and self._access.is_operator(request):
            return Login(START_LINK, None, False, now)
        return login

    @staticmethod
    def ask(request: Request) -> Response:
        """The way to the sign-in, and back to the page that was asked for."""
        if request.method not in ("GET", "HEAD"):
            raise HTTPException(401)
        asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse("/sign-in?" + urlencode({"next": asked}), 303)

    def form(self, request: Request) -> Response:
        return self._form(request)

    def _form(
        self,
        request: Request,
        error: str | None = None,
        status: int = 200,
        after: str | None = None,
        wait: float = 0,
    ) -> Response:
        has_logins = self._sign_in.is_configured()
        if not has_logins and self._oidc is None and self.who(request):
            return RedirectResponse("/", 303)
        response = self._page(
            request,
            "sign_in.html",
            None,
            status,
            error=error,
            after=own_path(after or request.query_params.get("next", "/")),
            has_oidc=self._oidc is not None,
            has_password=has_logins and self._settings.password_sign_in,
            has_link=not self._exposed.is_public,
        )
        if wait:
            response.headers["Retry-After"] = str(math.ceil(wait))
        return response

    async def by_password(self, request: Request) -> Response:
        form = await fields(request)
        if not self._settings.password_sign_in:
            raise HTTPException(403, "Sign in through your identity provider.")
        name, password = form.get("name", "")[:200], form.get("password", "")
        after = form.get("next", "/")
        attempt = await run_in_threadpool(self._attempt, request, name)
        if wait := self._throttle.wait(attempt):
            return await self._refused(request, wait, after)
        # Counted before the password is checked: guesses that come at once are as many.
        failures = self._throttle.begun(attempt)
        try:
            login = await self._threads.run(self._sign_in.by_password, name, password)
        except Busy:
            self._throttle.taken_back(attempt)
            busy = "Too many people are signing in at once. Try again in a few seconds."
            return await run_in_threadpool(self._form, request, busy, 503, after, 2)
        if login is None:
            await run_in_threadpool(self._note_refusal, name, failures, attempt.address)
            wrong = "Name or password is wrong."
            return await run_in_threadpool(self._form, request, wrong, 401, after)
        failures = self._throttle.succeeded(attempt)
        if login.has_second_factor:
            token = self._unfinished.begin(HalfSignedIn(login, own_path(after), attempt, failures))
            return await run_in_threadpool(self._code_form, request, token)
        return await run_in_threadpool(self._signed_in, login, own_path(after), "password", failures)

    def _code_form(
        self, request: Request, token: str, error: str | None = None, status: int = 200
    ) -> Response:
        return self._page(request, "sign_in_code.html", None, status, pending=token, error=error)

    async def by_code(self, request: Request) -> Response:
        form = await fields(request)
        token = form.get("pending", "")
        half = self._unfinished.of(token)
        if half is None:
            return await self._begin_again(request)
        # Those who know the password are strangers still.
        attempt = replace(half.attempt, is_code=True)
        if wait := self._throttle.wait(attempt):
            return await self._refused(request, wait, half.after)
        failures = self._throttle.begun(attempt)
        now = datetime.now(UTC)
        login = await run_in_threadpool(self._sign_in.get, half.login.name)
        # A login that was replaced since has another password.
        if login is None or login != half.login:
            self._unfinished.end(token)
            return await self._begin_again(request)
        code = form.get("code", "")
        if not await run_in_threadpool(self._second_factor.accepts, login.name, code, now):
            await run_in_threadpool(self._note_refusal, login.name, failures, attempt.address, "codes")
            if not self._unfinished.has_tries_left(token):
                return await self._begin_again(request)
            wrong = "The code is wrong or was used before. Wait for the next one and enter it."
            return await run_in_threadpool(self._code_form, request, token, wrong, 401)
        self._unfinished.end(token)
        failures = half.failures + self._throttle.succeeded(attempt)
        return await run_in_threadpool(self._signed_in, login, half.after, "password and code", failures)

    async def _begin_again(self, request: Request) -> Response:
        late = "The sign-in was not finished in time. Enter name and password again."
        return await run_in_threadpool(self._form, request, late, 401)

    def _note_refusal(self, name: str, failures: int, address: str, what: str = "passwords") -> None:
        """Notes in the audit trail that a login was closed for a while; names without a login leave none."""
        if failures < FREE_FAILURES:
            return
        if login := self._sign_in.get(name):
            with acting_as(address):
                detail = f"{login.name}: {failures} wrong {what}"
                self._accounts.audit.note(login.user_id or OPERATORS, "sign-in refused", detail)

    def note_start_link(self) -> None:
        """Notes in the audit trail that the start link was opened."""
        with acting_as(START_LINK):
            self._accounts.audit.note(OPERATORS, "sign-in", "by start link")

    def _attempt(self, request: Request, name: str) -> Attempt:
        trusted = self._settings.trusted_proxies
        peer = request.client.host if request.client else ""
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        address = client_address(peer, forwarded, trusted) if trusted else peer
        mark = request.cookies.get(self._device_cookie)
        device = self._sign_in.device_of(name, mark, datetime.now(UTC)) if mark else None
        is_shared = self._exposed.is_public and not trusted
        return Attempt(name.strip().casefold(), address, device, is_shared)

    async def _refused(self, request: Request, wait: float, after: str) -> Response:
        seconds = math.ceil(wait)
        span = f"{seconds} seconds" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
        error = f"Too many wrong passwords. Try again in {span}."
        return await run_in_threadpool(self._form, request, error, 429, after, wait)

    def _signed_in(self, login: Login, after: str, by: str, failures: int = 0) -> Response:
        now = datetime.now(UTC)
        with acting_as(login.name):
            detail = f"by {by}" + (f" after {failures} failures" if failures else "")
            self._accounts.audit.note(login.user_id or OPERATORS, "sign-in", detail)
        response = RedirectResponse(after, 303)
        token = self._sign_in.open_session(login, now)
        self._keep(response, self._cookie, token, SESSION_LONGEST.total_seconds())
        if by.startswith("password") and (mark := self._sign_in.mark_device(login.name, now)):
            self._keep(response, self._device_cookie, mark, DEVICE_KNOWN.total_seconds())
        return response

    def _keep(self, response: Response, name: str, value: str, seconds: float) -> None:
        response.set_cookie(
            name,
            value,
            max_age=int(seconds),
            path="/",
            httponly=True,
            samesite="lax",
            secure=self._exposed.is_public,
        )

    async def by_oidc(self, request: Request) -> Response:
        if self._oidc is None:
            raise HTTPException(404)
        request.session["next"] = own_path(request.query_params.get("next", "/"))
        origin = next(iter(sorted(self._exposed.origins)))
        if not self._exposed.is_public:
            origin = f"{request.url.scheme}://{request.url.netloc}"
        try:
            return await self._oidc.begin(request, f"{origin}/sign-in/oidc/callback")
        except OidcError as error:
            _log.warning("%s (%s)", error, _one_line(error.__cause__))
            return await run_in_threadpool(self._form, request, str(error), 502)

    async def back_from_oidc(self, request: Request) -> Response:
        if self._oidc is None:
            raise HTTPException(404)
        try:
            email = await self._oidc.email(request)
        except OidcError as error:
            _log.warning("%s (%s)", error, _one_line(error.__cause__))
            return await run_in_threadpool(self._form, request, str(error), 401)
        login = await run_in_threadpool(self._sign_in.get, email)
        if login is None:
            missing = f"There is no login for {email}. Ask your administrator to add it."
            return await run_in_threadpool(self._form, request, missing, 403)
        after = own_path(request.session.pop("next", "/"))
        return await run_in_threadpool(self._signed_in, login, after, "identity provider")

    async def sign_out(self, request: Request) -> Response:
        everywhere = (await fields(request)).get("everywhere") == "yes"
        token = request.cookies.get(self._cookie, "")

        def close() -> None:
            login = self._sign_in.of_session(token, datetime.now(UTC)) if token else None
            self._sign_in.close_session(token)
            if login and everywhere:
                self._sign_in.close_sessions(login.name)

        await run_in_threadpool(close)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(
            self._cookie, path="/", secure=self._exposed.is_public, httponly=True, samesite="lax"
        )
        if self._access.cookie in request.cookies:
            self._access.withdraw(response)
        return response


async def fields(request: Request) -> dict[str, str]:
    """The texts of a form. Files are refused."""
    form = await request.form(max_files=0, max_fields=10)
    return {name: value for name, value in form.items() if isinstance(value, str)}


def own_path(path: str) -> str:
    """The path, if it leads to a page of this server."""
    is_own = path.startswith("/") and not path.startswith("//")
    return path if is_own and path.isprintable() and "\\" not in path else "/"


def _one_line(said: object) -> str:
    """Text of another server for the log: it cannot end its line or steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(said))
