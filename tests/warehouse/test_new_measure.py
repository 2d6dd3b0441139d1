"""A measure is one row: added to the table of measures, it is decoded, loaded, summed and compared."""

import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.schema import SCHEMA_NUMBER
from tests.warehouse.landing import DAY, bucket, land, load, page_of, rows

BEFORE, AFTER = DAY - timedelta(days=1), DAY + timedelta(days=1)


def land_images(warehouse: Warehouse, run_id: str, **result: int) -> None:
    page = page_of(*(bucket([{"model": "gpt-image-2"} | result], day) for day in (BEFORE, DAY)))
    land(warehouse, page, endpoint=ENDPOINTS["images"], run_id=run_id)
    load(warehouse, "images", run_id)


def test_a_new_measure_is_one_row(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    land_images(warehouse, "run-1", images=2, num_model_requests=1)
    with warehouse.writing() as connection:
        connection.execute("TRUNCATE pipeline.unpublished_months")

    child = subprocess.run(
        [sys.executable, "-m", "tests.warehouse.new_measure_child", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(child.stdout)

    assert found == {
        "unpublished": [[f"{DAY:%Y-%m}-01"]],
        "is_like_new": True,
        "number": [[SCHEMA_NUMBER]],
        "column": [["BIGINT", "Pages of documents read by OCR; NULL if the service does not count it"]],
        "rows": [
            [str(BEFORE), 1, 2, None],
            [str(DAY), 1, None, 7],
            [str(AFTER), 2, None, 9],
        ],
        "revisions": [[2, 7]],
        "decoded": [7],
        "differences": [],
    }
    # An earlier version loads on, and leaves the column it does not know empty.
    land_images(warehouse, "run-2", images=3, num_model_requests=4)
    assert rows(warehouse, "SELECT date, requests, images, pages FROM daily_usage ORDER BY date") == [
        (BEFORE, 4, 3, None),
        (DAY, 4, 3, None),
        (AFTER, 2, None, 9),
    ]
