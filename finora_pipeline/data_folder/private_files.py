"""Which accounts of this machine may open the files of the data folder: its owner alone, and with
`FINORA_READERS_GROUP` the members of that group, who may read what is published.

Every entry point restricts the files it makes; folders made by earlier versions are repaired at start.
Symbolic links are never followed, so that no link planted in a folder that was too open changes other files.
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
# With a group of readers: they may pass the data folder without listing it.
PASSED_FOLDER, SHARED_FOLDER, SHARED_FILE = 0o710, 0o750, 0o440
# Holds which modes the whole folder was last brought to, so that later starts look at its top alone.
MARKER = ".modes"
_LAYOUT = "1"
_OTHERS = 0o077
# What the project keeps at the top of a data folder; an operator's own files there stay as they are.
_OURS = (
    *("accounts.sqlite*", "openai_base_url", "demo.json", MARKER),
    *("raw", "warehouse", "published", "dagster", "logs", "runs", "rebuild"),
)
_log = logging.getLogger("finora.files")


class ForeignFiles(Exception):
    """The data folder belongs to another account; the message names it and what to do."""


def restrict_new_files() -> None:
    """Makes files and folders that this process creates private, whatever the account's own umask is."""
    os.umask(_OTHERS)


def open_lock(path: Path) -> int:
    """Opens a lock file, made where missing, that no other account can open and so none can hold."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) & _OTHERS:
        os.fchmod(descriptor, FILE)
    return descriptor


def make_folder(path: Path) -> None:
    """Makes a private folder where there is none, with its parents."""
    path.mkdir(mode=FOLDER, parents=True, exist_ok=True)


def share_published(path: Path, folder: Path) -> None:
    """Gives a file or folder below `published/` the mode and group with which `folder` is shared."""
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
    """The group that may read what is published."""

    name: str
    gid: int


def secure_home(settings: Settings, *, whole: bool = False) -> None:
    """Makes the data folder where missing and its files private; logs a sentence where it was too open.

    Looks at the folder's top; at all files if `whole`, at the first start of a version and when the group of
    readers has changed. Raises `ForeignFiles` where the folder belongs to another account, `SettingsError`
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
            "%s in the data folder %s to another account, such as %s. Run: chown -R %s %s",
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
    """The account that the data folder belongs to. Raises `ForeignFiles`."""
    owner = home.stat().st_uid
    if owner == os.geteuid():
        return owner
    name = _account(owner)
    if os.geteuid():
        raise ForeignFiles(
            f"The data folder {home} belongs to the account {name}. Run this command as {name}, or set "
            "FINORA_HOME to a folder of yours."
        )
    _log.warning(
        "The data folder %s belongs to the account %s, which cannot open what this command makes as root. "
        "Run it as %s.",
        home,
        name,
        name,
    )
    return owner


def _entries(settings: Settings, whole: bool) -> Iterator[tuple[Path, os.stat_result]]:
    """The folders and files of this project, each folder before what is in it."""
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
    # A restored copy of the published file is read-only, but the warehouse has to be written.
    tops += [home / "warehouse" / "warehouse.duckdb"]
    for top in dict.fromkeys(tops):
        yield from _below(top) if whole else _one(top)


def _is_sqlite(path: Path) -> bool:
    """Whether it is what its URL says: the mode of any other file is none of this project's business."""
    try:
        if path.stat().st_size == 0:
            return False
        # Not by opening the file: closing it would end the locks of SQLite's connections in this process, and
        # the next process to close the database would delete the log that they write.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error):
        return False
    return True


def _one(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        about = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
        yield path, about


def _below(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    for found, about in _one(path):
        yield found, about
        if stat.S_ISDIR(about.st_mode):
            for entry in sorted(found.iterdir()):
                yield from _below(entry)


def _repair(path: Path, about: os.stat_result, home: Path, readers: _Readers | None) -> None:
    """Brings one entry to its mode and, where readers share it, to their group."""
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
        # Written aside a moment ago, and renamed since.
        return
    except PermissionError:
        if not (readers and is_shared):
            raise
        raise SettingsError(
            f"This account cannot give files to the group {readers.name}. Make it a member of the group, or "
            "unset FINORA_READERS_GROUP."
        ) from None
    if path == home and mode & _OTHERS & ~wanted:
        _log.warning(
            "Other accounts of this machine could open the data folder %s (mode %o). It is closed now "
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
            f"FINORA_READERS_GROUP names the group {name}, which this machine does not have. Make it with "
            f"groupadd {name}, or unset the variable."
        ) from None


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"number {uid}"
