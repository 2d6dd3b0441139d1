"""The Plan page: what each plan gives, and the operators' form that changes a user's plan."""

from datetime import UTC, datetime

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from finora_pipeline.accounts.actors import acting_as
from finora_pipeline.accounts.logins import Login
from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.dashboard.security.permissions import for_user
from finora_pipeline.dashboard.site import Site, form_fields, user_path
from finora_pipeline.openai_admin.keys import redact
from finora_pipeline.plans import UnknownPlan


@for_user
def plan(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """The page with the table of plans."""
    return _plan_page(site, request, login, user_id)


def _plan_page(
    site: Site, request: Request, login: Login, user_id: str, error: str | None = None, status: int = 200
) -> Response:
    return site.render(
        request,
        "plan.html",
        login,
        status,
        user_id=user_id,
        plan=site.plan_of(user_id),
        error=error,
        saved=request.query_params.get("saved") == "yes",
        today=datetime.now(UTC).date(),
    )


@for_user
async def change_plan(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """Change the user's plan; operators only (403)."""
    if not login.is_operator:
        raise HTTPException(403, "Only operators can change plans.")
    chosen = (await form_fields(request)).get("plan", "")

    def change() -> None:
        site.accounts.users.add(user_id)
        site.accounts.users.set_plan(user_id, chosen)

    try:
        with acting_as(login.name):
            await run_in_threadpool(change)
    except (AccountsError, UnknownPlan) as error:
        message = redact(str(error))
        return await run_in_threadpool(_plan_page, site, request, login, user_id, message, 422)
    return RedirectResponse(user_path(user_id, "plan?saved=yes"), 303)
