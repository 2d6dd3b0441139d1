"""The manifest names every Parquet file of a publish, and stays valid whatever happens to the next."""

import errno
import json
import shutil
import signal
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from finora_pipeline.warehouse import retention
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.manifest import read_manifest
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.publish import publish
from finora_pipeline.warehouse.published_record import foreign_changes, read_record
from finora_pipeline.warehouse.rebuild import replace_warehouse
from finora_pipeline.warehouse.tables import PARQUET_TABLES, SCHEMA_VERSION
from tests.conftest import Installation
from tests.warehouse.landing import cost_day, cost_row, land, load, page_of
from tests.warehouse.publish_child import POINTS

TODAY = datetime.now(UTC).date()
LONG_AGO = TODAY - timedelta(days=65)


def charge(warehouse: Warehouse, usd: str, *, user_id: str = "acme", day: Any = TODAY) -> None:
    """Load a day with a single charge."""
    land(warehouse, page_of(cost_day([cost_row(f'"{usd}"')], day)), user_id=user_id)
    load(warehouse)


def published(warehouse: Warehouse) -> dict[str, Any]:
    """Publish; return the manifest as a reader without our code reads it."""
    publish(warehouse, list, TODAY)
    return manifest_of(warehouse)


def manifest_of(warehouse: Warehouse) -> dict[str, Any]:
    return json.loads((warehouse.published / "manifest.json").read_text())


def paths(warehouse: Warehouse, manifest: dict[str, Any], table: str) -> list[str]:
    return [str(warehouse.published / file["path"]) for file in manifest["tables"][table]["files"]]


def assert_valid(warehouse: Warehouse, manifest: dict[str, Any]) -> Decimal:
    """Assert that every file is as the manifest says, and of its moment; return the USD of daily_costs."""
    for table, entry in manifest["tables"].items():
        for file, path in zip(entry["files"], paths(warehouse, manifest, table), strict=True):
            assert pq.read_metadata(path).num_rows == file["rows"]
            assert Path(path).stat().st_size == file["bytes"]
        assert entry["rows"] == sum(file["rows"] for file in entry["files"])
    (about,) = pq.read_table(paths(warehouse, manifest, "about")[0]).to_pylist()
    assert about["published_at"] == datetime.fromisoformat(manifest["published_at"])
    costs = [
        pq.read_table(path)["amount_usd"].to_pylist() for path in paths(warehouse, manifest, "daily_costs")
    ]
    return sum((usd for amounts in costs for usd in amounts), Decimal(0))


def snapshots(warehouse: Warehouse) -> list[str]:
    return sorted(f"snapshots/{path.name}" for path in (warehouse.published / "snapshots").iterdir())


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    """A warehouse with a charge today and one two months ago, published twice."""
    warehouse = Warehouse(tmp_path)
    charge(warehouse, "1.25")
    charge(warehouse, "4.00", day=LONG_AGO)
    refresh_metrics(warehouse, TODAY)
    published(warehouse)
    published(warehouse)
    return warehouse


@pytest.fixture
def refreshed_twice(start_openai, install) -> Warehouse:
    """The warehouse of two simulated organizations, with rows in every table."""
    openai = start_openai(organizations=2, days=5)
    installation: Installation = install(openai)
    installation.connect()
    installation.refresh()
    openai.simulator.frozen_now += timedelta(hours=2)
    installation.refresh()
    return Warehouse(installation.settings.home)


def test_the_manifest_equals_the_files_and_the_database(refreshed_twice):
    published = refreshed_twice.published
    manifest = manifest_of(refreshed_twice)
    assert_valid(refreshed_twice, manifest)
    assert list(manifest["tables"]) == [table.name for table in PARQUET_TABLES]
    assert [name for name, entry in manifest["tables"].items() if not entry["rows"]] == []
    listed = {file["path"] for entry in manifest["tables"].values() for file in entry["files"]}
    folder = published / manifest["snapshot"]
    found = list(folder.rglob("*.parquet"))
    assert listed == {path.relative_to(published).as_posix() for path in found}
    current = {path.relative_to(published / "parquet") for path in (published / "parquet").rglob("*.parquet")}
    assert current == {path.relative_to(folder) for path in found}
    with duckdb.connect(published / manifest["database"], read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for table, entry in manifest["tables"].items():
            described = connection.execute(f"DESCRIBE {table}").fetchall()
            assert entry["columns"] == [{"name": row[0], "type": row[1]} for row in described]
            files = "read_parquet(?, hive_partitioning = false)"
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE in_files AS FROM {files}",
                [paths(refreshed_twice, manifest, table)],
            )
            for differing in (f"in_files EXCEPT ALL FROM {table}", f"{table} EXCEPT ALL FROM in_files"):
                assert connection.execute(f"FROM {differing}").fetchall() == []
            count = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
            assert count == [(entry["rows"],)]


