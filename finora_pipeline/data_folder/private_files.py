"""Modes of the data folder's files: only its owner opens them, and readers of a group what is published.

The group is `FINORA_READERS_GROUP`. Every entry point restricts the files it creates; folders of earlier
versions are repaired at start. Symbolic links are never followed, so a link planted in a folder that was too
open changes no other files.
"""

import grp
import logging
import os
import pwd
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from finora_pipeline.settings import Settings, SettingsError

FOLDER, FILE = 0o700, 0o600
PUBLISHED_FILE = 0o400
# With a group of readers, who may pass through the data folder but not list it.
PASSED_FOLDER, SHARED_FOLDER, SHARED_FILE = 0o710, 0o750, 0o440
# Records the modes last set on the whole folder, so that later starts only check its top level.
MARKER = ".modes"
_LAYOUT = "1"
_OTHERS = 0o077
# Entries of this project at the top of a data folder; an operator's own files there are left unchanged.
_OURS = (
    *("accounts.sqlite*", "openai_base_url", "demo.json", MARKER),
    *("raw", "warehouse", "published", "dagster", "logs", "runs", "rebuild"),
)
_log = logging.getLogger("finora.files")


class ForeignFiles(Exception):
    """The data folder belongs to another account; the message names it and what to do."""


def restrict_new_files() -> None:
    """Make files and folders that this process creates private, whatever the account's umask."""
    os.umask(_OTHERS)


def open_lock(path: Path) -> int:
    """Open a lock file, creating it if missing; no other account can open it, so none can hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) & _OTHERS:
        os.fchmod(descriptor, FILE)
    return descriptor


def make_folder(path: Path) -> None:
    """Create a private folder and its parents, unless it exists."""
    path.mkdir(mode=FOLDER, parents=True, exist_ok=True)


def share_published(path: Path, folder: Path) -> None:
    """Set the mode and group of a path below `published/` like those `folder` is shared with."""
    about = folder.stat()
    is_shared = bool(about.st_mode & 0o050)
    if is_shared and path.stat().st_gid != about.st_gid:
        os.chown(path, -1, about.st_gid)
    if path.is_dir():
        path.chmod(SHARED_FOLDER if is_shared else FOLDER)
    else:
        path.chmod(SHARED_FILE if is_shared else PUBLISHED_FILE)


@dataclass(frozen=True, slots=True)
class _Readers:
    """The group whose members may read published files."""

    name: str
    gid: int


def secure_home(settings: Settings, *, whole: bool = False) -> None:
    """Create the data folder if missing and make its files private; log a warning if it was too open.

    Checks the folder's top level; all files if `whole`, at the first start of a version and when the group
    of readers changed. Raises `ForeignFiles` if the folder belongs to another account, and `SettingsError`
    for a group that cannot be used.
    """
    readers = _readers(settings.readers_group)
    home = settings.home
    if not home.exists():
        make_folder(home)
    owner = _owner(home)
    marker = home / MARKER
    wanted = f"{_LAYOUT} {readers.name if readers else '-'}\n"
    whole = whole or not marker.is_file() or marker.read_text() != wanted
    if readers:
        (home / "published").mkdir(exist_ok=True)
    foreign: list[Path] = []
    for path, about in _entries(settings, whole):
        if about.st_uid != owner:
            foreign.append(path)
        else:
            _repair(path, about, home, readers)
    if foreign:
        _log.warning(
            "%s in the data folder %s to another account, such as %s. Run chown -R %s %s",
            f"{len(foreign)} files belong" if len(foreign) > 1 else "A file belongs",
            home,
            foreign[0],
            _account(owner),
            home,
        )
    elif whole:
        marker.write_text(wanted)
        marker.chmod(FILE)


def _owner(home: Path) -> int:
    """The user id of the data folder's owner. Raises `ForeignFiles`."""
    owner = home.stat().st_uid
    if owner == os.geteuid():
        return owner
    name = _account(owner)
    if os.geteuid():
        raise ForeignFiles(
            f"The data folder {home} belongs to the account {name}. Run this command as {name}, or set "
            "FINORA_HOME to your own folder."
        )
    _log.warning(
        "The data folder %s belongs to the account %s, which cannot open files that this command creates as "
        "root. Run it as %s.",
        home,
        name,
        name,
    )
    return owner


def _entries(settings: Settings, whole: bool) -> Iterator[tuple[Path, os.stat_result]]:
    """The folders and files of this project, each folder before its contents."""
    home, dagster_home = settings.home, settings.dagster_home
    yield home, home.stat()
    tops = [path for pattern in _OURS for path in sorted(home.glob(pattern))]
    accounts = None
    if settings.accounts_url.startswith("sqlite:///"):
        accounts = Path(settings.accounts_url.removeprefix("sqlite:///"))
    if accounts and _is_sqlite(accounts):
        tops += [accounts.with_name(accounts.name + part) for part in ("", "-wal", "-shm")]
    if not home.is_relative_to(dagster_home):
        tops.append(dagster_home)
    # A warehouse restored from the published file is read-only but must be writable.
    tops += [home / "warehouse" / "warehouse.duckdb"]
    for top in dict.fromkeys(tops):
        yield from _below(top) if whole else _entry(top)


def _is_sqlite(path: Path) -> bool:
    """Whether the file is a SQLite database as its URL claims; any other file's mode stays unchanged."""
    try:
        if path.stat().st_size == 0:
            return False
        # Checked through SQLite: closing a plain file handle would release this process's SQLite locks, and
        # another process could then delete the write-ahead log in use.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error):
        return False
    return True


def _entry(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
        yield path, about


def _below(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for found, about in _entry(path):
        yield found, about
        if stat.S_ISDIR(about.st_mode):
            for entry in _entries_of(found):
                yield from _below(entry)


def _entries_of(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        # A publish has removed the folder of a snapshot since it was listed.
        return []


def _repair(path: Path, about: os.stat_result, home: Path, readers: _Readers | None) -> None:
    """Set the mode of a single entry and, if readers share it, their group."""
    mode, is_folder = stat.S_IMODE(about.st_mode), stat.S_ISDIR(about.st_mode)
    published = home / "published"
    is_shared = readers is not None and (path in (home, published) or published in path.parents)
    if path == home:
        wanted = PASSED_FOLDER if readers else FOLDER
    elif published in path.parents and not is_folder:
        wanted = SHARED_FILE if readers else PUBLISHED_FILE
    elif is_folder:
        wanted = SHARED_FOLDER if is_shared else FOLDER
    else:
        wanted = mode & FOLDER | FILE
    try:
        if readers and is_shared and about.st_gid != readers.gid:
            os.chown(path, -1, readers.gid)
        if mode != wanted:
            path.chmod(wanted)
    except FileNotFoundError:
        # A temporary file that was renamed since it was listed.
        return
    except PermissionError:
        if not (readers and is_shared):
            raise
        raise SettingsError(
            f"This account cannot give files to the group {readers.name}. Add it to the group, or unset "
            "FINORA_READERS_GROUP."
        ) from None
    if path == home and mode & _OTHERS & ~wanted:
        _log.warning(
            "Other accounts of this machine could open the data folder %s (mode %o). It is private now "
            "(mode %o).",
            home,
            mode,
            wanted,
        )


def _readers(name: str | None) -> _Readers | None:
    if name is None:
        return None
    try:
        return _Readers(name, grp.getgrnam(name).gr_gid)
    except KeyError:
        raise SettingsError(
            f"FINORA_READERS_GROUP names the group {name}, which does not exist on this machine. Create it "
            f"with groupadd {name}, or unset the variable."
        ) from None


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"number {uid}"
