"""Decorators of views: a view runs only for a login that may see its page.

@for_user
def overview(site: Site, request: Request, login: Login, user_id: str) -> Response: ...

@for_operators
def users(site: Site, request: Request, login: Login) -> Response: ...
"""

import inspect
from collections.abc import Awaitable, Callable
from functools import wraps

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from finora_pipeline.accounts.logins import Login
from finora_pipeline.accounts.model import AccountsError, check_user_id
from finora_pipeline.dashboard.site import Site, site_of

Answer = Response | Awaitable[Response]
Endpoint = Callable[[Request], Answer]


class SignInRequired(Exception):
    """The page is for logins only, and the request has none."""


def require_login(site: Site, request: Request) -> Login:
    """Return the login of a request. Raises `SignInRequired`."""
    login = site.current_login(request)
    if login is None:
        raise SignInRequired
    return login


def for_user(view: Callable[[Site, Request, Login, str], Answer]) -> Endpoint:
    """Serve a page of the user in the address; for other users' logins it does not exist (404)."""

    def permit(site: Site, request: Request) -> tuple[Login, str]:
        login = require_login(site, request)
        user_id = request.path_params["user_id"]
        if not _is_user_id(user_id) or not login.may_see(user_id):
            raise HTTPException(404)
        return login, user_id

    return _guarded(view, permit)


def for_operators(view: Callable[[Site, Request, Login], Answer]) -> Endpoint:
    """Serve a page of the operators; for other logins it does not exist (404)."""

    def permit(site: Site, request: Request) -> tuple[Login]:
        login = require_login(site, request)
        if not login.is_operator:
            raise HTTPException(404)
        return (login,)

    return _guarded(view, permit)


def for_logins(view: Callable[[Site, Request, Login], Answer]) -> Endpoint:
    """Serve a page of every login."""
    return _guarded(view, lambda site, request: (require_login(site, request),))


def _guarded(
    view: Callable[..., Answer], permit: Callable[[Site, Request], tuple[Login, *tuple[str, ...]]]
) -> Endpoint:
    if inspect.iscoroutinefunction(view):

        @wraps(view)
        async def answer_later(request: Request) -> Response:
            site = site_of(request)
            # Looks the session up in the accounts database, which must not block the event loop.
            permitted = await run_in_threadpool(permit, site, request)
            return await view(site, request, *permitted)

        return answer_later

    @wraps(view)
    def answer(request: Request) -> Answer:
        site = site_of(request)
        return view(site, request, *permit(site, request))

    return answer


def _is_user_id(text: str) -> bool:
    try:
        return check_user_id(text) == text
    except AccountsError:
        return False
