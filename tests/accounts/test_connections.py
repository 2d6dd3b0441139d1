"""Connect, update and remove: what is stored or refused, and how refreshes change it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, TypeVar

import pytest
from sqlalchemy import event, select
from sqlalchemy import update as update_rows
from sqlalchemy.pool import Pool

from finora_pipeline.accounts import onboarding as connections
from finora_pipeline.accounts.actors import acting_as
from finora_pipeline.accounts.audit import KEY_USE
from finora_pipeline.accounts.database import audit, credentials
from finora_pipeline.accounts.model import (
    AccountsError,
    Connection,
    KeyReplaced,
    Organization,
    OtherOrganization,
    Refresh,
    Status,
    check_user_id,
)
from finora_pipeline.accounts.onboarding import NewConnection
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.accounts.vault import VaultError
from finora_pipeline.openai_admin.client import OpenAIAdminClient, open_client
from finora_pipeline.openai_admin.errors import (
    InsufficientPermissions,
    InvalidKey,
    OpenAIAdminError,
    Unreachable,
)
from finora_pipeline.openai_admin.keys import AdminKey, KeyFormError
from finora_pipeline.openai_simulator import KeyState
from finora_pipeline.plans import UnknownPlan
from tests.conftest import QUICK, Installation, OpenAI
from tests.postgres_server import PostgresServer
from tests.small_openai import fresh_key, small_openai

T = TypeVar("T")
LOOPBACK = "http://127.0.0.1/v1"
# The port of the discard protocol: nothing listens there.
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAI]:
    with small_openai(organizations=3) as openai:
        yield openai


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def home(
    request: pytest.FixtureRequest, openai: OpenAI, install: Callable[..., Installation]
) -> Installation:
    """An installation without users, its accounts in either database."""
    if request.param == "sqlite":
        return install(openai)
    server: PostgresServer = request.getfixturevalue("postgres")
    return install(openai, server.new_url())


@pytest.fixture
def file_home(openai: OpenAI, install: Callable[..., Installation]) -> Installation:
    """An installation without users, its accounts in a file."""
    return install(openai)


def ask(
    home: Installation, do: Callable[[OpenAIAdminClient], Awaitable[T]], base_url: str | None = None
) -> T:
    """Run a coroutine function with an OpenAI client."""

    async def run() -> T:
        async with open_client(base_url or home.settings.openai_base_url, QUICK) as client:
            return await do(client)

    return asyncio.run(run())


def connect(home: Installation, user_id: str, key: str, plan: str = "growth", **more: Any) -> Connection:
    base_url = more.pop("base_url", None)
    return ask(
        home,
        lambda client: connections.connect(home.accounts, client, user_id, key, plan=plan, **more),
        base_url,
    )


def update(home: Installation, user_id: str, key: str) -> Connection:
    return ask(home, lambda client: connections.update(home.accounts, client, user_id, key))


def connect_many(home: Installation, *lines: tuple[str, str, str]) -> dict[int, Connection | str]:
    async def run(client: OpenAIAdminClient) -> dict[int, Connection | str]:
        wanted = [NewConnection(*line) for line in lines]
        return {index: outcome async for index, outcome in connections.connect_many(accounts, client, wanted)}

    accounts = home.accounts
    return ask(home, run)


def stored_key(home: Installation, user_id: str) -> str:
    return home.accounts.connections.key_ring([user_id]).key_of(user_id).reveal()


def stored(home: Installation, user_id: str) -> Connection:
    connection = home.accounts.connections.get(user_id)
    assert connection is not None
    return connection


def sealed(home: Installation, user_id: str) -> tuple[bytes, ...]:
    """Return the stored wrapped data key and ciphertext of the user, empty without a key."""
    query = select(credentials.c.wrapped_key, credentials.c.ciphertext)
    with home.accounts.database.read() as database:
        row = database.execute(query.where(credentials.c.user_id == user_id)).first()
    return tuple(row or ())


def put_credential(home: Installation, user_id: str, wrapped_key: bytes, ciphertext: bytes) -> None:
    """Store another credential, as an attacker without the master key could."""
    with home.accounts.database.write() as database:
        row = credentials.update().where(credentials.c.user_id == user_id)
        database.execute(row.values(wrapped_key=wrapped_key, ciphertext=ciphertext))


def files_with(home: Installation, *secrets: bytes) -> list[str]:
    """Return the files of the accounts database that hold one of these byte strings."""
    files = sorted(home.settings.home.glob("accounts.sqlite*"))
    assert files
    return [file.name for file in files if any(secret in file.read_bytes() for secret in secrets)]


def a_read(
    of: Connection,
    *,
    after: timedelta = timedelta(seconds=1),
    days: int = 90,
    reason: str | None = None,
    permanent: bool = False,
) -> Refresh:
    """Build a fetch outcome that began some time after the connection's key was saved."""
    began = of.changed_at + after
    tomorrow = began.date() + timedelta(days=1)
    return Refresh(
        user_id=of.user_id,
        window_start=tomorrow - timedelta(days=days),
        window_end=tomorrow,
        started_at=began,
        finished_at=began + timedelta(seconds=2),
        pages=0 if reason else 5,
        reason=reason,
        message=f"OpenAI said {reason}." if reason else None,
        permanent=permanent,
    )


