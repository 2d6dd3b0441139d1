"""A damaged or locked database gives one sentence of advice, and loses no data."""

import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from finora_pipeline.cli import main
from finora_pipeline.data_folder.disk import DatabaseDamaged
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.publish import publish
from finora_pipeline.warehouse.rebuild import rebuild, replace_warehouse
from tests.conftest import Installation
from tests.warehouse.landing import cost_day, cost_row, land, load, page_of

TODAY = datetime.now(UTC).date()
# Holds a database open, as another program does, until its standard input ends.
HOLD = """
import duckdb, os, sys
connection = duckdb.connect(sys.argv[1])
print(os.getpid(), flush=True)
sys.stdin.read()
"""
DRIVERS = ("duckdb", "sqlite", "sqlalchemy", "IO Error", "Traceback", "OperationalError", "http")


@contextmanager
def held_by_another_program(database: Path) -> Iterator[int]:
    """Open the database for writing in another program; yield its process id."""
    command = [sys.executable, "-c", HOLD, str(database)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        yield int(process.stdout.readline())
        process.communicate()


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Lock the database as another program does, without a connection of this process."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    moved = Path(shutil.copy(database, database.with_name("moved")))
    for name in (f"{database.name}-wal", f"{database.name}-shm"):
        database.with_name(name).unlink(missing_ok=True)
    moved.replace(database)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        yield


@pytest.fixture
def installation(install_loaded, monkeypatch) -> Installation:
    installation = install_loaded("growth", days=2, by_run=True)
    monkeypatch.setenv("OPENAI_BASE_URL", installation.openai.base_url)
    monkeypatch.setenv("FINORA_WAIT_SECONDS", "0")
    return installation


def finora(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def sentence_of(result: Result) -> str:
    """Return a failed command's message: at most two sentences, no driver's text."""
    said = " ".join(result.stderr.split())
    assert result.exit_code == 1, (result.exception, said)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    where_paths_are_cut = " ".join(word for word in said.split() if "/" not in word)
    assert not [name for name in DRIVERS if name in where_paths_are_cut], said
    return said


def damage(database: Path) -> None:
    """Overwrite the start and the middle with noise, as a failing disk may."""
    content = bytearray(database.read_bytes())
    noise = random.Random(1)
    for start in range(0, len(content), 8192):
        content[start : start + 2048] = noise.randbytes(len(content[start : start + 2048]))
    database.chmod(0o600)
    database.write_bytes(content)


@pytest.mark.parametrize("command", [["refresh"], ["rebuild"], ["rebuild", "--replace"]])
def test_a_locked_warehouse_is_reported_with_the_process_holding_it(installation, command):
    database = Warehouse(installation.settings.home).database
    with held_by_another_program(database) as process:
        said = sentence_of(finora(*command))
    wanted = f"The warehouse {database} is in use by another program (process {process})."
    assert f"{wanted} Close it there and try again; no data is lost." in said
    assert not database.with_name("damaged.duckdb").exists()
    assert finora("rebuild").exit_code == 0
    assert finora("refresh").exit_code == 0


def test_a_locked_warehouse_is_waited_for(installation, monkeypatch):
    monkeypatch.setenv("FINORA_WAIT_SECONDS", "30")
    database = Warehouse(installation.settings.home).database
    command = [sys.executable, "-m", "finora_pipeline", "rebuild"]
    with held_by_another_program(database):
        waiting = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        _until_it_waits(waiting.pid, database)
    assert waiting.communicate()[1] == b""
    assert waiting.returncode == 0


def _until_it_waits(process: int, database: Path) -> None:
    """Return once the process holds the write lock, and so tries to open the database."""
    lock = database.with_name("write.lock").stat().st_ino
    while not any(
        f":{lock} " in line and f" {process} " in line
        for line in Path("/proc/locks").read_text().splitlines()
    ):
        pass


@pytest.mark.parametrize("command", [["refresh"], ["rebuild"], ["status"], ["alarms"], ["sql", "SELECT 1"]])
def test_a_damaged_warehouse_is_reported_with_the_command_to_fix_it(installation, command):
    database = Warehouse(installation.settings.home).database
    damage(database)
    result = finora(*command)
    if command[0] in ("refresh", "rebuild"):
        said = sentence_of(result)
        assert (
            f"The warehouse {database} cannot be read; it is damaged or another kind of file. Run finora re"
            in said
        )
        assert finora("rebuild", "--replace").exit_code == 0
        assert finora("refresh").exit_code == 0
    assert finora(*command).exit_code == 0


@pytest.mark.parametrize(
    "command", [["status"], ["refresh"], ["alarms"], ["dashboard"], ["up"], ["login", "list"]]
)
def test_a_damaged_accounts_database_is_a_sentence(installation, command):
    file = installation.settings.home / "accounts.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(file)
    said = sentence_of(finora(*command))
    assert (
        f"The accounts database {file} cannot be read; it is damaged or another kind of file. Restore it"
        in said
    )


@pytest.mark.parametrize("command", [["status"], ["plan", "user-0", "scale"], ["refresh"]])
def test_a_locked_accounts_database_is_a_sentence(installation, command):
    file = installation.settings.home / "accounts.sqlite"
    with locked(file):
        said = sentence_of(finora(*command))
    assert f"The accounts database {file} is in use by another program. Close it there and try again" in said
    assert finora(*command).exit_code == 0


@pytest.mark.parametrize("command", [["refresh"], ["up"], ["refresh", "--user", "user-0", "--history"]])
def test_a_damaged_record_of_runs_is_a_sentence(installation, command):
    for file in installation.settings.dagster_home.rglob("*.db"):
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(file)
    said = sentence_of(finora(*command))
    folder = installation.settings.dagster_home
    assert (
        f"Dagster's record of runs in {folder} cannot be read; it is damaged or another kind of file. Stop"
        in said
    )
    folder.rename(folder.with_name("dagster-damaged"))
    assert finora("refresh").exit_code == 0


def test_a_locked_record_of_runs_is_a_sentence(installation):
    (runs,) = installation.settings.dagster_home.rglob("runs.db")
    with locked(runs):
        said = sentence_of(finora("refresh"))
    assert "is in use by another program. Close it there and try again" in said
    assert finora("refresh").exit_code == 0


def test_a_damaged_published_file_is_reported_and_published_again(installation):
    file = installation.settings.published_database
    damage(file)
    said = sentence_of(finora("sql", "FROM daily_costs"))
    assert (
        f"The published file {file} cannot be read; it is damaged or another kind of file. finora refresh"
        in said
    )
    assert finora("refresh").exit_code == 0
    assert finora("sql", "FROM daily_costs").exit_code == 0


@pytest.fixture(scope="module")
def small_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loaded warehouse, to be copied and damaged."""
    home = tmp_path_factory.mktemp("small") / "home"
    warehouse = Warehouse(home)
    for run_id, amount in (("run-1", '"1.00"'), ("run-2", '"2.00"')):
        land(warehouse, page_of(cost_day([cost_row(amount)], TODAY)), run_id=run_id)
        load(warehouse)
    refresh_metrics(warehouse, TODAY)
    publish(warehouse, list, TODAY)
    return home


@pytest.mark.parametrize("seed", range(40))
def test_a_warehouse_with_any_flipped_bytes_is_rebuilt(seed, small_home, tmp_path):
    warehouse = Warehouse(Path(shutil.copytree(small_home, tmp_path / "home")))
    content = bytearray(warehouse.database.read_bytes())
    choice = random.Random(seed)
    kind = seed % 4
    if kind == 0:
        content = content[: choice.randrange(len(content))]
    else:
        length = (1, 4096, len(content) // 3)[kind - 1]
        start = choice.randrange(max(1, len(content) - length))
        for place in range(start, start + length):
            content[place] ^= choice.randrange(1, 256)
    warehouse.database.write_bytes(content)
    # Either it cannot be read, or the flipped bytes are never read.
    with suppress(DatabaseDamaged):
        rebuild(warehouse)
    replace_warehouse(warehouse)
    assert rebuild(warehouse).differences == []
    publish(warehouse, list, TODAY)
    with warehouse.writing() as connection:
        assert connection.execute("SELECT amount_usd FROM daily_costs").fetchall() == [(Decimal(2),)]
