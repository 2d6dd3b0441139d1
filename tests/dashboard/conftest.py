"""One refreshed installation for all dashboard tests, served without and with sign-in."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from tests.conftest import Installation
from tests.dashboard.served import PUBLIC_URL, Served, dashboard, refreshed_installation

PASSWORD = "correct horse battery"
LOGINS = {"ops@finora.example": None, "ada@acme.example": "acme", "bob@bolt.example": "bolt"}


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with refreshed_installation(tmp_path_factory.mktemp("dashboard") / "home") as installation:
        yield installation


@pytest.fixture(scope="session")
def local(installation: Installation) -> Iterator[Served]:
    """The dashboard on this machine, opened by the start link."""
    with dashboard(installation.settings) as served:
        yield served


@pytest.fixture(scope="session")
def closed(installation: Installation) -> Iterator[Served]:
    """The same users on a separate accounts database with logins."""
    home = installation.settings.home
    with closing(sqlite3.connect(home / "accounts.sqlite")) as database:
        database.execute("VACUUM INTO ?", [str(home / "closed.sqlite")])
    settings = replace(installation.settings, accounts_url=f"sqlite:///{home / 'closed.sqlite'}")
    with dashboard(settings, by_link=False) as served:
        for name, user_id in LOGINS.items():
            served.sign_in.save(name, user_id=user_id, password=PASSWORD)
        yield served


@pytest.fixture(scope="session")
def public(closed: Served) -> Iterator[Served]:
    """The dashboard with logins as a TLS proxy reaches it."""
    with dashboard(closed.settings, PUBLIC_URL) as served:
        yield served
