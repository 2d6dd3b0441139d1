"""A user moves to another organization: one history, each day from a single organization."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import pytest

from finora_pipeline.accounts import key_ring
from finora_pipeline.accounts import onboarding as connections
from finora_pipeline.accounts.onboarding import Organizations
from finora_pipeline.ingest.fetch import FetchPlan, fetch
from finora_pipeline.ingest.landing import Fetched, Landing
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_simulator import KeyState
from finora_pipeline.warehouse.database import Warehouse
from tests.conftest import QUICK, Installation


def test_the_new_organization_continues_the_old_ones_days(start_openai, install):
    openai = start_openai(organizations=2, days=20)
    installation = install(openai)
    installation.connect(plan="growth", users=["user-0"])
    installation.refresh()
    old_days = {
        row: amount for row, amount in installation.costs("user-0").items() if row[0] < installation.today
    }

    replace_organization(installation, 1)
    (row,) = installation.refresh().refreshes
    assert (row.outcome, row.window_start) == ("complete", installation.today)
    after = installation.costs("user-0")
    assert {row: amount for row, amount in after.items() if row[0] < installation.today} == old_days
    new = openai.truth(1, installation.history(1)).by_row
    assert {row: amount for row, amount in after.items() if row[0] == installation.today} == new
    (row,) = installation.refresh().refreshes
    assert row.window_start == installation.today
    found = installation.sql("SELECT organization_id, max(date) FROM daily_costs GROUP BY ALL ORDER BY 2")
    assert found == [
        (openai.organizations[0].id, installation.today - timedelta(days=1)),
        (openai.organizations[1].id, installation.today),
    ]


def replace_organization(installation: Installation, number: int) -> None:
    """Save the key of another organization for user-0."""
    update_key(
        installation, "user-0", installation.openai.organizations[number].admin_key, replace_organization=True
    )


def update_key(installation: Installation, user_id: str, key: str, **options: bool) -> None:
    async def save() -> None:
        async with open_client(installation.settings.openai_base_url, QUICK) as client:
            await connections.update(installation.accounts, client, user_id, key, **options)

    asyncio.run(save())


@pytest.mark.parametrize("moment", ["before the keys are taken", "after the keys are taken"])
def test_a_run_that_began_before_leaves_the_new_organization_alone(
    start_openai, install, monkeypatch, moment: str
):
    monkeypatch.setattr(key_ring, "LOOK_AGAIN_SECONDS", 0)
    openai = start_openai(organizations=2, days=20)
    installation = install(openai)
    installation.connect(plan="growth", users=["user-0"])
    installation.refresh()
    old = installation.costs("user-0")
    chosen = installation.accounts.connections.all()
    if moment == "before the keys are taken":
        replace_organization(installation, 1)
        ring = installation.accounts.connections.key_ring(["user-0"])
    else:
        ring = installation.accounts.connections.key_ring(["user-0"])
        assert ring.key_of("user-0", chosen[0].key_version).reveal() == openai.organizations[0].admin_key
        replace_organization(installation, 1)

    async def read() -> Fetched:
        plan = FetchPlan.of(chosen, trailing_window(installation.today), installation.today)
        warehouse = Warehouse(installation.settings.home)
        async with open_client(installation.settings.openai_base_url, QUICK) as client:
            organizations = Organizations(client, ring, client.base_url)
            landing = Landing(installation.accounts, warehouse, str(uuid4()), ["user-0"])
            return await fetch(organizations, plan, landing)

    fetched = asyncio.run(read())
    assert (fetched.pages, fetched.failures) == (0, [])
    installation.refresh()
    after = installation.costs("user-0")
    new = openai.truth(1, installation.history(1)).by_row
    assert after == {row: usd for row, usd in old.items() if row[0] < installation.today} | new


def test_pages_fetched_with_the_old_key_are_dropped(start_openai, install):
    openai = start_openai(organizations=2, days=20, services=False)
    installation = install(openai)
    installation.connect(plan="growth", users=["user-0"])

    def replace_it(*_: int) -> None:
        """Called when user-0 is fetched and no page of it has landed."""
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(replace_organization, installation, 1).result()

    result = installation.run(on_user_done=replace_it)
    assert (result.refreshes, result.failed_users) == ([], [])
    connection = installation.accounts.connections.get("user-0")
    assert connection is not None
    assert (connection.read_until, connection.last_attempt_at, connection.directory_read_at) == (None,) * 3
    assert installation.costs("user-0") == {}
    installation.run()
    assert installation.costs("user-0") == openai.truth(1, installation.history(1)).by_row


def test_a_key_revoked_during_its_replacement_is_not_a_failure(start_openai, install):
    openai = start_openai(organizations=2, days=3, services=False)
    installation = install(openai)
    installation.connect(plan="growth")
    key = openai.organizations[0].admin_key
    openai.simulator.set_key_state(key, KeyState.REVOKED)

    def update(*_: int) -> None:
        openai.simulator.set_key_state(key, KeyState.ACTIVE)
        with ThreadPoolExecutor(1) as elsewhere:
            elsewhere.submit(update_key, installation, "user-0", key).result()

    result = installation.run(on_user_done=update)
    assert ([row.user_id for row in result.refreshes], result.failed_users) == (["user-1"], [])
    assert [c.status for c in installation.accounts.connections.all()] == ["active", "active"]
