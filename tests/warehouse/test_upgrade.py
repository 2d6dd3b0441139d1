"""Warehouses of older versions are migrated in place or, where that fails, rebuilt."""

import shutil
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from finora_pipeline.warehouse import migrations, schema
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.migrations import Migration, columns_of, create_first_number
from finora_pipeline.warehouse.publish import publish
from finora_pipeline.warehouse.rebuild import bring_up_to_date
from finora_pipeline.warehouse.schema import (
    SCHEMA_NUMBER,
    WarehouseOutdated,
    WarehouseTooNew,
    create_or_migrate,
)
from tests.warehouse.landing import FIXTURES, cost_day, cost_row, land, load, page_of, rows

INSTALLATIONS = FIXTURES / "installations"
# The tables that had sample rows.
SAMPLED = (
    "daily_costs",
    "daily_usage",
    "daily_model_costs",
    "daily_member_costs",
    "daily_key_costs",
    "user_metrics",
)
# Those of them that earlier versions wrote as Parquet.
SAMPLED_MONTHLY = SAMPLED[:-1]
VERSION = "SELECT number FROM pipeline.schema_version"


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """A warehouse with a single cost row."""
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row('"1.25"')])))
    load(warehouse)
    return warehouse


def reworded(monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Change comments in the table definitions of the program."""
    original = schema.section

    def changed(table: str, name: str, /, **texts: str) -> str:
        text = original(table, name, **texts)
        return text.replace(old, new) if name == "define" else text

    monkeypatch.setattr(schema, "section", changed)
    schema.definitions_hash.cache_clear()
    monkeypatch.setattr(schema, "definitions_hash", lambda: f"definitions with {new}")


def test_a_migrated_warehouse_has_the_tables_of_a_new_one(memory):
    create_first_number(memory)
    for migration in migrations.MIGRATIONS:
        migration.apply(memory)
    with duckdb.connect(":memory:") as new:
        create_or_migrate(new)
        assert columns_of(memory) == columns_of(new)


def test_numbers_of_migrations_follow_each_other():
    assert [one.number for one in migrations.MIGRATIONS] == list(range(1, SCHEMA_NUMBER + 1))


@pytest.fixture
def sampled(tmp_path: Path) -> Warehouse:
    """A folder of an earlier version, with sample rows of the user `quiet` in tables and Parquet.

    They are a real user's rows of that folder, copied as that version's own.
    """
    version = "bfe35cc"
    with tarfile.open(INSTALLATIONS / f"{version}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    warehouse = Warehouse(tmp_path / version)
    with duckdb.connect(warehouse.database) as connection:
        for table in SAMPLED:
            connection.execute(
                f"INSERT INTO {table} SELECT * REPLACE ('quiet' AS user_id, true AS is_sample) "
                f"FROM {table} WHERE user_id = 'acme'"
            )
        connection.execute(
            "INSERT INTO pipeline.loaded_days "
            "SELECT * REPLACE ('quiet' AS user_id) FROM pipeline.loaded_days WHERE user_id = 'acme'"
        )
        for table in SAMPLED_MONTHLY:
            for file in (warehouse.published / "parquet" / table).glob("month=*/*.parquet"):
                days = f"FROM {table} WHERE strftime(date, 'month=%Y-%m') = '{file.parent.name}'"
                connection.execute(f"COPY ({days}) TO '{file}' (FORMAT parquet)")
    return warehouse


def users_in_parquet(warehouse: Warehouse, table: str) -> set[str]:
    files = (warehouse.published / "parquet" / table).glob("month=*/*.parquet")
    return {user for file in files for user in pq.read_table(file)["user_id"].to_pylist()}


@pytest.mark.slow
def test_sample_rows_of_an_earlier_version_are_deleted(sampled: Warehouse):
    with duckdb.connect(sampled.database, read_only=True) as old:
        kept = {
            table: old.execute(f"SELECT count(*) FROM {table} WHERE NOT is_sample").fetchall()
            for table in SAMPLED_MONTHLY
        }
    assert all(users_in_parquet(sampled, table) == {"acme", "globex", "quiet"} for table in SAMPLED_MONTHLY)

    for table in SAMPLED:
        assert rows(sampled, f"SELECT count(*) FROM {table} WHERE is_sample OR user_id = 'quiet'") == [(0,)]
    for table in SAMPLED_MONTHLY:
        assert rows(sampled, f"SELECT count(*) FROM {table}") == kept[table]

    publish(sampled, list, datetime.now(UTC).date())
    assert rows(
        sampled, "SELECT DISTINCT value FROM user_metrics WHERE user_id = 'quiet' AND unit = 'usd'"
    ) == [
        (0,),
    ]
    monthly = (*SAMPLED_MONTHLY, "daily_attributed_costs")
    assert all(users_in_parquet(sampled, table) == {"acme", "globex"} for table in monthly)


def test_a_changed_comment_needs_no_rebuild(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch):
    reworded(monkeypatch, "USD, exact", "US dollars, to the last digit")
    comment = (
        "SELECT comment FROM duckdb_columns() WHERE table_name = 'daily_costs' AND column_name = 'amount_usd'"
    )
    ((text,),) = rows(warehouse, comment)
    assert text.startswith("US dollars, to the last digit;")
    assert rows(warehouse, "SELECT amount_usd::DOUBLE FROM daily_costs") == [(1.25,)]


def test_a_new_column_is_added_in_place(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch):
    def add(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("ALTER TABLE daily_costs ADD COLUMN cost_center VARCHAR")

    added = Migration(SCHEMA_NUMBER + 1, "Adds a column.", then=add)
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, added))
    monkeypatch.setattr(schema, "SCHEMA_NUMBER", added.number)
    assert rows(warehouse, "SELECT amount_usd::DOUBLE, cost_center FROM daily_costs") == [(1.25, None)]
    assert rows(warehouse, VERSION) == [(added.number,)]


def test_a_migration_that_fails_changes_nothing(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch):
    def fail(connection: duckdb.DuckDBPyConnection) -> None:
        connection.execute("ALTER TABLE daily_costs ADD COLUMN cost_center VARCHAR")
        raise duckdb.InvalidInputException("no")

    broken = Migration(SCHEMA_NUMBER + 1, "Fails.", then=fail)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        patch.setattr(schema, "SCHEMA_NUMBER", broken.number)
        with pytest.raises(duckdb.InvalidInputException):
            rows(warehouse, VERSION)
    assert rows(warehouse, VERSION) == [(SCHEMA_NUMBER,)]
    assert "cost_center" not in {column for _, _, column, *_ in columns(warehouse)}


def columns(warehouse: Warehouse) -> migrations.Columns:
    with warehouse.writing() as connection:
        return columns_of(connection)


def test_a_newer_warehouse_is_refused_with_a_sentence(warehouse: Warehouse):
    with warehouse.writing() as connection:
        connection.execute("UPDATE pipeline.schema_version SET number = number + 1")
    with pytest.raises(WarehouseTooNew, match="newer version of finora"):
        bring_up_to_date(warehouse)


@pytest.mark.slow
def test_tables_without_a_migration_are_rebuilt_from_raw_pages(warehouse: Warehouse):
    with warehouse.writing() as connection:
        connection.execute("ALTER TABLE daily_costs ADD COLUMN another VARCHAR")
        connection.execute("DROP TABLE pipeline.schema_version")
    with pytest.raises(WarehouseOutdated, match="finora rebuild --replace"):
        rows(warehouse, VERSION)
    assert bring_up_to_date(warehouse)
    assert rows(warehouse, "SELECT amount_usd::DOUBLE FROM daily_costs") == [(1.25,)]
    assert not bring_up_to_date(warehouse)


def test_a_new_file_can_be_opened_by_duckdb_from_1_2_on(warehouse: Warehouse):
    with duckdb.connect(warehouse.database, read_only=True) as connection:
        storage = connection.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()
    assert storage == [({"storage_version": "v1.2.0+"},)]


def test_a_killed_upgrade_is_completed_by_the_next_start(warehouse: Warehouse):
    with warehouse.writing() as connection:
        connection.execute("ALTER TABLE daily_costs ADD COLUMN another VARCHAR")
        connection.execute("DROP TABLE pipeline.schema_version")
    rebuilt = warehouse.home / "rebuild" / "warehouse"
    rebuilt.mkdir(parents=True)
    shutil.copyfile(warehouse.database, rebuilt / "warehouse.duckdb")
    assert bring_up_to_date(warehouse)
    assert rows(warehouse, "SELECT count(*) FROM daily_costs") == [(1,)]
