"""Quarantine: it does not grow, stays visible, and is purged with its user."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from finora_pipeline.openai_admin.endpoints import PROJECTS
from finora_pipeline.openai_admin.pages import Page, PageHead, Window
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import load_pending
from finora_pipeline.warehouse.raw import PageSet, RawPages
from finora_pipeline.warehouse.retention import count_user_rows, purge
from tests.warehouse.landing import DAY, load, rows
from tests.warehouse.test_portions import AMOUNTS, NOON, page_set

LATER = NOON + timedelta(hours=1)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def names(body: bytes, fetched_at=NOON) -> PageSet:
    """Return a list of projects with any body."""
    window = Window(DAY, DAY + timedelta(days=1))
    return PageSet("acme", [Page(PROJECTS, window, ("",), 1, fetched_at, body, PageHead(False, None, []))])


def of_projects(warehouse: Warehouse, run_id: str, page_set: PageSet) -> int:
    """Land and load a list; return the number of quarantined files."""
    RawPages(warehouse.raw).writer(run_id).land([page_set])
    load_pending(warehouse, [PROJECTS.kind], run_id)
    return len(RawPages(warehouse.raw).quarantined())


def test_pages_that_fail_at_each_refresh_are_kept_once(warehouse: Warehouse):
    raw = RawPages(warehouse.raw)
    for number in range(3):
        raw.writer(f"run-{number}").land([page_set("acme", '"x"', NOON + timedelta(hours=number))])
        load(warehouse, run_id=f"run-{number}")
    assert [one.file.run_id for one in raw.quarantined()] == ["run-2"]


def test_a_directory_list_is_quarantined_until_a_newer_one_loads(warehouse: Warehouse):
    assert of_projects(warehouse, "run-1", names(b'{"data": [{"id":')) == 1
    assert of_projects(warehouse, "run-2", names(b'{"data": [{"id": "p", "name": "P"}]}', LATER)) == 0


def test_a_purge_removes_quarantined_pages(warehouse: Warehouse):
    raw = RawPages(warehouse.raw)
    raw.writer("run-1").land([page_set("acme", '"x"'), page_set("globex", '"x"')])
    load(warehouse)
    (raw.folder / "pending" / "costs~run-2~1.parquet").write_bytes(b"PAR1 and nothing of it")
    load(warehouse)
    assert count_user_rows(warehouse, "acme")["raw/quarantine"] == 1
    purge(warehouse, "acme")
    assert [one.user_ids for one in raw.quarantined()] == [["globex"]]
    assert not any(count_user_rows(warehouse, "acme").values())


@pytest.mark.parametrize("place", ["footer", "pages"])
def test_a_damaged_file_stops_no_other(warehouse: Warehouse, place: str):
    raw = RawPages(warehouse.raw)
    raw.writer("run-1").land([page_set("globex", '"1.00"')])
    raw.writer("run-2").land([page_set("acme", '"1.00"')])
    file = raw.pending()[1].path
    column = pq.read_metadata(file).row_group(0).column(10)
    data = bytearray(file.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    start = len(data) - 8 - length if place == "footer" else column.data_page_offset
    data[start : start + 40] = bytes(byte ^ 0x55 for byte in data[start : start + 40])
    file.write_bytes(data)
    load(warehouse)
    assert rows(warehouse, AMOUNTS) == [("globex", Decimal(1))]
    assert [one.reason for one in raw.quarantined()] == ["The file is damaged."]


def test_a_split_interrupted_after_its_first_part_is_repeated(warehouse: Warehouse):
    raw = RawPages(warehouse.raw)
    raw.writer("run-1").land([page_set(f"user-{n}", '"x"' if n == 1 else '"1.00"') for n in range(4)])
    (file,) = raw.pending()
    content = file.path.read_bytes()
    raw.split(file)[1].path.unlink()
    file.path.write_bytes(content)
    load(warehouse)
    assert [user for user, _ in rows(warehouse, AMOUNTS)] == ["user-0", "user-2", "user-3"]
    assert [one.user_ids for one in raw.quarantined()] == [["user-1"]]