def refused_read(of: Connection, **more: Any) -> Refresh:
    return a_read(of, reason="invalid_key", permanent=True, **more)


def actions(home: Installation, user_id: str) -> list[tuple[str, str | None]]:
    trail = home.accounts.audit.of_user(user_id)
    return [(entry.action, entry.detail) for entry in trail if entry.action != KEY_USE]


def with_projects(*project_ids: str) -> Organization:
    """An organization without costs, known by its projects alone."""
    return Organization(project_ids=frozenset(project_ids))


# Connect


def test_connect_stores_user_plan_and_organization(home, openai):
    organization = openai.organizations[0]
    connection = connect(home, " acme ", organization.admin_key, plan="Scale", email="cfo@acme.example")
    assert connection == stored(home, "acme")
    assert connection.plan.name == "scale"
    assert connection.email == "cfo@acme.example"
    assert connection.status is Status.ACTIVE
    assert connection.key_hint == f"sk-admin-…{organization.admin_key[-4:]}"
    assert connection.organization == Organization(
        organization.id, organization.name, frozenset(project.id for project in organization.projects)
    )
    assert connection.history_from is None
    assert connection.next_refresh_at == connection.connected_at + timedelta(hours=1)
    assert connection.may_be_fetched(connection.connected_at)
    assert home.accounts.users.ids() == ["acme"]
    assert stored_key(home, "acme") == organization.admin_key
    assert actions(home, "acme") == [("connect", f"{connection.key_hint} at {LOOPBACK}")]


def test_connect_strips_white_space_around_a_key(file_home, openai):
    connect(file_home, "acme", f"\ufeff {openai.organizations[0].admin_key}\r\n")
    assert stored_key(file_home, "acme") == openai.organizations[0].admin_key


def test_no_file_of_the_installation_holds_a_key(file_home, openai):
    connection = connect(file_home, "acme", openai.organizations[0].admin_key)
    file_home.accounts.refreshes.record("run-1", [refused_read(connection)])
    secret = openai.organizations[0].admin_key.encode()
    files = [path for path in file_home.settings.home.rglob("*") if path.is_file()]
    assert {"accounts.sqlite", "master.key"} <= {path.name for path in files}
    assert [path for path in files if secret in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sk-proj-abcdefghijklmnopqrstuvwxyz", "This is a project key, which cannot read billing data"),
        ("sk-abcdefghijklmnopqrstuvwxyz012345", "This is a project key, which cannot read billing data"),
        ("sk-admin-short", "incomplete or contains characters"),
        ("sk-admin-abcdefgh ijklmnopqrstuvwxyz", "incomplete or contains characters"),
        ("my password", "This is not an OpenAI Admin key"),
        (" \n", "No key was given"),
    ],
)
def test_text_unlike_an_admin_key_is_refused_without_a_request(file_home, openai, text, says):
    asked = openai.simulator.requests.total()
    with pytest.raises(KeyFormError, match=says) as caught:
        connect(file_home, "acme", text)
    assert not text.strip() or text not in str(caught.value)
    assert openai.simulator.requests.total() == asked
    assert file_home.accounts.users.ids() == []


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        (KeyState.REVOKED, InvalidKey, "deleted or revoked"),
        (KeyState.DEMOTED, InsufficientPermissions, "no longer an Owner or Admin"),
        (KeyState.RESTRICTED, InsufficientPermissions, "may not read this organization's cost and usage"),
    ],
)
def test_a_key_refused_by_openai_stores_nothing(file_home, openai, state, error, says):
    key = fresh_key(openai)
    openai.simulator.set_key_state(key, state)
    with pytest.raises(error, match=says) as caught:
        connect(file_home, "acme", key)
    assert key not in str(caught.value)
    assert file_home.accounts.users.ids() == []
    assert file_home.accounts.connections.get("acme") is None
    assert actions(file_home, "acme") == []


def test_an_unreachable_openai_stores_nothing(file_home, openai):
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9 refused the connection"):
        connect(file_home, "acme", openai.organizations[0].admin_key, base_url=NOWHERE)
    assert file_home.accounts.users.ids() == []


def test_a_refused_connection_is_not_reported_as_a_timeout(file_home, openai):
    with pytest.raises(Unreachable, match="could not be reached"):
        connect(file_home, "acme", openai.organizations[0].admin_key, base_url=NOWHERE)


@pytest.mark.parametrize(
    ("user_id", "plan", "error"), [("..", "growth", AccountsError), ("acme", "platinum", UnknownPlan)]
)
def test_a_bad_user_id_or_plan_is_refused_without_a_request(file_home, openai, user_id, plan, error):
    asked = openai.simulator.requests.total()
    with pytest.raises(error):
        connect(file_home, user_id, openai.organizations[0].admin_key, plan=plan)
    assert openai.simulator.requests.total() == asked
    assert file_home.accounts.users.ids() == []


def test_a_second_connect_points_to_update(file_home, openai):
    before = connect(file_home, "acme", openai.organizations[0].admin_key)
    with pytest.raises(AccountsError, match="already connected") as caught:
        connect(file_home, "acme", openai.organizations[1].admin_key, plan="trial")
    assert "Use update" in str(caught.value)
    assert before.key_hint in str(caught.value)
    assert stored(file_home, "acme") == before


