"""A model's page: its costs and tokens by token type, and its effective prices."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from finora_pipeline.accounts.logins import Login
from finora_pipeline.dashboard.figures.model import ModelPage, compute_model
from finora_pipeline.dashboard.figures.periods import View, view_of
from finora_pipeline.dashboard.security.permissions import for_user
from finora_pipeline.dashboard.site import Site
from finora_pipeline.dashboard.snapshots import UserSnapshot
from finora_pipeline.dashboard.views.overview import frame


@for_user
def model(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """The page of the model in the query; 404 without one."""
    now = site.now()
    plan = site.plan_of(user_id)

    def compute(snapshot: UserSnapshot) -> tuple[View, ModelPage, bool]:
        view = view_of(request.query_params, plan, now.date(), snapshot.known_days(now.date()))
        if not view.model:
            raise HTTPException(404)
        return view, compute_model(snapshot, view), snapshot.is_sample

    view, page, is_sample = site.snapshots.read(user_id, compute)
    connection, failure = site.connection_of(user_id)
    around = frame(connection, failure, is_sample, plan, now)
    return site.render(request, "model.html", login, user_id=user_id, view=view, page=page, **around)
