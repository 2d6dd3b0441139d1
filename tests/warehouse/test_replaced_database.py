"""A database replaces the warehouse: changes only in the old one's log stay out."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.raw import RawPages
from finora_pipeline.warehouse.rebuild import replace_warehouse
from finora_pipeline.warehouse.retention import purge
from finora_pipeline.warehouse.statements import transaction
from tests.warehouse.landing import cost_day, cost_row, land, load, page_of, rows

USERS = "SELECT user_id FROM pipeline.stale_users ORDER BY user_id"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """A warehouse whose writer was killed after a commit: the change is only in the log."""
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
def test_the_old_databases_log_is_not_replayed_into_the_new_one(
    replace: Callable[[Warehouse], object], left: list[tuple[str]], warehouse: Warehouse
):
    replace(warehouse)
    assert rows(warehouse, USERS) == left


def test_changes_only_in_the_log_are_not_lost(warehouse: Warehouse):
    assert rows(warehouse, USERS) == [("acme",), ("zeta",)]


@pytest.mark.parametrize("version", ["this", "another", "another without a ledger"])
def test_a_revision_whose_raw_file_was_not_moved_is_recorded_once(version: str, tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    revisions = "SELECT old_amount_usd, new_amount_usd FROM cost_revisions ORDER BY ALL"
    noon = datetime(2026, 6, 20, 12, tzinfo=UTC)
    for hour, run_id, amount in ((0, "run-1", '"1.00"'), (1, "run-2", '"3.00"')):
        fetched_at = noon + timedelta(hours=hour)
        land(warehouse, page_of(cost_day([cost_row(amount)])), run_id=run_id, fetched_at=fetched_at)
        load(warehouse, run_id=run_id)
    recorded = rows(warehouse, revisions)
    assert len(recorded) == 1
    # Where a process that is killed after its commit leaves it.
    (loaded,) = [file for file in RawPages(warehouse.raw).archived() if file.run_id == "run-2"]
    if version != "another without a ledger":
        loaded.path.rename(warehouse.raw / "pending" / loaded.name)
    with warehouse.writing() as connection:
        if version != "this":
            connection.execute("DROP TABLE pipeline.schema_version")
            connection.execute("ALTER TABLE daily_usage ADD COLUMN another VARCHAR")
        if version == "another without a ledger":
            connection.execute("DROP TABLE pipeline.loaded_files")

    assert replace_warehouse(warehouse) == 2
    load(warehouse, run_id="run-3")

    assert rows(warehouse, revisions) == recorded
    assert rows(warehouse, "SELECT amount_usd FROM daily_costs") == [(Decimal(3),)]
    assert RawPages(warehouse.raw).pending() == []


def test_revisions_of_a_table_with_fewer_columns_are_kept(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    revision = "SELECT user_id, service, old_requests, new_requests, vector_store_id FROM usage_revisions"
    with warehouse.writing() as connection:
        connection.execute(
            "INSERT INTO usage_revisions BY NAME SELECT 'acme' AS user_id, 'openai' AS provider, "
            "DATE '2026-06-14' AS date, 'images' AS service, now() AS observed_at, 1 AS old_requests, "
            "2 AS new_requests"
        )
        # As an earlier version made it.
        connection.execute("ALTER TABLE usage_revisions DROP COLUMN vector_store_id")
        connection.execute("UPDATE pipeline.schema_version SET number = 2")

    replace_warehouse(warehouse)

    assert rows(warehouse, revision) == [("acme", "images", 1, 2, None)]


@pytest.mark.parametrize("content", [b"no database", None], ids=["another file", "cut"])
def test_a_damaged_database_is_set_aside_and_rebuilt(
    content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])))
    load(warehouse)
    held = warehouse.database.read_bytes()
    damaged = held[: len(held) // 3] if content is None else content
    warehouse.database.write_bytes(damaged)
    replace_warehouse(warehouse)
    assert rows(warehouse, "SELECT amount_usd FROM daily_costs") == [(Decimal("1.00"),)]
    assert warehouse.database.with_name("damaged.duckdb").read_bytes() == damaged
    assert "The warehouse is damaged" in caplog.text
