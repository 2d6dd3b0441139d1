"""Overview: the page, its CSV file, and the state that a waiting page polls."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from finora_pipeline.accounts.logins import Login
from finora_pipeline.accounts.model import Connection
from finora_pipeline.dashboard.figures.export import csv_text, export_rows
from finora_pipeline.dashboard.figures.overview import Overview, compute_overview
from finora_pipeline.dashboard.figures.periods import View, view_of
from finora_pipeline.dashboard.notices import freshness, notices
from finora_pipeline.dashboard.security.permissions import for_user
from finora_pipeline.dashboard.site import Site
from finora_pipeline.dashboard.snapshots import UserSnapshot
from finora_pipeline.plans import Plan


@for_user
def overview(site: Site, request: Request, login: Login, user_id: str) -> Response:
    """The page with tiles, chart and breakdowns."""
    now = site.now()
    plan = site.plan_of(user_id)
    connection, failure = site.connection_of(user_id)

    def compute(snapshot: UserSnapshot) -> tuple[View, Overview, bool]:
        view = view_of(request.query_params, plan, now.date(), snapshot.known_days(now.date()))
        return view, compute_overview(snapshot, view), snapshot.is_sample

    view, figures, is_sample = site.snapshots.read(user_id, compute)
    return site.render(
        request,
        "overview.html",
        login,
        user_id=user_id,
        view=view,
        figures=figures,
        state=state_text(connection, is_sample),
        **frame(connection, failure, is_sample, plan, now),
    )


def frame(
    connection: Connection | None, failure: str | None, is_sample: bool, plan: Plan, now: datetime
) -> dict[str, Any]:
    """The template values around the figures: plan, notices, freshness, today."""
    return {
        "plan": plan,
        "notices": notices(connection, failure, is_sample),
        "freshness": freshness(connection, now),
        "today": now.date(),
    }


@for_user
def overview_csv(site: Site, request: Request, login: Login, user_id: str) -> Response:  # noqa: ARG001
    """The costs of the view as a CSV file, for plans with CSV exports."""
    plan = site.plan_of(user_id)
    if not plan.csv_exports:
        raise HTTPException(403, f"The {plan.name} plan has no CSV exports.")
    today = site.now().date()

    def compute(snapshot: UserSnapshot) -> tuple[View, list[Mapping[str, str]], bool]:
        view = view_of(request.query_params, plan, today, snapshot.known_days(today))
        return view, export_rows(snapshot, view), snapshot.is_sample

    view, rows, is_sample = site.snapshots.read(user_id, compute)
    name = f"{'sample' if is_sample else user_id}-costs-{view.first}-{view.last}.csv"
    return Response(
        csv_text(rows),
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"},
    )


@for_user
def state(site: Site, request: Request, login: Login, user_id: str) -> Response:  # noqa: ARG001
    """The state that a waiting page polls, to load itself again when it changes."""
    connection = site.accounts.connections.get(user_id)
    with site.snapshots.of(user_id) as snapshot:
        return JSONResponse({"state": state_text(connection, snapshot.is_sample)})


def state_text(connection: Connection | None, is_sample: bool) -> str:
    """A text that changes whenever a waiting page should be loaded again."""
    if connection is None:
        return "none"
    return f"{connection.status}/{connection.last_attempt_at}/{connection.last_refresh_at}/{is_sample}"
