"""Users who are read are published while one organization still does not answer."""

import asyncio
from datetime import UTC, datetime

from finora_pipeline.openai_admin.client import Limits
from finora_pipeline.openai_admin.simulator import Fault, FaultKind
from finora_pipeline.refresh.fetch import Budgets, Fetched, fetch
from finora_pipeline.refresh.serve import publish_refreshes
from finora_pipeline.refresh.windows import trailing_window
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.warehouse import Warehouse
from tests.conftest import Installation

RUN = "run-1"


def test_healthy_users_are_published_while_one_is_waited_for(start_openai, install):
    installation: Installation = install(start_openai(organizations=4, days=10))
    user_ids = installation.connect(plan="trial")
    simulator = installation.openai.simulator
    simulator.add_fault(simulator.organizations[3], Fault(FaultKind.HANG, endpoint="costs"))
    warehouse = Warehouse(installation.settings.home)
    published: list[set[str]] = []

    def publish() -> None:
        load_pending(warehouse, KINDS, RUN)
        refresh_metrics(warehouse, installation.accounts.each_user_id(), installation.today)
        publish_refreshes(installation.accounts, warehouse)
        users = {user for (user,) in installation.sql("SELECT user_id FROM daily_costs WHERE NOT is_sample")}
        published.append(users)
        if len(users) == 3:
            # Not before: the read of the fourth cannot end earlier, so it ends after this copy was published.
            simulator.clear_faults()

    async def read() -> Fetched:
        limits = Limits(timeout_seconds=0.3, retry_seconds=120, first_pause_seconds=0.001)
        admin = OpenAIAdmin(installation.settings.openai_base_url, limits)
        async with admin.organizations(installation.accounts, user_ids) as organizations:
            return await fetch(
                installation.accounts,
                organizations,
                RawPages(warehouse.raw),
                installation.accounts.connections(),
                trailing_window(installation.today),
                datetime.now(UTC).date(),
                RUN,
                publish_ahead=publish,
                budgets=Budgets(quiet_seconds=0.05),
            )

    fetched = asyncio.run(read())
    assert fetched.failures == []
    assert published[-1] == {"user-0", "user-1", "user-2"}
    load_pending(warehouse, KINDS, RUN)
    refresh_metrics(warehouse, installation.accounts.each_user_id(), installation.today)
    publish_refreshes(installation.accounts, warehouse)
    for number in range(4):
        installation.assert_exact(f"user-{number}", number, installation.history(7))
