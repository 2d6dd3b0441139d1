"""File modes: no other account opens the data folder, except readers of published files."""

import grp
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

import finora_pipeline
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.cli import main
from finora_pipeline.data_folder.private_files import open_lock, secure_home
from finora_pipeline.settings import Settings, SettingsError

# The uid of an account without files of its own (65534 on Linux).
STRANGER = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another account")


def modes(home: Path) -> dict[str, int]:
    return {
        path.relative_to(home).as_posix(): stat.S_IMODE(path.lstat().st_mode)
        for path in [home, *home.rglob("*")]
    }


def settings_of(home: Path, **environment: str) -> Settings:
    return Settings.from_environment({"FINORA_HOME": str(home)} | environment)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def reachable(tmp_path: Path) -> Iterator[Path]:
    """A folder that every account can enter, as /var/lib is; pytest's are private."""
    changed = []
    for folder in [tmp_path, *tmp_path.parents]:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if not mode & 0o001:
            folder.chmod(mode | 0o011)
            changed.append((folder, mode))
    yield tmp_path
    for folder, mode in changed:
        folder.chmod(mode)


@pytest.fixture
def any_group() -> str:
    """A group that this account may give files to."""
    gids = [gid for gid in os.getgroups() if gid != os.getegid()]
    return grp.getgrgid(STRANGER if os.geteuid() == 0 else (gids or [os.getegid()])[0]).gr_name


