"""The operators' list of users, and the page that opens first."""

from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finora_pipeline.accounts.actors import acting_as
from finora_pipeline.accounts.logins import Login
from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.dashboard.notices import freshness
from finora_pipeline.dashboard.security.permissions import for_logins, for_operators
from finora_pipeline.dashboard.site import Site, form_fields, user_path
from finora_pipeline.openai_admin.keys import redact

# The user of an installation that has none yet, on its own machine.
FIRST_USER = "my-company"
PAGE_SIZE = 50


@for_logins
def home(site: Site, request: Request, login: Login) -> Response:  # noqa: ARG001
    """Redirect to the login's own Overview; operators of several users to the list."""
    if login.user_id:
        return RedirectResponse(user_path(login.user_id, "overview"), 303)
    user_ids = site.accounts.users.ids()
    if len(user_ids) > 1:
        return RedirectResponse("/users", 303)
    return RedirectResponse(user_path(user_ids[0] if user_ids else FIRST_USER, "overview"), 303)


@for_operators
def users(site: Site, request: Request, login: Login) -> Response:
    """The list, searched by `q` and paged by `from`."""
    return _users_page(site, request, login)


def _users_page(
    site: Site, request: Request, login: Login, error: str | None = None, status: int = 200
) -> Response:
    wanted = request.query_params.get("q", "").strip()[:100]
    offset = request.query_params.get("from", "0")
    first = int(offset) if offset.isdecimal() and len(offset) < 9 else 0
    plans = site.accounts.users.plans()
    matching = [user_id for user_id in plans if wanted.casefold() in user_id.casefold()]
    shown = matching[first : first + PAGE_SIZE]
    connections = {c.user_id: c for c in site.accounts.connections.all(user_ids=shown)}
    spend = site.snapshots.spend_by_user()
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
    return site.render(
        request, "users.html", login, status, rows=rows, wanted=wanted, first=first, found=len(matching),
        size=PAGE_SIZE, error=error,
    )  # fmt: skip


@for_operators
async def add_user(site: Site, request: Request, login: Login) -> Response:
    """Add a user by its id, and open its API Keys page."""
    text = (await form_fields(request)).get("user_id", "")
    try:
        with acting_as(login.name):
            user_id = await run_in_threadpool(site.accounts.users.add, text)
    except AccountsError as error:
        # The text may be a key that was pasted into the wrong field.
        return await run_in_threadpool(_users_page, site, request, login, redact(str(error)), 422)
    return RedirectResponse(user_path(user_id, "settings/keys"), 303)
