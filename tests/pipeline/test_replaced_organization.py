"""A user moves to another organization: one history, no day of two."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from finora_pipeline.accounts import connections, store
from finora_pipeline.accounts.model import Refresh
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.refresh.fetch import Fetched, fetch
from finora_pipeline.refresh.windows import trailing_window
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.warehouse import Warehouse
from tests.conftest import QUICK, Installation


def test_the_old_organizations_days_stay_and_the_new_one_goes_on_from_today(start_openai, install):
    openai = start_openai(organizations=2, days=20)
    installation = install(openai)
    installation.connect(plan="growth", users=["user-0"])
    installation.refresh()
    old_days = {
        row: amount for row, amount in installation.costs("user-0").items() if row[0] < installation.today
    }

    replace_organization(installation, 1)
    (row,) = installation.refresh().refreshes
    assert (row["outcome"], row["window_start"]) == ("complete", installation.today)
    after = installation.costs("user-0")
    assert {row: amount for row, amount in after.items() if row[0] < installation.today} == old_days
    new = openai.truth(1, installation.history(1)).by_row
    assert {row: amount for row, amount in after.items() if row[0] == installation.today} == new
    (row,) = installation.refresh().refreshes
    assert row["window_start"] == installation.today
    found = installation.sql("SELECT organization_id, max(date) FROM daily_costs GROUP BY ALL ORDER BY 2")
    assert found == [
        (openai.organizations[0].id, installation.today - timedelta(days=1)),
        (openai.organizations[1].id, installation.today),
    ]


def replace_organization(installation: Installation, number: int) -> None:
    """Saves the key of another organization for user-0."""

    async def move() -> None:
        async with open_client(installation.settings.openai_base_url, QUICK) as client:
            key = installation.openai.organizations[number].admin_key
            await connections.update(installation.accounts, client, "user-0", key, replace_organization=True)

    asyncio.run(move())


@pytest.mark.parametrize("moment", ["before the keys are taken", "after the keys are taken"])
def test_a_run_that_began_before_leaves_the_new_organization_alone(
    start_openai, install, monkeypatch, moment: str
):
    monkeypatch.setattr(store, "LOOK_AGAIN_SECONDS", 0)
    openai = start_openai(organizations=2, days=20)
    installation = install(openai)
    installation.connect(plan="growth", users=["user-0"])
    installation.refresh()
    old = installation.costs("user-0")
    chosen = installation.accounts.connections()
    if moment == "before the keys are taken":
        replace_organization(installation, 1)
        ring = installation.accounts.key_ring(["user-0"])
    else:
        ring = installation.accounts.key_ring(["user-0"])
        assert ring.key_of("user-0", chosen[0].key_version).reveal() == openai.organizations[0].admin_key
        replace_organization(installation, 1)

    async def read() -> Fetched:
        window = trailing_window(installation.today)
        async with open_client(installation.settings.openai_base_url, QUICK) as client:
            raw = RawPages(Warehouse(installation.settings.home).raw)
            organizations = connections.Organizations(client, ring)
            run_id = str(uuid4())
            return await fetch(
                installation.accounts, organizations, raw, chosen, window, installation.today, run_id
            )

    fetched = asyncio.run(read())
    assert (fetched.pages, fetched.failures) == (0, [])
    installation.refresh()
    after = installation.costs("user-0")
    new = openai.truth(1, installation.history(1)).by_row
    assert after == {row: usd for row, usd in old.items() if row[0] < installation.today} | new


def test_what_the_old_key_still_read_says_nothing_of_the_new_one(start_openai, install):
    openai = start_openai(organizations=2, days=20)
    installation = install(openai)
    installation.connect(plan="growth", users=["user-0"])
    old = installation.accounts.connection("user-0")
    replace_organization(installation, 1)
    now = datetime.now(UTC)
    today = installation.today
    read = Refresh(
        "user-0",
        today - timedelta(days=3),
        today + timedelta(days=1),
        now,
        now,
        pages=3,
        cost_groupings={"member": True},
        directory_read_at=now,
        organization_id=openai.organizations[0].id,
        key_version=old.key_version,
    )
    before = installation.accounts.connection("user-0")
    installation.accounts.record_refreshes("run", [read])
    assert installation.accounts.connection("user-0") == before
    assert [row["outcome"] for row in installation.accounts.refreshes_of("run")] == ["complete"]
