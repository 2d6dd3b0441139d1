"""While OpenAI is slow for one user, the others' pages are published and none are lost."""

import asyncio
from collections.abc import Callable, Iterator
from threading import Event
from typing import Any, cast

import pytest

from finora_pipeline.accounts.onboarding import NewConnection, connect_many
from finora_pipeline.ingest.fetch import Budgets
from finora_pipeline.ingest.landing import Fetched, Landing
from finora_pipeline.openai_admin.client import open_client
from tests.cases.conftest import key_of
from tests.cases.organizations import usual
from tests.cases.server import CaseServer, Organization, playing
from tests.conftest import QUICK, Installation, OpenAI

RUN = "run-1"
QUIET = Budgets(quiet_seconds=0.01)


class WaitingServer(CaseServer):
    """Answers for the second organization only once `go_on` is set."""

    def __init__(self) -> None:
        super().__init__({key_of(name): Organization(usual()) for name in ("fast", "slow")})
        self.go_on = Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if (b"authorization", f"Bearer {key_of('slow')}".encode()) in scope.get("headers", ()):
            await asyncio.to_thread(self.go_on.wait)
        await super().__call__(scope, receive, send)


@pytest.fixture
def server() -> Iterator[WaitingServer]:
    with playing(WaitingServer()) as server:
        assert isinstance(server, WaitingServer)
        yield server
        # Its thread would wait for ever otherwise.
        server.go_on.set()


@pytest.fixture
def installation(server: WaitingServer, install: Callable[..., Installation]) -> Installation:
    installation = install(cast("OpenAI", server))
    server.go_on.set()
    lines = "".join(f"{name},growth,{key_of(name)}\n" for name in ("fast", "slow"))
    connect(installation, lines)
    server.go_on.clear()
    return installation


def connect(installation: Installation, lines: str) -> None:
    async def run() -> None:
        async with open_client(installation.settings.openai_base_url, QUICK) as client:
            new = [NewConnection(*line.split(",")) for line in lines.split()]
            assert [index async for index, _ in connect_many(installation.accounts, client, new)]

    asyncio.run(run())


def fetch(installation: Installation, landing: type[Landing]) -> Fetched:
    """Fetch both users, checking for slow ones all the time."""
    return installation.fetch(RUN, landing=landing, with_directory=False, budgets=QUIET)


def users_read(installation: Installation) -> list[str]:
    return [row.user_id for row in installation.accounts.refreshes.of_run(RUN)]


def test_others_are_published_before_a_slow_user_is_fetched(
    server: WaitingServer, installation: Installation
):
    seen: list[list[str]] = []

    class Publishing(Landing):
        def load_and_publish(self) -> None:
            seen.append(users_read(installation))
            server.go_on.set()

    assert fetch(installation, Publishing).failures == []
    assert seen == [["fast"]]
    assert users_read(installation) == ["fast", "slow"]


def test_a_slow_user_fetched_during_a_load_completes_the_run(
    server: WaitingServer, installation: Installation
):
    class Loading(Landing):
        def load_ahead(self, all_fetched: Event) -> None:
            server.go_on.set()
            assert all_fetched.wait(10)

        def load_and_publish(self) -> None:
            pass

    fetch(installation, Loading)
    assert users_read(installation) == ["fast", "slow"]


def test_a_failed_publication_for_others_loses_no_user(server: WaitingServer, installation: Installation):
    class Failing(Landing):
        def load_and_publish(self) -> None:
            server.go_on.set()
            raise RuntimeError("This fails here, and at the end of the run again.")

    fetch(installation, Failing)
    assert users_read(installation) == ["fast", "slow"]