def test_the_manifest_agrees_with_the_table_about(refreshed_twice):
    manifest = manifest_of(refreshed_twice)
    with duckdb.connect(refreshed_twice.published_database, read_only=True) as connection:
        columns = "schema_version, published_at::VARCHAR, finora_version, currency, time_zone"
        ((schema_version, published_at, *others),) = connection.execute(
            f"SELECT {columns} FROM about"
        ).fetchall()
    assert schema_version == manifest["schema_version"] == SCHEMA_VERSION
    assert datetime.fromisoformat(published_at) == datetime.fromisoformat(manifest["published_at"])
    assert others == [manifest["finora_version"], "USD", "UTC"]
    assert (manifest["currency"], manifest["time_zone"]) == ("USD", "UTC")


def test_every_published_table_and_view_is_written_as_parquet(warehouse):
    with duckdb.connect(warehouse.published_database, read_only=True) as connection:
        tables = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
    assert {table.name for table in PARQUET_TABLES} == {
        name for name in tables if not name.startswith("named_")
    }


def test_files_are_ordered_by_user_and_day(warehouse):
    for user_id in ("zeta", "beta", "acme"):
        for day in (TODAY, TODAY - timedelta(days=1)):
            charge(warehouse, "1.00", user_id=user_id, day=day)
    manifest = published(warehouse)
    for table in (
        "daily_costs",
        "daily_model_costs",
        "daily_member_costs",
        "daily_key_costs",
        "reconciliation",
    ):
        for path in paths(warehouse, manifest, table):
            rows = [(row["user_id"], row["date"]) for row in pq.read_table(path).to_pylist()]
            assert rows == sorted(rows)
            assert len(rows) > 0


def test_only_months_that_changed_are_written_again(warehouse):
    before = manifest_of(warehouse)
    charge(warehouse, "2.50")
    after = published(warehouse)
    old, new = (paths(warehouse, manifest, "daily_costs") for manifest in (before, after))
    assert [Path(one).samefile(other) for one, other in zip(old, new, strict=True)] == [True, False]
    assert assert_valid(warehouse, after) == Decimal("6.50")


def test_a_reader_of_the_manifest_before_reads_on_during_a_publish(warehouse):
    for usd in ("2.50", "3.50", "4.50"):
        manifest = manifest_of(warehouse)
        expected = assert_valid(warehouse, manifest)
        charge(warehouse, usd)
        publisher = threading.Thread(target=publish, args=(warehouse, list, TODAY))
        publisher.start()
        times = 0
        while publisher.is_alive() or times == 0:
            assert assert_valid(warehouse, manifest) == expected
            times += 1
        publisher.join()
        assert assert_valid(warehouse, manifest) == expected
        assert assert_valid(warehouse, manifest_of(warehouse)) == Decimal(usd) + 4
        assert snapshots(warehouse) == sorted([manifest["snapshot"], manifest_of(warehouse)["snapshot"]])


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Warehouse]:
    """A warehouse per point, published twice, changed, and its third publish killed there."""
    made = Warehouse(tmp_path_factory.mktemp("made") / "home")
    charge(made, "1.25")
    refresh_metrics(made, TODAY)
    published(made)
    published(made)
    charge(made, "2.50")
    homes = {point: made.home.with_name(str(number)) for number, point in enumerate(POINTS)}
    for home in homes.values():
        subprocess.run(["cp", "-a", made.home, home], check=True)
    command = [sys.executable, "-m", "tests.warehouse.publish_child"]
    done = subprocess.run([*command, *(f"{p}={h}" for p, h in homes.items())], capture_output=True, text=True)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(homes), done.stderr
    return {point: Warehouse(home) for point, home in homes.items()}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_publish_leaves_a_valid_manifest_and_no_garbage(point: str, killed: dict[str, Warehouse]):
    warehouse = killed[point]
    left = manifest_of(warehouse)
    is_new = list(POINTS).index(point) > list(POINTS).index("while the manifest is written")
    assert assert_valid(warehouse, left) == Decimal("2.50" if is_new else "1.25")
    healed = published(warehouse)
    assert assert_valid(warehouse, healed) == Decimal("2.50")
    assert assert_valid(warehouse, left) == Decimal("2.50" if is_new else "1.25")
    assert snapshots(warehouse) == sorted([left["snapshot"], healed["snapshot"]])
    assert [path for path in warehouse.published.rglob("*") if path.name.startswith(".")] == []
    record = read_record(warehouse)
    assert record
    assert record.repair is None
    assert foreign_changes(warehouse, record) == []


