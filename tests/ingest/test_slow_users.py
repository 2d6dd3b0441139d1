"""Fetched users are published while one organization does not answer yet."""

from finora_pipeline.ingest.fetch import Budgets
from finora_pipeline.ingest.landing import Landing
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.openai_admin.client import Limits
from finora_pipeline.openai_simulator import Fault, FaultKind
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.conftest import Installation

RUN = "run-1"


def test_healthy_users_are_published_while_one_does_not_answer(start_openai, install):
    installation: Installation = install(start_openai(organizations=4, days=10))
    installation.connect(plan="trial")
    simulator = installation.openai.simulator
    simulator.add_fault(simulator.organizations[3], Fault(FaultKind.HANG, endpoint="costs"))
    warehouse = Warehouse(installation.settings.home)
    published: list[set[str]] = []

    class Watched(Landing):
        def load_and_publish(self) -> None:
            super().load_and_publish()
            query = "SELECT user_id FROM daily_costs"
            users = {user for (user,) in installation.sql(query)}
            published.append(users)
            if len(users) == 3:
                # Only now may the fourth answer: its fetch ends after this snapshot was published.
                simulator.clear_faults()

    limits = Limits(timeout_seconds=0.3, retry_seconds=120, first_pause_seconds=0.001)
    admin = OpenAIAdmin(installation.settings.openai_base_url, limits)
    fetched = installation.fetch(
        RUN, openai_admin=admin, landing=Watched, budgets=Budgets(quiet_seconds=0.05)
    )
    assert fetched.failures == []
    assert published[-1] == {"user-0", "user-1", "user-2"}
    load_pending(warehouse, KINDS, RUN)
    refresh_metrics(warehouse, installation.today)
    publish_refreshes(installation.accounts, warehouse)
    for number in range(4):
        installation.assert_exact(f"user-{number}", number, installation.history(7))