def test_one_of_two_concurrent_connects_succeeds(home, openai):
    async def both(client: OpenAIAdminClient) -> list[Connection | BaseException]:
        keys = [organization.admin_key for organization in openai.organizations[:2]]
        tries = [connections.connect(home.accounts, client, "acme", key, plan="growth") for key in keys]
        return await asyncio.gather(*tries, return_exceptions=True)

    outcomes = ask(home, both)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["AccountsError", "Connection"]


def test_an_organization_without_costs_is_known_by_its_projects(start_openai, install):
    # An organization that starts tomorrow has projects and no costs yet.
    home = install(start_openai(days=0))
    connection = connect(home, "acme", home.openai.organizations[0].admin_key)
    assert connection.organization.organization_id is None
    assert connection.organization.project_ids
    key = fresh_key(home.openai)
    assert update(home, "acme", key).organization == connection.organization


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (Organization("org-1"), Organization("org-1", "Acme", frozenset({"p"})), True),
        (Organization("org-1", None, frozenset({"p"})), Organization("org-2", None, frozenset({"p"})), False),
        (
            Organization(None, None, frozenset({"p", "q"})),
            Organization("org-1", None, frozenset({"q"})),
            True,
        ),
        (Organization(None, None, frozenset({"p"})), Organization(None, None, frozenset({"q"})), False),
        (Organization("org-1"), Organization(None, None, frozenset({"p"})), None),
        (Organization(), Organization(), None),
    ],
)
def test_organizations_are_compared_by_id_then_by_projects(one, other, same):
    assert one.is_same_as(other) is same
    assert other.is_same_as(one) is same


def test_an_unidentified_key_replaces_another_only_when_confirmed():
    known, silent = Organization("org-1"), Organization()
    with pytest.raises(OtherOrganization, match="does not show which OpenAI organization it belongs to"):
        connections._replaces(known, silent, may_replace=False)
    assert connections._replaces(known, silent, may_replace=True)


# Update


def test_update_takes_a_rotated_key_of_the_same_organization(home, openai):
    before = connect(home, "acme", openai.organizations[0].admin_key, email="cfo@acme.example")
    home.accounts.refreshes.record("run-1", [a_read(before)])
    organization = openai.organizations[0]
    rotated = organization.new_admin_key(2)
    openai.simulator.add_key(organization, rotated)
    after = update(home, "acme", rotated)
    assert stored_key(home, "acme") == rotated
    assert (after.key_version, after.key_hint) == (2, f"sk-admin-…{rotated[-4:]}")
    assert after.changed_at > before.changed_at
    assert (after.connected_at, after.plan, after.email) == (before.connected_at, before.plan, before.email)
    assert after.history_from is not None
    assert actions(home, "acme")[-1] == ("update", f"{after.key_hint} at {LOOPBACK}")


def test_update_with_another_organizations_key_keeps_the_old_key(file_home, openai):
    key = openai.organizations[0].admin_key
    before = connect(file_home, "acme", key)
    with pytest.raises(AccountsError, match="belongs to another"):
        update(file_home, "acme", openai.organizations[1].admin_key)
    assert stored(file_home, "acme") == before
    assert stored_key(file_home, "acme") == key
    assert actions(file_home, "acme") == [("connect", f"{before.key_hint} at {LOOPBACK}")]


@pytest.mark.parametrize("state", [KeyState.REVOKED, KeyState.DEMOTED, KeyState.RESTRICTED])
def test_update_with_a_refused_key_keeps_the_old_one(file_home, openai, state):
    before = connect(file_home, "acme", openai.organizations[0].admin_key)
    key = fresh_key(openai)
    openai.simulator.set_key_state(key, state)
    with pytest.raises(OpenAIAdminError):
        update(file_home, "acme", key)
    assert stored(file_home, "acme") == before
    assert stored_key(file_home, "acme") == openai.organizations[0].admin_key


def test_update_of_an_unknown_user_points_to_connect(file_home, openai):
    with pytest.raises(AccountsError, match="not connected to OpenAI"):
        update(file_home, "acme", openai.organizations[0].admin_key)


# Remove and reconnect


def test_remove_deletes_the_credential(home, openai):
    connect(home, "acme", openai.organizations[0].admin_key)
    removed = home.accounts.connections.remove("acme")
    assert removed.status is Status.REMOVED
    assert removed.next_refresh_at is None
    assert not removed.may_be_fetched(datetime.now(UTC))
    assert sealed(home, "acme") == ()
    with pytest.raises(AccountsError, match="No OpenAI key is stored for user acme"):
        stored_key(home, "acme")
    assert actions(home, "acme")[-1] == ("remove", None)


def test_no_file_holds_a_removed_credential(file_home, openai):
    key = fresh_key(openai)
    connect(file_home, "acme", key)
    first = sealed(file_home, "acme")
    update(file_home, "acme", openai.organizations[0].admin_key)
    second = sealed(file_home, "acme")
    assert files_with(file_home, *second)
    file_home.accounts.connections.remove("acme")
    assert files_with(file_home, *first, *second) == []
    assert files_with(file_home, key.encode(), openai.organizations[0].admin_key.encode()) == []