def test_a_folder_of_an_earlier_version_gets_all_files_again(warehouse):
    with warehouse.writing() as connection:
        connection.execute("TRUNCATE about")
    shutil.rmtree(warehouse.published / "snapshots")
    (warehouse.published / "manifest.json").unlink()
    warehouse.database.with_name("published.json").unlink()
    for path in list((warehouse.published / "parquet").glob("*/*.parquet")):
        shutil.rmtree(path.parent)
    outdated = warehouse.published / f"parquet/daily_costs/month={LONG_AGO:%Y-%m}/daily_costs.parquet"
    expired = outdated.parent.with_name("month=2020-01") / "daily_costs.parquet"
    expired.parent.mkdir()
    shutil.copy(outdated, expired)
    pq.write_table(pq.read_table(outdated).drop_columns(["tier"]), outdated.with_name("old"))
    outdated.with_name("old").rename(outdated)
    manifest = published(warehouse)
    assert assert_valid(warehouse, manifest) == Decimal("5.25")
    assert "tier" in pq.read_schema(outdated).names
    assert not expired.exists()
    assert snapshots(warehouse) == [manifest["snapshot"]]


def test_a_column_that_is_added_is_added_to_every_month(warehouse):
    with warehouse.writing() as connection:
        connection.execute("ALTER TABLE daily_costs ADD COLUMN cost_center VARCHAR")
    manifest = published(warehouse)
    for path in paths(warehouse, manifest, "daily_costs"):
        assert "cost_center" in pq.read_schema(path).names


def test_a_month_that_a_rebuild_no_longer_has_is_removed(warehouse):
    for file in (warehouse.raw / "pages").rglob("*.parquet"):
        if pq.read_table(file)["window_start"].to_pylist()[0] == LONG_AGO:
            file.unlink()
    replace_warehouse(warehouse)
    manifest = published(warehouse)
    assert assert_valid(warehouse, manifest) == Decimal("1.25")
    assert list((warehouse.published / "parquet").rglob(f"month={LONG_AGO:%Y-%m}/*.parquet")) == []


@pytest.mark.parametrize("is_killed", [False, True])
def test_no_snapshot_keeps_the_rows_of_a_purged_user(warehouse, is_killed):
    charge(warehouse, "1.00", user_id="globex")
    with warehouse.writing() as connection:
        # A known day without charges is in no table of costs, but in the reconciliation.
        connection.execute(
            "INSERT INTO pipeline.reconciled_days BY NAME SELECT 'globex' AS user_id, 'openai' AS provider, "
            "?::DATE AS date, 0 AS api_total_usd, 0 AS facts_usd, 0 AS lines_without_amount",
            [LONG_AGO - timedelta(days=40)],
        )
        connection.execute(
            "INSERT INTO pipeline.unpublished_months VALUES ('pipeline.reconciled_days', ?)",
            [(LONG_AGO - timedelta(days=40)).replace(day=1)],
        )
    published(warehouse)
    assert retention.count_user_rows(warehouse, "globex")["published/snapshots"] > 0
    retention.purge(warehouse, "globex")
    if is_killed:
        (warehouse.published / "snapshots" / "half").mkdir()
    manifest = published(warehouse)
    assert not any(retention.count_user_rows(warehouse, "globex").values())
    assert snapshots(warehouse) == [manifest["snapshot"]]
    assert assert_valid(warehouse, manifest) == Decimal("5.25")
    before, after = manifest, published(warehouse)
    assert snapshots(warehouse) == sorted([before["snapshot"], after["snapshot"]])


def test_expired_days_are_removed_from_every_file(warehouse):
    retention.prune(warehouse, lambda: {"acme": TODAY - timedelta(days=30)})
    manifest = published(warehouse)
    old = f"month={LONG_AGO:%Y-%m}"
    assert [
        file for entry in manifest["tables"].values() for file in entry["files"] if old in file["path"]
    ] == []
    assert assert_valid(warehouse, manifest) == Decimal("1.25")


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.ENOTSUP])
def test_files_are_copied_where_links_are_impossible(warehouse, monkeypatch, code):
    def refuse(*_: Any) -> None:
        raise OSError(code, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    for _ in range(2):
        assert assert_valid(warehouse, published(warehouse)) == Decimal("5.25")
    manifest = manifest_of(warehouse)
    (copy, *_) = paths(warehouse, manifest, "daily_costs")
    assert Path(copy).stat().st_nlink == 1
    assert stat.S_IMODE(Path(copy).stat().st_mode) == 0o400


def test_another_failure_to_link_keeps_the_manifest_before(warehouse, monkeypatch):
    before = manifest_of(warehouse)

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "hardlink_to", fail)
        with pytest.raises(OSError, match="broken"):
            published(warehouse)
    assert manifest_of(warehouse) == before
    assert assert_valid(warehouse, before) == Decimal("5.25")
    assert all(not path.name.startswith(".") for path in (warehouse.published / "snapshots").iterdir())


