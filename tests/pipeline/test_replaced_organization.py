"""A user moves to another organization: one history, no day of two."""

import asyncio
from datetime import timedelta

from finora_pipeline.accounts import connections
from finora_pipeline.openai_admin.client import open_client
from tests.conftest import QUICK


def test_the_old_organizations_days_stay_and_the_new_one_goes_on_from_today(start_openai, install):
    openai = start_openai(organizations=2, days=20)
    installation = install(openai)
    installation.connect(plan="growth", users=["user-0"])
    installation.refresh()
    old_days = {
        row: amount for row, amount in installation.costs("user-0").items() if row[0] < installation.today
    }

    async def move() -> None:
        async with open_client(installation.settings.openai_base_url, QUICK) as client:
            await connections.update(
                installation.accounts,
                client,
                "user-0",
                openai.organizations[1].admin_key,
                replace_organization=True,
            )

    asyncio.run(move())
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
