"""Sign in and out: by password and code, or through the identity provider."""

import logging
import math
from dataclasses import replace
from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finora_pipeline.accounts.actors import OPERATORS, START_LINK, acting_as
from finora_pipeline.accounts.logins import DEVICE_KNOWN, SESSION_LONGEST, Login
from finora_pipeline.dashboard.security.oidc import OidcError
from finora_pipeline.dashboard.security.password_threads import Busy, PasswordThreads
from finora_pipeline.dashboard.security.pending_sign_ins import PendingSignIn, PendingSignIns
from finora_pipeline.dashboard.security.throttle import FREE_FAILURES, Attempt, LoginThrottle, client_address
from finora_pipeline.dashboard.site import Site, form_fields

_log = logging.getLogger("finora.dashboard")


class SignIn:
    """The endpoints of sign-in, with counts of failures and sign-ins that wait for a code."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._pending = PendingSignIns()
        self._throttle = LoginThrottle()
        self._threads = PasswordThreads()
        self._device_cookie = f"{site.session_cookie}-device"

    def close(self) -> None:
        """Stop the threads that check passwords."""
        self._threads.close()

    def form(self, request: Request) -> Response:
        """The sign-in page."""
        return self._form(request)

    def _form(
        self,
        request: Request,
        error: str | None = None,
        status: int = 200,
        after: str | None = None,
        wait: float = 0,
    ) -> Response:
        has_logins = self._site.logins.is_configured()
        if not has_logins and self._site.oidc is None and self._site.current_login(request):
            return RedirectResponse("/", 303)
        response = self._site.render(
            request,
            "sign_in.html",
            None,
            status,
            error=error,
            after=safe_redirect(after or request.query_params.get("next", "/")),
            has_oidc=self._site.oidc is not None,
            has_password=has_logins and self._site.settings.password_sign_in,
            has_link=not self._site.exposure.is_public,
        )
        if wait:
            response.headers["Retry-After"] = str(math.ceil(wait))
        return response

    async def by_password(self, request: Request) -> Response:
        """Check name and password; open a session or ask for the code of the second factor."""
        form = await form_fields(request)
        if not self._site.settings.password_sign_in:
            raise HTTPException(403, "Sign in through your identity provider.")
        name, password = form.get("name", "")[:200], form.get("password", "")
        after = form.get("next", "/")
        attempt = await run_in_threadpool(self._attempt, request, name)
        if wait := self._throttle.wait(attempt):
            return await self._refused(request, wait, after)
        # Counted before the password is checked, so that guesses sent at once all count.
        failures = self._throttle.begin(attempt)
        try:
            login = await self._threads.run(self._site.logins.by_password, name, password)
        except Busy:
            self._throttle.take_back(attempt)
            busy = "Too many people are signing in at once. Try again in a few seconds."
            return await run_in_threadpool(self._form, request, busy, 503, after, 2)
        if login is None:
            await run_in_threadpool(self._record_refusal, name, failures, attempt.address)
            wrong = "Wrong name or password."
            return await run_in_threadpool(self._form, request, wrong, 401, after)
        failures = self._throttle.succeed(attempt)
        if login.has_second_factor:
            token = self._pending.begin(PendingSignIn(login, safe_redirect(after), attempt, failures))
            return await run_in_threadpool(self._code_form, request, token)
        return await run_in_threadpool(self._signed_in, login, safe_redirect(after), "password", failures)

    def _code_form(
        self, request: Request, token: str, error: str | None = None, status: int = 200
    ) -> Response:
        return self._site.render(request, "sign_in_code.html", None, status, pending=token, error=error)

    async def by_code(self, request: Request) -> Response:
        """Check the code of the second factor and open a session."""
        form = await form_fields(request)
        token = form.get("pending", "")
        pending = self._pending.get(token)
        if pending is None:
            return await self._begin_again(request)
        # A right password alone does not lift the limits on failures.
        attempt = replace(pending.attempt, is_code=True)
        if wait := self._throttle.wait(attempt):
            return await self._refused(request, wait, pending.after)
        failures = self._throttle.begin(attempt)
        now = datetime.now(UTC)
        login = await run_in_threadpool(self._site.logins.get, pending.login.name)
        # A login that was replaced in the meantime has another password.
        if login is None or login != pending.login:
            self._pending.end(token)
            return await self._begin_again(request)
        code = form.get("code", "")
        if not await run_in_threadpool(self._site.accounts.second_factor.accepts, login.name, code, now):
            await run_in_threadpool(self._record_refusal, login.name, failures, attempt.address, "codes")
            if not self._pending.has_tries_left(token):
                return await self._begin_again(request)
            wrong = "The code is wrong or was used before. Wait for the next one and enter it."
            return await run_in_threadpool(self._code_form, request, token, wrong, 401)
        self._pending.end(token)
        failures = pending.failures + self._throttle.succeed(attempt)
        return await run_in_threadpool(self._signed_in, login, pending.after, "password and code", failures)

    async def _begin_again(self, request: Request) -> Response:
        expired = "The sign-in was not finished in time. Enter name and password again."
        return await run_in_threadpool(self._form, request, expired, 401)

    def _record_refusal(self, name: str, failures: int, address: str, what: str = "passwords") -> None:
        """Record in the audit trail that a login is slowed down; unknown names leave no row."""
        if failures < FREE_FAILURES:
            return
        if login := self._site.logins.get(name):
            with acting_as(address):
                detail = f"{login.name}: {failures} wrong {what}"
                self._site.accounts.audit.note(login.user_id or OPERATORS, "sign-in refused", detail)

    def record_start_link(self) -> None:
        """Record in the audit trail that the start link was opened."""
        with acting_as(START_LINK):
            self._site.accounts.audit.note(OPERATORS, "sign-in", "by start link")

    def _attempt(self, request: Request, name: str) -> Attempt:
        trusted = self._site.settings.trusted_proxies
        peer = request.client.host if request.client else ""
        forwarded = ",".join(request.headers.getlist("x-forwarded-for"))
        address = client_address(peer, forwarded, trusted) if trusted else peer
        mark = request.cookies.get(self._device_cookie)
        device = self._site.logins.device_of(name, mark, datetime.now(UTC)) if mark else None
        is_shared = self._site.exposure.is_public and not trusted
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
            self._site.accounts.audit.note(login.user_id or OPERATORS, "sign-in", detail)
        response = RedirectResponse(after, 303)
        token = self._site.logins.open_session(login, now)
        self._set_cookie(response, self._site.session_cookie, token, SESSION_LONGEST.total_seconds())
        if by.startswith("password") and (mark := self._site.logins.mark_device(login.name, now)):
            self._set_cookie(response, self._device_cookie, mark, DEVICE_KNOWN.total_seconds())
        return response

    def _set_cookie(self, response: Response, name: str, value: str, seconds: float) -> None:
        response.set_cookie(
            name,
            value,
            max_age=int(seconds),
            path="/",
            httponly=True,
            samesite="lax",
            secure=self._site.exposure.is_public,
        )

    async def by_oidc(self, request: Request) -> Response:
        """Send the browser to the identity provider; 404 without one."""
        if self._site.oidc is None:
            raise HTTPException(404)
        request.session["next"] = safe_redirect(request.query_params.get("next", "/"))
        origin = next(iter(sorted(self._site.exposure.origins)))
        if not self._site.exposure.is_public:
            origin = f"{request.url.scheme}://{request.url.netloc}"
        try:
            return await self._site.oidc.begin(request, f"{origin}/sign-in/oidc/callback")
        except OidcError as error:
            _log.warning("%s (%s)", error, _one_line(error.__cause__))
            return await run_in_threadpool(self._form, request, str(error), 502)

    async def oidc_callback(self, request: Request) -> Response:
        """Open a session for the address that the identity provider verified."""
        if self._site.oidc is None:
            raise HTTPException(404)
        try:
            email = await self._site.oidc.email(request)
        except OidcError as error:
            _log.warning("%s (%s)", error, _one_line(error.__cause__))
            return await run_in_threadpool(self._form, request, str(error), 401)
        login = await run_in_threadpool(self._site.logins.get, email)
        if login is None:
            missing = f"No account for {email}. Ask your administrator for access."
            return await run_in_threadpool(self._form, request, missing, 403)
        after = safe_redirect(request.session.pop("next", "/"))
        return await run_in_threadpool(self._signed_in, login, after, "identity provider")

    async def sign_out(self, request: Request) -> Response:
        """End this session, or all sessions of its login."""
        everywhere = (await form_fields(request)).get("everywhere") == "yes"
        token = request.cookies.get(self._site.session_cookie, "")

        def close() -> None:
            login = self._site.logins.of_session(token, datetime.now(UTC)) if token else None
            self._site.logins.close_session(token)
            if login and everywhere:
                self._site.logins.close_sessions(login.name)

        await run_in_threadpool(close)
        response = RedirectResponse("/sign-in", 303)
        response.delete_cookie(
            self._site.session_cookie,
            path="/",
            secure=self._site.exposure.is_public,
            httponly=True,
            samesite="lax",
        )
        if self._site.access.cookie in request.cookies:
            self._site.access.withdraw(response)
        return response


def safe_redirect(path: str) -> str:
    """The path if it leads to a page of this server, else `/`."""
    is_own = path.startswith("/") and not path.startswith("//")
    return path if is_own and path.isprintable() and "\\" not in path else "/"


def _one_line(error: object) -> str:
    """Foreign text for the log, without line ends and control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in str(error))
