"""What all views share: settings, accounts, snapshots, templates and the current login."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import jinja2
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, Response

from finora_pipeline.accounts.actors import START_LINK
from finora_pipeline.accounts.logins import Login, Logins
from finora_pipeline.accounts.model import Connection
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.dashboard.figures import formats
from finora_pipeline.dashboard.figures.charts import share_bar
from finora_pipeline.dashboard.security.access import Access
from finora_pipeline.dashboard.security.exposure import Exposure, session_cookie
from finora_pipeline.dashboard.security.oidc import Oidc
from finora_pipeline.dashboard.snapshots import Snapshots, utc_now
from finora_pipeline.plans import PLANS, Plan
from finora_pipeline.settings import Settings

FOLDER = Path(__file__).parent


def _templates() -> jinja2.Environment:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals |= {
        **{name: getattr(formats, name) for name in formats.IN_TEMPLATES},
        "share_bar": share_bar,
        "PLANS": PLANS,
        # In the addresses of style and script, which browsers keep for a day.
        "version": str(int(max(path.stat().st_mtime for path in (FOLDER / "static").iterdir()))),
    }
    return templates


@dataclass(frozen=True, slots=True)
class Site:
    """The parts of a dashboard server, handed to every view. `now` is the clock of the figures."""

    settings: Settings
    accounts: Accounts
    logins: Logins
    exposure: Exposure
    access: Access
    oidc: Oidc | None
    snapshots: Snapshots
    now: Callable[[], datetime] = utc_now
    templates: jinja2.Environment = field(default_factory=_templates)

    @property
    def session_cookie(self) -> str:
        """The name of the cookie that holds a session's token."""
        return session_cookie(is_public=self.exposure.is_public)

    def accepts_start_link(self, _: HTTPConnection) -> bool:
        """Whether the start link opens pages: on this machine only, without a proxy."""
        return not self.exposure.is_public

    def current_login(self, request: Request) -> Login | None:
        """The login of the request's session, or an operator who opened the start link."""
        now = datetime.now(UTC)
        token = request.cookies.get(self.session_cookie)
        login = self.logins.of_session(token, now) if token else None
        if login is None and self.accepts_start_link(request) and self.access.is_operator(request):
            return Login(START_LINK, None, False, now)
        return login

    def render(
        self,
        request: Request,
        template: str,
        login: Login | None,
        status: int = 200,
        *,
        user_id: str | None = None,
        **values: Any,
    ) -> Response:
        """A page from its template. `user_id` names the user whose page it is."""
        shared = {
            "login": login,
            "path": request.url.path,
            "user_id": user_id,
            # As links write it, and as the path of a request reads.
            "base": f"/users/{quote(user_id)}" if user_id else None,
            "own": f"/users/{user_id}" if user_id else None,
        }
        return HTMLResponse(self.templates.get_template(template).render(shared | values), status)

    def plan_of(self, user_id: str) -> Plan:
        """The user's plan; the first of the plans for a user who has none yet."""
        return self.accounts.users.plan_of(user_id) or next(iter(PLANS.values()))

    def connection_of(self, user_id: str) -> tuple[Connection | None, str | None]:
        """The user's connection, and the message of the latest attempt if it failed."""
        connection = self.accounts.connections.get(user_id)
        return connection, self.accounts.refreshes.last_failures([user_id]).get(user_id)


def site_of(request: Request) -> Site:
    """The site of the app that received a request."""
    return cast("Site", request.app.state.site)


def user_path(user_id: str, page: str) -> str:
    """The address of a user's page, such as `plan`."""
    return f"/users/{quote(user_id)}/{page}"


async def form_fields(request: Request) -> dict[str, str]:
    """The text fields of a submitted form. Files are refused with 400."""
    form = await request.form(max_files=0, max_fields=10)
    return {name: value for name, value in form.items() if isinstance(value, str)}
