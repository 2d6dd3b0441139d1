"""A version of finora that knows one more measure of usage: run by test_new_measure.py.

    python -m tests.warehouse.new_measure_child FOLDER

lands and loads two pages in the folder's warehouse and prints what it then holds, as JSON. The row is added
before the modules that read the table are imported, as if it stood in the file.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import duckdb

from finora_pipeline.openai_admin import measures

measures.MEASURES = (
    *measures.MEASURES,
    measures.Measure("num_pages", "pages", "pages", "Pages of documents read by OCR"),
)

from finora_pipeline.openai_admin.endpoints import ENDPOINTS  # noqa: E402
from finora_pipeline.openai_admin.pages import decode_usage  # noqa: E402
from finora_pipeline.warehouse.database import Warehouse  # noqa: E402
from finora_pipeline.warehouse.migrations import columns_of  # noqa: E402
from finora_pipeline.warehouse.rebuild import rebuild  # noqa: E402
from finora_pipeline.warehouse.schema import create_or_migrate  # noqa: E402
from tests.warehouse.landing import DAY, bucket, land, load, page_of  # noqa: E402

ROW = {"model": "gpt-image-2", "num_model_requests": 1}


def main(folder: Path) -> None:
    warehouse = Warehouse(folder)
    with warehouse.writing() as connection:
        unpublished = connection.execute(
            "SELECT month::VARCHAR FROM pipeline.unpublished_months WHERE table_name = 'daily_usage'"
        ).fetchall()
    changed = page_of(bucket([ROW | {"num_pages": 7}]))
    duplicate = page_of(bucket([ROW | {"num_pages": "4"}, ROW | {"num_pages": 5}], DAY + timedelta(days=1)))
    for number, body in enumerate((changed, duplicate)):
        land(warehouse, body, endpoint=ENDPOINTS["images"], run_id=f"new-{number}")
        load(warehouse, "images", f"new-{number}")
    with warehouse.writing() as connection, duckdb.connect(":memory:") as new:
        create_or_migrate(new)
        found = {
            "unpublished": unpublished,
            "is_like_new": columns_of(connection) == columns_of(new),
            "number": connection.execute("SELECT number FROM pipeline.schema_version").fetchall(),
            "column": connection.execute(
                "SELECT data_type, comment FROM duckdb_columns() WHERE table_name = 'daily_usage' "
                "ORDER BY column_index DESC LIMIT 1"
            ).fetchall(),
            "rows": connection.execute(
                "SELECT date::VARCHAR, requests, images, pages FROM named_usage ORDER BY date"
            ).fetchall(),
            "revisions": connection.execute("SELECT old_other, new_other FROM usage_revisions").fetchall(),
        }
    counts = [result.num_pages for one in decode_usage(changed.encode()).data for result in one.results]
    differences = [str(difference) for difference in rebuild(warehouse).differences]
    print(json.dumps(found | {"decoded": counts, "differences": differences}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