def as_stranger(attempt: Callable[[], object], gid: int = STRANGER) -> str:
    """Call a function as another account; return its result, or the error's class and text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(STRANGER)
            said = str(attempt())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.mark.usefixtures("open_umask")
def test_commands_make_private_files_only(start_openai, install, monkeypatch):
    installation = install(start_openai(days=3))
    monkeypatch.setenv("OPENAI_BASE_URL", installation.openai.base_url)
    installation.connect()
    assert CliRunner().invoke(main, ["refresh"]).exit_code == 0
    os.umask(0o022)
    assert CliRunner().invoke(main, ["status"]).exit_code == 0
    found = modes(installation.settings.home)
    secure_home(installation.settings, whole=True)
    assert {name: mode for name, mode in found.items() if mode & 0o077} == {}
    assert found["published/finora.duckdb"] == 0o400
    parquet = {
        mode for name, mode in found.items() if name.endswith(".parquet") and name.startswith("published")
    }
    assert parquet == {0o400}
    assert modes(installation.settings.home) == found


def test_an_open_folder_of_an_older_version_is_repaired_and_reported(tmp_path, caplog):
    home = tmp_path / "home"
    for folder in (
        "raw/pending",
        "warehouse",
        "published/parquet/daily_costs",
        "dagster/storage",
        "logs",
        "mine",
    ):
        (home / folder).mkdir(parents=True)
    files = ("raw/pending/a.parquet", "accounts.sqlite", "accounts.sqlite-wal", "warehouse/write.lock",
             "published/finora.duckdb", "published/parquet/daily_costs/a.parquet", "dagster/storage/x.db",
             "logs/runs.log", "mine/script")  # fmt: skip
    for name in files:
        (home / name).touch()
        (home / name).chmod(0o644)
    (home / "mine/script").chmod(0o755)
    home.chmod(0o755)
    secure_home(settings_of(home))
    found = modes(home)
    assert found["."] == 0o700
    assert found["mine/script"] == 0o755
    ours = {name: mode for name, mode in found.items() if not name.startswith("mine")}
    assert {name for name, mode in ours.items() if mode & 0o077} == set()
    assert found["published/finora.duckdb"] == found["published/parquet/daily_costs/a.parquet"] == 0o400
    secure_home(settings_of(home))
    assert [record.message for record in caplog.records] == [
        f"Other accounts of this machine could open the data folder {home} (mode 755). It is private now "
        "(mode 700)."
    ]


def test_later_starts_check_only_the_top_of_the_folder(tmp_path):
    home = tmp_path / "home"
    (home / "raw" / "pages").mkdir(parents=True)
    secure_home(settings_of(home))
    (home / "raw").chmod(0o755)
    (home / "raw" / "pages").chmod(0o755)
    secure_home(settings_of(home))
    assert (modes(home)["raw"], modes(home)["raw/pages"]) == (0o700, 0o755)
    secure_home(settings_of(home), whole=True)
    assert modes(home)["raw/pages"] == 0o700


def test_a_link_in_the_folder_changes_nothing_elsewhere(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "pages").mkdir(parents=True)
    (elsewhere / "pages").chmod(0o755)
    elsewhere.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / "raw").symlink_to(elsewhere)
    secure_home(settings_of(home), whole=True)
    assert set(modes(elsewhere).values()) == {0o755}


def test_a_read_only_warehouse_file_becomes_writable(tmp_path):
    warehouse = tmp_path / "home" / "warehouse" / "warehouse.duckdb"
    warehouse.parent.mkdir(parents=True)
    secure_home(settings_of(tmp_path / "home"))
    warehouse.touch(0o400)
    secure_home(settings_of(tmp_path / "home"))
    assert stat.S_IMODE(warehouse.stat().st_mode) == 0o600


@pytest.mark.slow
def test_a_readers_group_gets_and_loses_access_to_published_files(any_group, start_openai, install):
    installation = install(start_openai(days=3))
    home = installation.settings.home
    shared = settings_of(home, FINORA_READERS_GROUP=any_group)
    secure_home(shared)
    installation.connect()
    installation.refresh()
    found = modes(home)
    assert (found["."], found["published"], found["published/finora.duckdb"]) == (0o710, 0o750, 0o440)
    files = [home / "published", *(home / "published").rglob("*")]
    assert {path.stat().st_gid for path in [home, *files]} == {grp.getgrnam(any_group).gr_gid}
    assert {mode for name, mode in found.items() if name.endswith(".parquet") and "published" in name} == {
        0o440
    }
    assert {
        mode & 0o077 for name, mode in found.items() if name != "." and not name.startswith("published")
    } == {0}
    secure_home(settings_of(home))
    assert {name for name, mode in modes(home).items() if mode & 0o077} == set()


def test_a_group_that_does_not_exist_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(SettingsError, match="names the group no-such-group, which does not exist"):
        secure_home(settings_of(tmp_path / "home", FINORA_READERS_GROUP="no-such-group"))


@as_root
@pytest.mark.usefixtures("reachable")
@pytest.mark.slow
def test_another_account_can_neither_read_nor_hold_a_lock(start_openai, install):
    installation = install(start_openai(days=3))
    installation.connect()
    assert installation.run().succeeded
    paths = [installation.settings.home, *installation.settings.home.rglob("*")]

    def opened() -> list[str]:
        found = []
        for path in paths:
            with suppress(PermissionError):
                os.open(path, os.O_RDONLY)
                found.append(str(path))
        return found

    assert as_stranger(opened) == "[]"
    assert any(path.name == "write.lock" for path in paths)


@as_root
@pytest.mark.usefixtures("reachable")
@pytest.mark.slow
def test_a_member_of_the_readers_group_reads_only_published_files(start_openai, install, any_group):
    installation = install(start_openai(days=3))
    home = installation.settings.home
    secure_home(settings_of(home, FINORA_READERS_GROUP=any_group))
    installation.connect()
    installation.refresh()
    gid = grp.getgrnam(any_group).gr_gid
    published = home / "published/finora.duckdb"
    assert as_stranger(lambda: finora_pipeline.connect().sql("SELECT 42").fetchall(), gid) == "[(42,)]"
    assert as_stranger(lambda: len(published.read_bytes()), gid) == str(published.stat().st_size)
    manifest = json.loads((home / "published/manifest.json").read_text())
    assert as_stranger(lambda: len((home / "published/manifest.json").read_bytes()), gid).isdigit()
    for file in (file for table in manifest["tables"].values() for file in table["files"]):
        path = home / "published" / file["path"]
        assert as_stranger(lambda path=path: len(path.read_bytes()), gid) == str(file["bytes"])
    for closed in ("accounts.sqlite", "warehouse/warehouse.duckdb", "warehouse/write.lock", "master.key"):
        assert "PermissionError" in as_stranger((home / closed).read_bytes, gid)
    assert "PermissionError" in as_stranger(lambda: list(home.iterdir()), gid)
    assert "PermissionError" in as_stranger(lambda: published.open("ab"), gid)


def test_a_folder_that_a_publish_removes_while_listed_is_passed_over(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for snapshot in ("first", "second"):
        (home / "published/snapshots" / snapshot).mkdir(parents=True)
    list_folder = Path.iterdir

    def removed_after_listing(folder: Path) -> list[Path]:
        if folder.name == "first":
            folder.rmdir()
        return list(list_folder(folder))

    monkeypatch.setattr(Path, "iterdir", removed_after_listing)
    secure_home(settings_of(home), whole=True)
    assert [path.name for path in (home / "published/snapshots").iterdir()] == ["second"]


@as_root
def test_a_foreign_file_is_reported_with_the_command_to_fix_it(tmp_path, caplog):
    home = tmp_path / "home"
    (home / "raw").mkdir(parents=True)
    foreign = home / "raw" / "page.parquet"
    foreign.touch()
    os.chown(foreign, STRANGER, -1)
    secure_home(settings_of(home), whole=True)
    (message,) = [record.message for record in caplog.records if "belong" in record.message]
    assert str(foreign) in message
    assert f"chown -R root {home}" in message


@as_root
def test_the_folder_of_another_account_is_refused_in_a_sentence(reachable, caplog):
    home = reachable / "home"
    secure_home(settings_of(home))
    said = as_stranger(lambda: secure_home(settings_of(home)))
    assert said.startswith(
        f"ForeignFiles: The data folder {home} belongs to the account root. Run this command"
    )
    os.chown(home, STRANGER, -1)
    secure_home(settings_of(home))
    assert "which cannot open files that this command creates as root" in caplog.text


def test_an_open_lock_of_an_older_version_is_made_private(tmp_path):
    path = tmp_path / "write.lock"
    path.touch(0o644)
    path.chmod(0o644)
    os.close(open_lock(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "link.lock").symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        open_lock(tmp_path / "link.lock")


def test_securing_a_folder_leaves_the_locks_of_its_open_database(tmp_path: Path):
    """Closing any descriptor of a file ends a process's POSIX locks: SQLite's must stay."""
    settings = settings_of(tmp_path / "home")
    accounts = accounts_of(settings)
    assert accounts.users.ids() == []
    secure_home(settings, whole=True)
    program = (
        "from finora_pipeline.accounts.store import accounts_of; "
        "from finora_pipeline.settings import Settings; "
        "accounts = accounts_of(Settings.from_environment()); accounts.users.add('acme'); "
        "accounts.database.engine.dispose()"
    )
    environment = os.environ | {"FINORA_HOME": str(settings.home)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    # The other process was not the last to close it, so the log that this one reads and writes is there.
    assert (settings.home / "accounts.sqlite-wal").exists()
    assert accounts.users.ids() == ["acme"]
