"""Pages about requests that failed: what happened and what to do; details go to the log."""

import logging
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finora_pipeline.dashboard.site import site_of

_log = logging.getLogger("finora.dashboard")
_TITLES = {401: "Sign in", 403: "Not allowed", 404: "Not found"}
_TEXTS = {
    401: "Sign in first.",
    404: "Page not found, or you don’t have access.",
    405: "This page doesn’t support that request.",
}
_NOT_LOADED = "We couldn’t load this page"


def http_error(request: Request, error: Exception) -> Response:
    """Answer an `HTTPException`; the texts of 403 and 422 are sentences for people."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    text = error.detail if status in (403, 422) else _TEXTS.get(status, error.detail)
    response = _error_page(request, status, _TITLES.get(status, "Request failed"), text)
    response.headers.update(error.headers or {})
    return response


def sign_in_required(request: Request, _: Exception) -> Response:
    """Redirect to the sign-in, and back to the page afterwards; a form without a login gets 401."""
    if request.method not in ("GET", "HEAD"):
        return http_error(request, HTTPException(401))
    page = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return RedirectResponse("/sign-in?" + urlencode({"next": page}), 303)


def bad_period(request: Request, error: Exception) -> Response:
    """Answer an address whose days cannot be shown."""
    return _error_page(request, 400, "We can’t show this period", str(error))


def other_version(request: Request, error: Exception) -> Response:
    """Answer while the published snapshot has the tables of another version."""
    _log.error("The published snapshot is of another version: %s", error)
    text = "This data was published by another Finora version. The next refresh rebuilds it."
    return _error_page(request, 503, _NOT_LOADED, text)


def out_of_memory(request: Request, error: Exception) -> Response:
    """Answer a page whose query does not fit into memory."""
    _log.warning("%s did not fit into memory: %s", request.url.path, str(error).partition("\n")[0])
    return _error_page(request, 503, _NOT_LOADED, "Try again in a moment, or choose fewer days.")


def failure(request: Request) -> Response:
    """Answer a request on which the app failed; the guard has logged it."""
    text = "We logged the error. Try again; if it keeps happening, contact your administrator."
    return _error_page(request, 500, "Something went wrong", text)


def _error_page(request: Request, status: int, title: str, text: str) -> Response:
    return site_of(request).render(request, "error.html", None, status, title=title, text=text)
