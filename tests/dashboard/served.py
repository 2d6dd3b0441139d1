"""A served dashboard, and a parser for its pages."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response

from finora_pipeline.accounts.logins import Logins
from finora_pipeline.accounts.model import Connection
from finora_pipeline.accounts.onboarding import NewConnection, connect_many
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.dashboard import http_server
from finora_pipeline.dashboard.app import create_app
from finora_pipeline.dashboard.security.access import Access
from finora_pipeline.dashboard.security.exposure import exposure
from finora_pipeline.dashboard.security.oidc import Oidc
from finora_pipeline.dashboard.snapshots import utc_now
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_simulator import OrganizationSpec, Simulator, running
from finora_pipeline.openai_simulator.server import listen
from finora_pipeline.settings import Settings
from tests.conftest import QUICK, Installation, OpenAI, now_in_the_middle_of_today

OWN = {"Sec-Fetch-Site": "same-origin"}
ACCESS_TOKEN = "an-access-token-of-the-tests"
PUBLIC_URL = "https://finora.example.com"
# Users of the shared installation, each with its own organization; `acme` has all services.
PLANS_OF = {"acme": "growth", "bolt": "growth", "tiny": "trial", "gone": "growth"}
DAYS_OF = {"acme": 62, "bolt": 40, "tiny": 9, "gone": 2}


@contextmanager
def on_loopback(app: Any, bound: socket, **options: Any) -> Iterator[str]:
    """Serve an ASGI app in a thread for the length of the block; yield its address."""
    quiet = {"log_level": "critical", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(http_server.config(app, **quiet, **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        bound.close()


@dataclass
class Served:
    """A dashboard on loopback, its parts, and an HTTP client."""

    app: Starlette
    url: str
    settings: Settings
    accounts: Accounts
    sign_in: Logins
    access: Access
    browser: httpx.Client

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.browser.get(path, **options)

    def post(self, path: str, data: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        """Send a form as a browser does from one of the pages."""
        headers = OWN | options.pop("headers", {})
        return self.browser.post(path, data=data or {}, headers=headers, **options)

    def page(self, path: str, **options: Any) -> "Node":
        answer = self.get(path, **options)
        assert answer.status_code == 200, answer.text
        return read_html(answer.text)

    def connect(self, user_id: str, key: str) -> None:
        """Connect a user of the plan growth."""
        self.accounts.users.add(user_id, "growth")
        answer = self.post(f"/users/{user_id}/settings/keys", {"provider": "openai", "key": key})
        assert answer.status_code == 303

    @property
    def start_link(self) -> str:
        return f"{self.url}/?token={ACCESS_TOKEN}"

    def by_link(self) -> dict[str, str]:
        """Return the cookie header of a browser that has opened the start link."""
        response = Response()
        self.access.grant(response)
        return {"Cookie": response.headers["set-cookie"].partition(";")[0]}

    def signed_in(self, name: str) -> dict[str, str]:
        """Return the cookie header of a new session."""
        login = self.sign_in.get(name)
        assert login is not None
        cookie = "__Host-finora" if self.browser.headers.get("host") else "finora"
        return {"Cookie": f"{cookie}={self.sign_in.open_session(login, datetime.now(UTC))}"}


@contextmanager
def dashboard(
    settings: Settings,
    public_url: str | None = None,
    oidc: Oidc | None = None,
    *,
    by_link: bool = True,
    now: Callable[[], datetime] = utc_now,
) -> Iterator[Served]:
    """Serve an installation's dashboard, at the time that `now` returns.

    With `by_link` its client has opened the start link.
    """
    accounts = accounts_of(settings)
    sign_in = accounts.logins
    bound = listen()
    exposed = exposure(
        "127.0.0.1", bound.getsockname()[1], public_url, oidc is not None or sign_in.is_configured()
    )
    access = Access(ACCESS_TOKEN)
    app = create_app(settings, accounts, sign_in, exposed, access, oidc, now)
    headers = {"Host": urlsplit(public_url).netloc} if public_url else {}
    with (
        on_loopback(app, bound) as url,
        httpx.Client(base_url=url, headers=headers, timeout=20, verify=False) as browser,
    ):
        served = Served(app, url, settings, accounts, sign_in, access, browser)
        if by_link:
            browser.headers.update(served.by_link())
        yield served


@contextmanager
def refreshed_installation(home: Path) -> Iterator[Installation]:
    """Yield an installation with each user of `PLANS_OF`, refreshed once."""
    now = now_in_the_middle_of_today()
    specs = [
        OrganizationSpec(
            number,
            since=now.date() - timedelta(days=days - 1),
            services=user_id == "acme",
            projects=2 if user_id == "acme" else 1,
            members=2,
            keys_per_project=1,
            daily_requests=20,
        )
        for number, (user_id, days) in enumerate(DAYS_OF.items())
    ]
    simulator = Simulator(specs, now=now)
    with running(simulator) as base_url:
        installation = Installation(home, OpenAI(simulator, base_url))
        asyncio.run(_connect(installation))
        assert installation.refresh().failed_users == []
        installation.accounts.connections.remove("gone")
        yield installation


async def _connect(installation: Installation) -> None:
    lines = [
        NewConnection(user_id, plan, organization.admin_key)
        for (user_id, plan), organization in zip(
            PLANS_OF.items(), installation.openai.organizations, strict=True
        )
    ]
    async with open_client(installation.settings.openai_base_url, QUICK) as client:
        async for _, outcome in connect_many(installation.accounts, client, lines):
            assert isinstance(outcome, Connection), outcome


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str | None]
    children: list["Node | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text within, spaces as a browser shows them."""
        return " ".join("".join(self._texts()).split())

    def _texts(self) -> Iterator[str]:
        for child in self.children:
            if isinstance(child, str):
                yield child
            else:
                yield from child._texts()

    def all(self, tag: str, **attributes: str) -> list["Node"]:
        """Return descendants of that tag and those attributes; `class_` is one of the classes."""
        found: list[Node] = []
        for child in self.children:
            if isinstance(child, Node):
                if child.tag == tag and child.fits(attributes):
                    found.append(child)
                found += child.all(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> "Node":
        (found,) = self.all(tag, **attributes)
        return found

    def fits(self, attributes: dict[str, str]) -> bool:
        own = dict(self.attributes)
        if "class_" in attributes and attributes["class_"] not in (own.get("class") or "").split():
            return False
        return all(own.get(name) == value for name, value in attributes.items() if name != "class_")

    @property
    def title(self) -> str:
        return self.attributes.get("title") or ""


_VOID = frozenset(("meta", "link", "input", "br", "img", "hr"))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in _VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> ends <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_html(text: str) -> Node:
    """Parse a page; fail for tags not closed in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root