def test_the_published_file_can_be_opened_by_duckdb_from_1_2_on(warehouse):
    retention.purge(warehouse, "missing")
    published(warehouse)
    with duckdb.connect(warehouse.published_database, read_only=True) as connection:
        storage = connection.execute("SELECT tags FROM duckdb_databases() WHERE NOT internal").fetchall()
    assert storage == [({"storage_version": "v1.2.0+"},)]


def test_all_is_private_and_read_only(warehouse):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in warehouse.published.rglob("*") if path.is_file()}
    folders = {stat.S_IMODE(path.stat().st_mode) for path in warehouse.published.rglob("*") if path.is_dir()}
    assert (modes, folders) == ({0o400}, {0o700})


def test_rows_that_change_with_the_clock_are_written_once_a_day(warehouse):
    path = warehouse.published / f"parquet/reconciliation/month={TODAY:%Y-%m}/reconciliation.parquet"
    before = path.stat().st_ino
    published(warehouse)
    assert path.stat().st_ino == before
    publish(warehouse, list, TODAY + timedelta(days=1))
    assert path.stat().st_ino != before


def test_a_damaged_or_changed_manifest_is_replaced(warehouse):
    path = warehouse.published / "manifest.json"
    content = path.read_text()
    for text in ("", "{", "[]", content.replace('"rows": 1', '"rows": 7')):
        path.chmod(0o600)
        path.write_text(text)
        repair = publish(warehouse, list, TODAY).repair
        assert repair
        assert repair.files == ("manifest.json",)
        assert assert_valid(warehouse, manifest_of(warehouse)) == Decimal("5.25")
    assert read_manifest(warehouse.published)


def test_a_snapshots_file_that_another_program_changed_is_removed(warehouse):
    earlier = manifest_of(warehouse)
    charge(warehouse, "2.50")
    published(warehouse)
    (unchanged, changed) = (Path(path) for path in paths(warehouse, earlier, "daily_costs"))
    changed.chmod(0o600)
    changed.write_bytes(b"something else")
    record = read_record(warehouse)
    assert record
    name = changed.relative_to(warehouse.published).as_posix()
    assert foreign_changes(warehouse, record) == [name]
    # In place of a file that is linked, the change is in all of its links.
    unchanged.chmod(0o600)
    unchanged.write_bytes(b"something else")
    current = f"parquet/{unchanged.relative_to(warehouse.published / earlier['snapshot'])}"
    assert foreign_changes(warehouse, record) == [current, name]
    between = manifest_of(warehouse)
    repaired = publish(warehouse, list, TODAY).repair
    assert repaired
    assert repaired.files == (current, name)
    assert not Path(paths(warehouse, between, "daily_costs")[0]).exists()
    assert assert_valid(warehouse, manifest_of(warehouse)) == Decimal("6.50")


def add_revisions(warehouse: Warehouse, *moments: datetime) -> None:
    with warehouse.writing() as connection:
        for moment in moments:
            connection.execute(
                "INSERT INTO cost_revisions (user_id, provider, date, observed_at, was_there, is_there) "
                "VALUES ('acme', 'openai', ?, ?, true, true)",
                [TODAY, moment],
            )


def test_revisions_of_the_running_day_are_in_a_file_an_hour(warehouse):
    midnight = datetime.combine(TODAY, datetime.min.time(), UTC)
    hours = [
        midnight - timedelta(hours=1),
        midnight,
        midnight + timedelta(minutes=59),
        midnight + timedelta(hours=1),
    ]
    add_revisions(warehouse, *hours)
    first = published(warehouse)
    names = ["", f".{TODAY}T00", f".{TODAY}T01"]
    assert [Path(path).name for path in paths(warehouse, first, "cost_revisions")] == [
        f"cost_revisions{name}.parquet"
        for name in sorted(names, key=lambda name: f"cost_revisions{name}.parquet")
    ]
    add_revisions(warehouse, midnight + timedelta(hours=1, minutes=30), midnight - timedelta(hours=2))
    second = published(warehouse)
    rewritten = {
        Path(one).name: not Path(one).samefile(other)
        for one, other in zip(
            paths(warehouse, first, "cost_revisions"), paths(warehouse, second, "cost_revisions"), strict=True
        )
    }
    assert rewritten == {
        "cost_revisions.parquet": True,
        f"cost_revisions.{TODAY}T00.parquet": False,
        f"cost_revisions.{TODAY}T01.parquet": True,
    }
    assert second["tables"]["cost_revisions"]["rows"] == 6
    publish(warehouse, list, TODAY + timedelta(days=1))
    (file,) = manifest_of(warehouse)["tables"]["cost_revisions"]["files"]
    assert (Path(file["path"]).name, file["rows"]) == ("cost_revisions.parquet", 6)
