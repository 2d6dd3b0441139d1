"""A database is put in the warehouse's place: what stood in the old one's log alone stays out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from finora_pipeline.warehouse.rebuild import replace_warehouse
from finora_pipeline.warehouse.retention import purge
from finora_pipeline.warehouse.warehouse import Warehouse, transaction
from tests.warehouse.landing import rows

USERS = "SELECT user_id FROM pipeline.stale_users ORDER BY user_id"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """As one whose writer was killed after a commit: what it wrote stands in the log alone."""
    warehouse = Warehouse(tmp_path)
    with warehouse.writing():
        pass
    files = [warehouse.database, warehouse.database.with_name("warehouse.duckdb.wal")]
    with warehouse.writing() as connection:
        with transaction(connection):
            connection.execute(
                "INSERT INTO pipeline.stale_users VALUES ('acme', 'openai'), ('zeta', 'openai')"
            )
        killed = [file.read_bytes() for file in files]
    for file, content in zip(files, killed, strict=True):
        file.write_bytes(content)
    return warehouse


@pytest.mark.parametrize(
    ("replace", "left"),
    [(lambda warehouse: purge(warehouse, "acme"), [("zeta",)]), (replace_warehouse, [])],
)
def test_the_log_of_the_old_database_is_not_replayed_into_the_new_one(
    replace: Callable[[Warehouse], object], left: list[tuple[str]], warehouse: Warehouse
):
    replace(warehouse)
    assert rows(warehouse, USERS) == left


def test_what_only_the_log_holds_is_not_lost(warehouse: Warehouse):
    assert rows(warehouse, USERS) == [("acme",), ("zeta",)]
