"""Limits of a user in a run: time, bytes, and pages that cannot be loaded."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from finora_pipeline.accounts.model import Connection, Status
from finora_pipeline.cli import main
from finora_pipeline.ingest.fetch import BUDGETS
from finora_pipeline.ingest.landing import Fetched, Landing
from finora_pipeline.openai_admin.pages import PageHead
from finora_pipeline.openai_simulator import Fault, FaultKind
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.raw import RawPages, landing
from tests.conftest import QUICK, Installation


@pytest.fixture
def installation(start_openai: Callable[..., Any], install: Callable[..., Installation]) -> Installation:
    """Two users of the enterprise plan, not fetched yet."""
    made = install(start_openai(organizations=2, days=3, services=False))
    made.connect(plan="enterprise")
    return made


def fetched(installation: Installation, run_id: str = "run-1", **options: Any) -> Fetched:
    """Fetch all users with a time limit for silent servers; return the outcome."""
    limits = replace(QUICK, timeout_seconds=60.0)
    admin = OpenAIAdmin(installation.settings.openai_base_url, limits)
    return installation.fetch(run_id, openai_admin=admin, **options)


def connection_of(installation: Installation, user_id: str) -> Connection:
    connection = installation.accounts.connections.get(user_id)
    assert connection is not None
    return connection


def hang(installation: Installation, number: int) -> None:
    organization = installation.openai.organizations[number]
    installation.openai.simulator.add_fault(organization, Fault(FaultKind.HANG))


def test_a_user_over_the_time_limit_fails_alone(installation: Installation):
    hang(installation, 1)
    (failure,) = fetched(
        installation, budgets=replace(BUDGETS, user_seconds=3.0, history_seconds=3.0)
    ).failures
    assert (failure.user_id, failure.reason, failure.permanent) == ("user-1", "too_slow", False)
    assert "took longer than" in (failure.message or "")
    assert connection_of(installation, "user-1").status is Status.ACTIVE
    assert [row.outcome for row in installation.accounts.refreshes.of_run("run-1")] == ["complete", "failed"]


def test_others_are_published_while_one_user_is_slow(installation: Installation):
    hang(installation, 1)
    published: list[list[str]] = []

    class Publishing(Landing):
        def load_and_publish(self) -> None:
            rows = installation.accounts.refreshes.of_run("run-1")
            published.append([row.user_id for row in rows])

    budgets = replace(BUDGETS, history_seconds=1.5, quiet_seconds=0.2)
    fetched(installation, landing=Publishing, budgets=budgets)
    assert published == [["user-0"]]


def test_a_user_over_the_byte_limit_fails_alone_and_lands_nothing(installation: Installation):
    result = fetched(installation, budgets=replace(BUDGETS, user_bytes=100))
    assert {failure.reason for failure in result.failures} == {"answer_too_large"}
    assert RawPages(installation.settings.home / "raw").pending() == []


def test_unloadable_pages_stop_no_other_user_and_are_fetched_again(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    """As if a check had accepted a page that SQL cannot read."""
    whole = landing.canonical
    bad = installation.openai.organizations[1].id.encode()

    def let_through(page: Any) -> bytes | None:
        is_bad = bad in page.body and isinstance(page.head, PageHead) and page.endpoint.kind == "costs"
        return page.body.replace(b'"value":"', b'"value":"x') if is_bad else whole(page)

    with monkeypatch.context() as patch:
        patch.setattr(landing, "canonical", let_through)
        result = installation.refresh()
    assert [row.user_id for row in result.failed_users] == ["user-1"]
    installation.assert_exact("user-0", 0, installation.history(3))
    assert installation.costs("user-1") == {}
    connection = connection_of(installation, "user-1")
    assert (connection.status, connection.read_until) == (Status.ACTIVE, None)
    alarms = CliRunner().invoke(main, ["alarms"])
    assert "cannot be loaded" in " ".join(alarms.output.split())
    rebuilt = CliRunner().invoke(main, ["rebuild"])
    assert "Raw file that cannot be loaded" in rebuilt.output

    simulator = installation.openai.simulator
    assert simulator.frozen_now is not None
    simulator.frozen_now += timedelta(hours=1)
    assert installation.refresh().failed_users == []
    installation.assert_exact("user-1", 1, installation.history(3))
    assert "cannot be loaded" not in CliRunner().invoke(main, ["alarms"]).output


def test_a_key_that_is_about_to_expire_is_reported(installation: Installation):
    now = datetime.now(UTC)
    connection = connection_of(installation, "user-0")
    assert connection.expiry_warning(now) is None
    soon = replace(connection, key_expires_at=now + timedelta(days=13))
    assert "expires on" in (soon.expiry_warning(now) or "")
    assert replace(connection, key_expires_at=now + timedelta(days=15)).expiry_warning(now) is None
    assert "expired on" in (replace(connection, key_expires_at=now).expiry_warning(now) or "")