def test_remove_leaves_other_users_alone(home, openai):
    home.connect(users=["acme", "globex"])
    home.accounts.connections.remove("acme")
    assert stored_key(home, "globex") == openai.organizations[1].admin_key
    assert home.accounts.users.ids() == ["acme", "globex"]


def test_a_second_remove_reports_nothing_to_remove(file_home, openai):
    connect(file_home, "acme", openai.organizations[0].admin_key)
    file_home.accounts.connections.remove("acme")
    with pytest.raises(AccountsError, match="acme has no OpenAI connection to remove"):
        file_home.accounts.connections.remove("acme")


def test_remove_of_an_unknown_user_is_refused(file_home):
    with pytest.raises(AccountsError, match="missing has no OpenAI connection to remove"):
        file_home.accounts.connections.remove("missing")


def test_reconnecting_the_same_organization_continues_its_history(home, openai):
    before = connect(home, "acme", openai.organizations[0].admin_key, email="cfo@acme.example")
    home.accounts.refreshes.record("run-1", [a_read(before)])
    history_from = stored(home, "acme").history_from
    home.accounts.connections.remove("acme")
    with pytest.raises(AccountsError, match="not connected to OpenAI"):
        update(home, "acme", fresh_key(openai))
    after = connect(home, "acme", fresh_key(openai))
    assert after.status is Status.ACTIVE
    assert history_from is not None
    assert after.history_from == history_from
    assert after.connected_at > before.connected_at
    assert after.email == "cfo@acme.example"
    assert [action for action, _ in actions(home, "acme")] == ["connect", "remove", "connect"]


def test_reconnecting_another_organization_is_refused(file_home, openai):
    connect(file_home, "acme", openai.organizations[0].admin_key)
    file_home.accounts.connections.remove("acme")
    with pytest.raises(AccountsError, match="belongs to another"):
        connect(file_home, "acme", openai.organizations[1].admin_key)
    assert stored(file_home, "acme").status is Status.REMOVED
    assert sealed(file_home, "acme") == ()


def test_reconnecting_on_a_larger_plan_fetches_the_history_again(file_home, openai):
    before = connect(file_home, "acme", openai.organizations[0].admin_key, plan="trial")
    file_home.accounts.refreshes.record("run-1", [a_read(before, days=7)])
    file_home.accounts.connections.remove("acme")
    after = connect(file_home, "acme", openai.organizations[0].admin_key, plan="enterprise")
    assert after.plan.name == "enterprise"
    assert after.history_from is None


# The stored credential


def test_a_credential_put_into_another_users_row_does_not_open(home, openai):
    home.connect(users=["acme", "globex"])
    put_credential(home, "globex", *sealed(home, "acme"))
    assert stored_key(home, "acme") == openai.organizations[0].admin_key
    with pytest.raises(VaultError, match="its row was altered or moved"):
        stored_key(home, "globex")


def test_an_older_credential_put_back_does_not_open(home, openai):
    connect(home, "acme", openai.organizations[0].admin_key)
    old = sealed(home, "acme")
    update(home, "acme", fresh_key(openai))
    put_credential(home, "acme", *old)
    with pytest.raises(VaultError, match="its row was altered or moved"):
        stored_key(home, "acme")


def test_a_key_version_of_a_purged_user_is_not_reused(home, openai):
    key = openai.organizations[0].admin_key
    connect(home, "acme", key)
    update(home, "acme", fresh_key(openai))
    connect(home, "globex", openai.organizations[1].admin_key)
    versions = [1, 2]
    for _ in range(2):
        ring = home.accounts.connections.key_ring(["acme"])
        home.accounts.purge("acme")
        again = connect(home, "acme", openai.organizations[1].admin_key)
        assert again.key_version > max(versions)
        with pytest.raises(KeyReplaced):
            ring.key_of("acme", versions[-1])
        versions += [again.key_version, update(home, "acme", fresh_key(openai, 1)).key_version]


def test_a_key_ring_keeps_the_keys_it_was_opened_with(home, openai):
    connect(home, "acme", openai.organizations[0].admin_key)
    ring = home.accounts.connections.key_ring(["acme", "globex"])
    update(home, "acme", fresh_key(openai))
    assert ring.key_of("acme").reveal() == openai.organizations[0].admin_key
    assert openai.organizations[0].admin_key not in f"{ring!r} {ring.key_of('acme')!r}"
    with pytest.raises(AccountsError, match="No OpenAI key is stored for user globex"):
        ring.key_of("globex")


# Connect many


def test_connect_many_returns_the_outcome_of_each_line(home, openai):
    revoked = fresh_key(openai)
    openai.simulator.set_key_state(revoked, KeyState.REVOKED)
    keys = [organization.admin_key for organization in openai.organizations]
    outcomes = connect_many(
        home,
        ("acme", "growth", keys[0]),
        ("globex", "platinum", keys[1]),
        ("../etc", "growth", keys[1]),
        ("acme ", "scale", keys[1]),
        ("initech", "trial", revoked),
        ("umbrella", "trial", "sk-proj-abcdefghijklmnopqrstuvwxyz"),
        ("hooli", "Enterprise", f" {keys[2]}\t"),
    )
    assert sorted(outcomes) == list(range(7))
    connected = {i: outcome for i, outcome in outcomes.items() if isinstance(outcome, Connection)}
    assert {i: (c.user_id, c.plan.name) for i, c in connected.items()} == {
        0: ("acme", "growth"),
        6: ("hooli", "enterprise"),
    }
    refused = {i: outcome for i, outcome in outcomes.items() if isinstance(outcome, str)}
    assert "Unknown plan “platinum”" in refused[1]
    assert "“../etc” cannot be a user id" in refused[2]
    assert refused[3] == "User acme appears twice; only the first line counts."
    assert "deleted or revoked" in refused[4]
    assert "This is a project key" in refused[5]
    assert not any("sk-proj-a" in text or "sk-admin-sim" in text for text in refused.values())
    assert home.accounts.users.ids() == ["acme", "hooli"]


