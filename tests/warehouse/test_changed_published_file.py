"""After any foreign change of the published files the next publish is right and reports it."""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from finora_pipeline.alerts.conditions import of_disks, of_published
from finora_pipeline.cli import main
from finora_pipeline.reading import connect
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.publish import Published, publish
from finora_pipeline.warehouse.published_record import PublishedRecord, read_record, write_record
from tests.warehouse.landing import cost_day, cost_row, land, load, page_of

TODAY = datetime.now(UTC).date()
PARQUET = f"parquet/daily_costs/month={TODAY:%Y-%m}/daily_costs.parquet"
# Changes the published file and dies before closing it, which leaves a write-ahead log.
DIES = """
import duckdb, os, signal, sys
connection = duckdb.connect(sys.argv[1])
connection.execute("SET checkpoint_threshold = '1GB'")
for statement in sys.argv[2:]:
    connection.execute(statement)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row('"2.00"')], TODAY)))
    load(warehouse)
    refresh_metrics(warehouse, TODAY)
    assert published(warehouse).repair is None
    return warehouse


def record_of(warehouse: Warehouse) -> PublishedRecord:
    record = read_record(warehouse)
    assert record is not None
    return record


def repaired_files(warehouse: Warehouse) -> tuple[str, ...]:
    """Publish; return the files that it repaired."""
    repair = published(warehouse).repair
    return repair.files if repair else ()


def published(warehouse: Warehouse) -> Published:
    return publish(warehouse, list, TODAY)


def dies_after(warehouse: Warehouse, *statements: str) -> None:
    command = [sys.executable, "-c", DIES, str(warehouse.published_database), *statements]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert warehouse.published_database.with_name("finora.duckdb.wal").exists()


def assert_right(warehouse: Warehouse) -> None:
    """Assert that all readers see the warehouse's figures, and no extra files exist."""
    with connect(warehouse.published_database) as connection:
        assert connection.execute("SELECT amount_usd FROM daily_costs").fetchall() == [(Decimal(2),)]
    with duckdb.connect(warehouse.published_database, read_only=True) as connection:
        assert connection.execute("SELECT sum(amount_usd) FROM daily_costs").fetchall() == [(Decimal(2),)]
        assert connection.execute("SELECT count(*) FROM user_metrics").fetchall() != [(0,)]
    assert pq.read_table(warehouse.published / PARQUET)["amount_usd"].to_pylist() == [Decimal(2)]
    left = {path.relative_to(warehouse.published).as_posix() for path in warehouse.published.rglob("*.*")}
    assert left == set(record_of(warehouse).files)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE daily_costs SET amount_usd = 1000",
        "DELETE FROM daily_costs",
        "INSERT INTO daily_costs FROM daily_costs",
        "DROP TABLE user_metrics",
        "CREATE TABLE notes (text VARCHAR)",
        "ALTER TABLE daily_costs RENAME TO old_costs",
    ],
)
def test_a_write_ahead_log_of_the_published_file_is_never_replayed(warehouse, statement):
    dies_after(warehouse, statement)
    copy = published(warehouse)
    assert copy.different == {}
    assert copy.repair
    assert copy.repair.files == ("finora.duckdb.wal",)
    assert_right(warehouse)
    assert published(warehouse).repair is None
    assert_right(warehouse)


def test_a_checkpointed_change_is_undone_and_reported(warehouse, caplog):
    with duckdb.connect(warehouse.published_database) as connection:
        connection.execute("UPDATE daily_costs SET amount_usd = 1000")
    copy = published(warehouse)
    assert copy.repair
    assert copy.repair.files == ("finora.duckdb",)
    assert "Another program had written to the published file: finora.duckdb." in caplog.text
    assert_right(warehouse)


def test_a_damaged_published_file_is_published_again_and_reported(warehouse):
    with warehouse.published_database.open("r+b") as file:
        file.write(bytes(8192))
    assert repaired_files(warehouse) == ("finora.duckdb",)
    assert_right(warehouse)


@pytest.mark.parametrize("name", ["finora.duckdb", PARQUET])
def test_a_deleted_published_file_is_published_again_and_reported(warehouse, name):
    (warehouse.published / name).unlink()
    assert repaired_files(warehouse) == (name,)
    assert_right(warehouse)


