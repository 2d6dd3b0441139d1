"""An endpoint added as one row here is fetched, landed, loaded and published."""

import asyncio

from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.endpoints import Endpoint
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import decode_usage
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from tests.conftest import Installation

ROW = Endpoint(
    name="audio_speeches",
    result_object="organization.usage.audio_speeches.result",
    dimensions=("project_id", "user_id", "api_key_id", "model"),
    measures=("characters", "num_model_requests"),
    group_by=("project_id", "user_id", "api_key_id", "model"),
)


def test_one_new_row_adds_an_endpoint(start_openai, install):
    installation: Installation = install(start_openai(days=3))
    installation.connect(plan="trial")
    warehouse = Warehouse(installation.settings.home)
    window = trailing_window(installation.today)

    admin = OpenAIAdmin.of(installation.settings)
    fetched = installation.fetch("one-row", openai_admin=admin, endpoints=(ROW,), with_directory=False)
    assert fetched.failures == []
    rows = load_pending(warehouse, KINDS, "one-row").usage_rows
    with warehouse.writing() as connection:
        found = connection.execute(
            "SELECT service, count(*), sum(characters), sum(requests) FROM daily_usage GROUP BY service"
        ).fetchall()

    async def served_totals() -> tuple[int, int]:
        async with open_client(installation.openai.base_url) as client:
            key = installation.openai.organizations[0].admin_key
            pages = await client.organization(AdminKey(key)).fetch(ROW, window, ())
        results = [r for page in pages for bucket in decode_usage(page.body).data for r in bucket.results]
        return sum(r.characters or 0 for r in results), sum(r.num_model_requests or 0 for r in results)

    assert rows > 0
    assert found == [("audio_speeches", rows, *asyncio.run(served_totals()))]