def test_connect_many_leaves_existing_connections_unchanged(file_home, openai):
    before = connect(file_home, "acme", openai.organizations[0].admin_key)
    outcomes = connect_many(file_home, ("acme", "scale", fresh_key(openai)))
    assert "already connected" in str(outcomes[0])
    assert stored(file_home, "acme") == before


def test_connect_many_of_nothing_does_nothing(file_home):
    assert connect_many(file_home) == {}


# User ids


@pytest.mark.parametrize("user_id", ["a", "7", "acme", "a.b-c_d+e@f.example", "A" * 100, "user."])
def test_user_ids_that_can_be_used(user_id):
    assert check_user_id(f" {user_id}\n") == user_id


@pytest.mark.parametrize(
    "user_id",
    [
        "",
        " ",
        ".",
        "..",
        "a..b",
        "../acme",
        "a/b",
        "a\\b",
        "_a",
        "-a",
        "@a",
        "a b",
        "a\nb",
        "ä",
        "a=b",
        "A" * 101,
    ],
)
def test_user_ids_that_cannot_be_used(user_id):
    with pytest.raises(AccountsError, match="Use up to 100 letters"):
        check_user_id(user_id)


# Plans


@pytest.mark.parametrize(
    ("plan", "history_stays"), [("growth", True), ("trial", True), ("scale", False), ("enterprise", False)]
)
def test_a_plan_with_longer_retention_fetches_the_history_again(file_home, openai, plan, history_stays):
    connection = connect(file_home, "acme", openai.organizations[0].admin_key, plan="growth")
    file_home.accounts.refreshes.record("run-1", [a_read(connection)])
    before = stored(file_home, "acme").history_from
    assert before is not None
    assert file_home.accounts.users.set_plan("acme", plan.upper()).name == plan
    after = stored(file_home, "acme")
    assert after.plan.name == plan
    assert after.history_from == (before if history_stays else None)
    assert actions(file_home, "acme")[-1] == ("plan", plan)


def test_an_unknown_plan_or_user_is_refused(home, openai):
    connect(home, "acme", openai.organizations[0].admin_key)
    with pytest.raises(UnknownPlan, match="Plans: trial, growth, scale"):
        home.accounts.users.set_plan("acme", "gold")
    with pytest.raises(AccountsError, match="Unknown user globex"):
        home.accounts.users.set_plan("globex", "scale")
    assert stored(home, "acme").plan.name == "growth"
    assert len(actions(home, "acme")) == 1


def test_a_fetch_begun_before_a_plan_change_does_not_complete_history(file_home, openai):
    connection = connect(file_home, "acme", openai.organizations[0].admin_key, plan="trial")
    file_home.accounts.refreshes.record("run-1", [a_read(connection, days=7)])
    under_way = a_read(stored(file_home, "acme"), days=4)
    file_home.accounts.users.set_plan("acme", "scale")
    file_home.accounts.refreshes.record("run-2", [under_way])
    assert stored(file_home, "acme").history_from is None


def test_connections_are_found_by_plan_user_and_change(home, openai):
    home.connect(plan="growth", users=["acme", "globex"])
    connect(home, "hooli", openai.organizations[2].admin_key, plan="scale")
    accounts: Accounts = home.accounts

    def ids(**filters: Any) -> list[str]:
        return [connection.user_id for connection in accounts.connections.all(**filters)]

    assert ids() == ["acme", "globex", "hooli"]
    assert ids(plan="Growth") == ["acme", "globex"]
    assert ids(plan="trial") == []
    assert ids(user_ids=["hooli", "acme", "missing"]) == ["acme", "hooli"]
    assert ids(user_ids=[]) == []
    assert ids(changed_after=stored(home, "hooli").changed_at) == []
    assert "hooli" in ids(changed_after=stored(home, "hooli").changed_at - timedelta(microseconds=1))


def test_another_organization_takes_over_only_when_confirmed(home, openai):
    old, new = openai.organizations[:2]
    connect(home, "acme", old.admin_key)
    home.accounts.refreshes.record("run-1", [a_read(stored(home, "acme"), days=90)])
    with pytest.raises(OtherOrganization, match="or switch organizations"):
        update(home, "acme", new.admin_key)
    before = stored(home, "acme")
    after = ask(
        home,
        lambda client: connections.update(
            home.accounts, client, "acme", new.admin_key, replace_organization=True
        ),
    )
    today = datetime.now(UTC).date()
    assert after.organization.organization_id == new.id
    assert (after.history_from, after.read_until, after.organization_since) == (None, None, today)
    assert after.first_day(today) == today
    assert before.connected_at == after.connected_at
    assert actions(home, "acme")[-1] == (
        "replace organization",
        f"{old.id} by {new.id} from {today} on",
    )