def test_changed_and_foreign_parquet_files_are_fixed_and_reported(warehouse):
    file = warehouse.published / PARQUET
    table = pq.read_table(file)
    file.chmod(0o600)
    pq.write_table(table.slice(0, 0), file)
    pq.write_table(table, file.with_name("more.parquet"))
    folder = file.parent.with_name("month=1999-01")
    folder.mkdir()
    pq.write_table(table, folder / "daily_costs.parquet")
    files = repaired_files(warehouse)
    assert {name.rpartition("/")[2] for name in files} == {"daily_costs.parquet", "more.parquet"}
    assert len(files) == 3
    assert_right(warehouse)


@pytest.mark.parametrize("month", ["old", "2026-13", "2026-06 copy"])
def test_a_folder_not_named_as_a_month_does_not_stop_publishing(warehouse, month):
    foreign = warehouse.published / "parquet" / "daily_costs" / f"month={month}" / "daily_costs.parquet"
    foreign.parent.mkdir()
    foreign.write_bytes((warehouse.published / PARQUET).read_bytes())
    assert repaired_files(warehouse) == (foreign.relative_to(warehouse.published).as_posix(),)
    assert not foreign.exists()


def test_a_folder_without_its_record_is_completed_and_checked(warehouse):
    warehouse.database.with_name("published.json").unlink()
    (warehouse.published / PARQUET).unlink()
    assert published(warehouse).repair is None
    assert_right(warehouse)
    warehouse.database.with_name("published.json").write_text("{")
    dies_after(warehouse, "DELETE FROM daily_costs")
    assert repaired_files(warehouse) == ("finora.duckdb.wal",)
    assert_right(warehouse)


def test_a_moved_folder_and_new_modes_are_not_a_change(warehouse):
    for path in warehouse.published.rglob("*.parquet"):
        path.chmod(0o600)
    before = warehouse.published_database.stat()
    copy = warehouse.published_database.with_name(".copy")
    copy.write_bytes(warehouse.published_database.read_bytes())
    os.utime(copy, ns=(before.st_atime_ns, before.st_mtime_ns))
    copy.rename(warehouse.published_database)
    assert published(warehouse).repair is None


def test_files_of_a_killed_publisher_are_not_a_foreign_change(warehouse):
    record = record_of(warehouse)
    write_record(warehouse, PublishedRecord(dict.fromkeys(record.files, (1, 1)), is_publishing=True))
    copy = published(warehouse)
    assert copy.repair is None
    assert_right(warehouse)


def test_a_repair_stays_open_for_a_day_and_a_change_until_repaired(warehouse):
    now = datetime.now(UTC)
    assert of_published(warehouse, now) == []
    dies_after(warehouse, "DELETE FROM daily_costs")
    (condition,) = of_published(warehouse, now)
    assert "Another program has written to the published file: finora.duckdb.wal." in condition.message
    published(warehouse)
    (condition,) = of_published(warehouse, now)
    assert "Another program had written to the published file: finora.duckdb.wal." in condition.message
    assert of_published(warehouse, now + timedelta(days=1, minutes=1)) == []


def test_alerts_and_status_report_a_change_without_a_daemon(start_openai, install):
    installation = install(start_openai(days=2))
    installation.connect()
    installation.refresh()
    dies_after(Warehouse(installation.settings.home), "DELETE FROM daily_costs")
    shown = CliRunner().invoke(main, ["alarms", "--json"])
    assert [alarm["key"] for alarm in json.loads(shown.stdout)] == ["published/changed"]
    status = CliRunner().invoke(main, ["status", "--json"])
    assert "Another program has written to" in status.stderr
    assert [line["user_id"] for line in json.loads(status.stdout)] == ["user-0"]


def test_low_disk_space_is_an_alert(warehouse, tmp_path):
    assert list(of_disks(warehouse, tmp_path / "dagster", least_bytes=0)) == []
    (condition,) = of_disks(warehouse, tmp_path / "dagster", least_bytes=10**18)
    assert condition.message.startswith(f"The disk of {warehouse.home} has only ")
    assert condition.message.endswith("Free some, or move the folder to a larger disk.")