# What refreshes make of a connection


def test_a_complete_fetch_extends_the_history_only_backwards(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    for number, days in enumerate((90, 4, 120)):
        home.accounts.refreshes.record(f"run-{number}", [a_read(connection, days=days)])
        known = 90 if days < 90 else days
        expected: date = a_read(connection, days=known).window_start
        assert stored(home, "acme").history_from == expected
    assert stored(home, "acme").last_attempt_at == a_read(connection).started_at


def test_the_gapless_span_grows_only_by_adjoining_fetches(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    whole = a_read(connection, days=90)
    home.accounts.refreshes.record("run-1", [whole])
    first, end = whole.window_start, whole.window_end
    reads = [
        # A gap of a day lies between the fetched days and these.
        ((end + timedelta(days=1), end + timedelta(days=3)), (first, end)),
        ((end, end + timedelta(days=2)), (first, end + timedelta(days=2))),
        ((first - timedelta(days=9), first - timedelta(days=2)), (first, end + timedelta(days=2))),
        # A backfill of past days alone does not close the gap.
        ((end, end + timedelta(days=3)), (first, end + timedelta(days=2))),
        ((first - timedelta(days=1), first), (first - timedelta(days=1), end + timedelta(days=2))),
    ]
    for number, ((start, until), expected) in enumerate(reads):
        is_by_hand = number >= 3
        began = datetime.combine(until, time(12), UTC) + timedelta(days=5 if is_by_hand else -1)
        read = replace(whole, window_start=start, window_end=until, started_at=began)
        home.accounts.refreshes.record(f"later-{number}", [read])
        after = stored(home, "acme")
        assert (after.history_from, after.read_until) == expected


def test_a_permanent_failure_records_its_time_and_reason(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    home.accounts.refreshes.record("run-1", [refused_read(connection)])
    first = stored(home, "acme")
    assert first.status is Status.NEEDS_ATTENTION
    assert first.status_reason == "OpenAI said invalid_key."
    assert first.status_since >= connection.status_since
    assert first.history_from is None
    later = a_read(connection, after=timedelta(days=1), reason="insufficient_permissions", permanent=True)
    home.accounts.refreshes.record("run-2", [later])
    second = stored(home, "acme")
    assert second.status_reason == "OpenAI said insufficient_permissions."
    assert second.status_since == first.status_since
    assert actions(home, "acme")[1:] == [("needs attention", "OpenAI said invalid_key.")]
    later_on = datetime.now(UTC) + timedelta(days=2)
    assert home.accounts.refreshes.last_failures(["acme"], later_on) == {
        "acme": "OpenAI said insufficient_permissions."
    }


def test_a_connection_needing_attention_is_retried_after_23_hours(file_home, openai):
    connection = connect(file_home, "acme", openai.organizations[0].admin_key)
    read = refused_read(connection)
    file_home.accounts.refreshes.record("run-1", [read])
    waiting = stored(file_home, "acme")
    assert waiting.last_attempt_at == read.started_at
    almost = timedelta(hours=23) - timedelta(microseconds=1)
    assert not waiting.may_be_fetched(read.started_at + almost)
    assert waiting.may_be_fetched(read.started_at + timedelta(hours=23))


def test_a_complete_fetch_makes_a_connection_active_again(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    home.accounts.refreshes.record("run-1", [refused_read(connection)])
    home.accounts.refreshes.record("run-2", [a_read(connection, after=timedelta(days=1))])
    recovered = stored(home, "acme")
    assert recovered.status is Status.ACTIVE
    assert recovered.status_reason is None
    assert home.accounts.refreshes.last_failures(["acme"], datetime.now(UTC) + timedelta(days=2)) == {}
    assert [action for action, _ in actions(home, "acme")] == ["connect", "needs attention", "active"]


def test_a_transient_failure_is_recorded_on_an_active_connection(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    home.accounts.refreshes.record("run-1", [a_read(connection, reason="unreachable")])
    after = stored(home, "acme")
    assert after.status is Status.ACTIVE
    assert after.may_be_fetched(datetime.now(UTC))
    assert after.history_from is None
    assert home.accounts.refreshes.last_failures(["acme", "globex"]) == {"acme": "OpenAI said unreachable."}
    assert [action for action, _ in actions(home, "acme")] == ["connect"]


def test_a_key_saved_after_a_fetch_began_ignores_its_outcome(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    under_way = refused_read(connection, after=timedelta(0))
    updated = update(home, "acme", fresh_key(openai))
    assert under_way.started_at < updated.changed_at
    home.accounts.refreshes.record("run-1", [under_way])
    assert stored(home, "acme").status is Status.ACTIVE
    home.accounts.refreshes.record("run-2", [refused_read(updated)])
    assert stored(home, "acme").status is Status.NEEDS_ATTENTION


def test_a_new_key_activates_a_connection_without_failure(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    home.accounts.refreshes.record("run-1", [refused_read(connection, after=timedelta(0))])
    assert home.accounts.refreshes.last_failures(["acme"]) == {"acme": "OpenAI said invalid_key."}
    updated = update(home, "acme", fresh_key(openai))
    assert updated.status is Status.ACTIVE
    assert updated.status_reason is None
    assert updated.may_be_fetched(datetime.now(UTC))
    assert home.accounts.refreshes.last_failures(["acme"]) == {}
    home.accounts.refreshes.record("run-2", [a_read(updated, reason="unreachable")])
    assert home.accounts.refreshes.last_failures(["acme"]) == {"acme": "OpenAI said unreachable."}


@pytest.mark.parametrize("make", [a_read, refused_read])
def test_a_removed_connection_stays_removed_after_any_fetch(file_home, openai, make):
    connection = connect(file_home, "acme", openai.organizations[0].admin_key)
    file_home.accounts.connections.remove("acme")
    file_home.accounts.refreshes.record("run-1", [make(connection, after=timedelta(days=1))])
    assert stored(file_home, "acme").status is Status.REMOVED


@contextmanager
def between_two_transactions(do: Callable[[], object]) -> Iterator[None]:
    """Call a function once, right after the next transaction of any accounts database."""
    waiting = [do]

    def run(*_: object) -> None:
        if waiting:
            waiting.pop()()

    event.listen(Pool, "checkin", run)
    try:
        yield
    finally:
        event.remove(Pool, "checkin", run)


def test_a_key_saved_while_a_fetch_is_recorded_ignores_its_outcome(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    another_process = accounts_of(home.settings)
    key = AdminKey(fresh_key(openai))

    def save_new_key() -> None:
        another_process.connections.save(
            "acme", key, connection.organization, address=LOOPBACK, known=connection
        )

    with between_two_transactions(save_new_key):
        home.accounts.refreshes.record("run-1", [refused_read(connection)])
    assert stored(home, "acme").key_version == 2
    assert stored(home, "acme").status is Status.ACTIVE


def test_an_unknown_user_does_not_disturb_the_log_of_others(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    stranger = Refresh(
        "missing", date(2026, 1, 1), date(2026, 1, 2), connection.changed_at, connection.changed_at, 0
    )
    home.accounts.refreshes.record("run-1", [stranger, a_read(connection)])
    assert [row.user_id for row in home.accounts.refreshes.of_run("run-1")] == ["acme", "missing"]
    assert stored(home, "acme").history_from is not None


def test_messages_with_characters_postgres_rejects_are_stored(home, openai):
    """JSON may hold NUL; one such text must not keep other users' fetches from being logged."""
    known = connect(home, "acme", openai.organizations[0].admin_key)
    named = replace(known.organization, name="Ac\0me")
    home.accounts.connections.save("acme", AdminKey(fresh_key(openai)), named, address=LOOPBACK, known=known)
    assert stored(home, "acme").organization.name == "Acme"
    refused = replace(refused_read(stored(home, "acme")), message="OpenAI said \0.")
    home.accounts.refreshes.record("run-1", [refused])
    assert stored(home, "acme").status_reason == "OpenAI said ."
    assert home.accounts.refreshes.last_failures(["acme"]) == {"acme": "OpenAI said ."}
    assert actions(home, "acme")[-1] == ("needs attention", "OpenAI said .")


def test_a_repeated_run_replaces_its_own_record(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    home.accounts.refreshes.record("run-1", [a_read(connection, reason="unreachable")])
    home.accounts.refreshes.record("run-1", [a_read(connection)])
    home.accounts.refreshes.record("run-1", [])
    rows = home.accounts.refreshes.of_run("run-1")
    assert [(row.outcome, row.reason, row.pages) for row in rows] == [("complete", None, 5)]
    assert rows[0].window_start == a_read(connection).window_start
    assert rows[0].started_at == a_read(connection).started_at


def test_the_promised_refresh_counts_from_the_latest_change(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key, plan="growth")
    now, day = connection.connected_at, timedelta(hours=24)
    names = ("last_refresh_at", "connected_at", "plan_since", "changed_at")
    old = replace(connection, **dict.fromkeys(names, now - timedelta(days=40)))
    assert old.next_refresh_at == now - timedelta(days=39)
    for name in names:
        assert replace(old, **{name: now}).next_refresh_at == now + day
    # A scheduled refresh does not wait for the promised time.
    assert replace(old, plan_since=now, changed_at=now).is_due(now)
    assert old.refreshed_at == old.last_refresh_at
    assert replace(old, connected_at=now).refreshed_at is None
    home.accounts.users.set_plan("acme", "enterprise")
    changed = stored(home, "acme").plan_since
    assert changed is not None
    assert changed > now


def test_runs_are_unpublished_until_they_are_marked(home):
    home.connect(users=["acme", "globex"])
    acme, globex = stored(home, "acme"), stored(home, "globex")
    first, failed = a_read(acme), a_read(globex, reason="unreachable")
    second = a_read(acme, after=timedelta(hours=1))
    home.accounts.refreshes.record("run-1", [first, failed])
    home.accounts.refreshes.record("run-2", [second])
    waiting = {read.run_id: read for read in home.accounts.refreshes.unpublished()}
    assert {run_id: (read.user_id, read.started_at) for run_id, read in waiting.items()} == {
        "run-1": ("acme", first.started_at),
        "run-2": ("acme", second.started_at),
    }

    published_at = second.finished_at + timedelta(seconds=5)
    home.accounts.refreshes.mark_published([waiting["run-2"]], published_at)
    assert home.accounts.refreshes.unpublished() == [waiting["run-1"]]
    assert stored(home, "acme").last_refresh_at == second.started_at
    assert stored(home, "acme").next_refresh_at == second.started_at + timedelta(hours=24)

    home.accounts.refreshes.mark_published([waiting["run-1"]], published_at + timedelta(seconds=5))
    assert home.accounts.refreshes.unpublished() == []
    # The older run was published later: it must not make data older.
    assert stored(home, "acme").last_refresh_at == second.started_at
    assert stored(home, "globex").last_refresh_at is None
    assert home.accounts.refreshes.of_run("run-2")[0].published_at == published_at
    failed_row = home.accounts.refreshes.of_run("run-1")[1]
    assert (failed_row.user_id, failed_row.published_at) == ("globex", None)


def test_only_published_refreshes_are_marked(home):
    """The snapshot was taken before the second user's fetch was recorded."""
    home.connect(users=["acme", "globex"])
    acme, globex = a_read(stored(home, "acme")), a_read(stored(home, "globex"))
    home.accounts.refreshes.record("run-1", [acme])
    in_the_copy = home.accounts.refreshes.unpublished()
    home.accounts.refreshes.record("run-1", [globex])
    home.accounts.refreshes.mark_published(in_the_copy, acme.finished_at)
    assert [read.user_id for read in home.accounts.refreshes.unpublished()] == ["globex"]
    assert stored(home, "globex").last_refresh_at is None


def test_a_backfill_does_not_count_as_a_refresh(home):
    home.connect(users=["acme"])
    read = a_read(stored(home, "acme"))
    old = replace(read, window_start=date(2026, 1, 1), window_end=date(2026, 1, 31))
    home.accounts.refreshes.record("run-1", [old])
    home.accounts.refreshes.mark_published(home.accounts.refreshes.unpublished(), read.finished_at)
    assert stored(home, "acme").last_refresh_at is None
    assert home.accounts.refreshes.unpublished() == []


def test_marking_nothing_as_published_changes_nothing(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    home.accounts.refreshes.record("run-1", [a_read(connection)])
    home.accounts.refreshes.mark_published([], datetime.now(UTC))
    assert [read.run_id for read in home.accounts.refreshes.unpublished()] == ["run-1"]


# The audit trail


def test_the_audit_trail_is_in_chronological_order(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    home.accounts.refreshes.record("run-1", [refused_read(connection)])
    updated = update(home, "acme", fresh_key(openai))
    home.accounts.refreshes.record("run-2", [refused_read(updated)])
    home.accounts.refreshes.record("run-3", [a_read(updated, after=timedelta(days=1))])
    home.accounts.users.set_plan("acme", "scale")
    assert actions(home, "acme") == [
        ("connect", f"{connection.key_hint} at {LOOPBACK}"),
        ("needs attention", "OpenAI said invalid_key."),
        ("update", f"{updated.key_hint} at {LOOPBACK}"),
        ("needs attention", "OpenAI said invalid_key."),
        ("active", None),
        ("plan", "scale"),
    ]
    moments = [entry.at for entry in home.accounts.audit.of_user("acme")]
    assert moments == sorted(moments)
    assert all(at.utcoffset() == timedelta(0) for at in moments)
    assert home.accounts.audit.of_user("globex") == []


def test_the_audit_trail_has_the_first_use_of_a_key_each_day(home, openai):
    connection = connect(home, "acme", openai.organizations[0].admin_key)
    with acting_as("command line"):
        home.accounts.refreshes.record("run-1", [refused_read(connection)])
    home.accounts.refreshes.record("run-2", [a_read(connection)])
    updated = update(home, "acme", fresh_key(openai))
    for run in ("run-3", "run-4"):
        home.accounts.refreshes.record(run, [a_read(updated, after=timedelta(days=1))])
    uses = [entry for entry in home.accounts.audit.of_user("acme") if entry.action == KEY_USE]
    assert [(use.detail, use.actor) for use in uses] == [
        (connection.key_hint, "command line"),
        (updated.key_hint, "daemon"),
    ]
    # The first use on the next day is recorded again.
    with home.accounts.database.write() as database:
        database.execute(update_rows(audit).values(at=datetime.now(UTC) - timedelta(days=1)))
    home.accounts.refreshes.record("run-5", [a_read(updated, after=timedelta(days=1))])
    newest = home.accounts.audit.recent("acme", 1)
    assert [(entry.action, entry.detail) for entry in newest] == [(KEY_USE, updated.key_hint)]


def test_the_audit_trail_names_the_actor(file_home, openai):
    with acting_as("ops@example.com"):
        connect(file_home, "acme", openai.organizations[0].admin_key)
    file_home.accounts.users.set_plan("acme", "scale")
    actors = [(entry.action, entry.actor) for entry in file_home.accounts.audit.of_user("acme")]
    assert actors == [("connect", "ops@example.com"), ("plan", "daemon")]


def test_accounts_are_shared_within_a_process(home, openai):
    connect(home, "acme", openai.organizations[0].admin_key)
    again = accounts_of(home.settings)
    assert again.connections.get("acme") == home.accounts.connections.get("acme")
    assert again.connections.key_ring(["acme"]).key_of("acme").reveal() == openai.organizations[0].admin_key
