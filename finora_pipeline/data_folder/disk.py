"""Storage errors: what libraries report about files and databases, as one sentence that says what to do.

    StorageError
    ├── DiskFull          no space, no inodes
    ├── DiskReadOnly      mounted read-only
    ├── NoPermission      a file belongs to another account
    ├── DatabaseInUse     another program holds it for longer than `wait_seconds`
    ├── DatabaseDamaged   the file cannot be read
    └── DatabaseUnreachable   the server does not respond or refuses this account

Each has the library's error as its cause, for logs.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# With less free space SQLite cannot open a database for writing.
NO_ROOM_BYTES = 1_000_000
# Libraries whose errors are recognized by their text, since their classes are too general.
_LIBRARIES = ("duckdb", "_duckdb", "sqlalchemy", "sqlite3", "psycopg2", "psycopg", "pyarrow")
_FULL = (
    "No space left on device",
    "database or disk is full",
    "Disk quota exceeded",
    # DuckDB limits its spill files to most of the free disk.
    "max_temp_directory_size",
)
_READ_ONLY = ("Read-only file system",)
_CLOSED = ("Permission denied", "Operation not permitted")
_IN_USE = ("Could not set lock on file", "database is locked", "database table is locked")
_DAMAGED = (
    "Corrupt database file",
    "not a valid DuckDB database file",
    "Could not read enough bytes",
    "database disk image is malformed",
    "file is not a database",
    "malformed database schema",
    "database has been invalidated",
)
_DAMAGED_CLASSES = ("SerializationException",)
_UNREACHABLE = (
    "could not connect to server",
    "connection to server",
    "could not translate host name",
    "server closed the connection",
    "terminating connection",
    "timeout expired",
)
_REFUSED = r'password authentication failed|no pg_hba.conf entry|(database|role) "[^"]*" does not exist'


class StorageError(Exception):
    """Something is wrong with a disk, file or database; the message says what, and what to do."""


class DiskFull(StorageError):
    """No space or inodes are left for a write."""


class DiskReadOnly(StorageError):
    """The disk is mounted read-only."""


class NoPermission(StorageError):
    """This account may not open a file."""


class DatabaseInUse(StorageError):
    """Another program holds the database."""


class DatabaseDamaged(StorageError):
    """The database cannot be read."""


class DatabaseUnreachable(StorageError):
    """A database server does not respond or refuses this account."""


@dataclass(frozen=True, slots=True)
class Store:
    """A database as messages name it: its name, the folder of its disk, and what to do if it is damaged."""

    name: str
    disk: Path | str
    when_damaged: str


def warehouse_store(home: Path, database: Path) -> Store:
    """The pipeline's own database below a data folder."""
    return Store(
        f"The warehouse {database}",
        home,
        "Run finora rebuild --replace to build it again from the raw pages.",
    )


def published_store(database: Path) -> Store:
    """The file that readers open."""
    return Store(f"The published file {database}", database.parent, "finora refresh publishes it again.")


def accounts_store(place: Path | str) -> Store:
    """The accounts database: its file, or the host of its server."""
    if isinstance(place, str):
        name = f"The accounts database on {place}"
        return Store(name, "the accounts database", "Check the server's log and restore it from your backup.")
    remedy = "Restore it from your backup, or correct FINORA_ACCOUNTS_URL."
    return Store(f"The accounts database {place}", place.parent, remedy)


def runs_store(dagster_home: Path) -> Store:
    """Dagster's databases."""
    return Store(
        f"Dagster's record of runs in {dagster_home}",
        dagster_home,
        "Stop finora up, move that folder away and start again; only the record of past runs is lost.",
    )


@contextmanager
def storage_errors(store: Store) -> Iterator[None]:
    """Translate libraries' errors about a database or its disk into `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if found := storage_error(error, store):
            raise found from error
        raise


@contextmanager
def translate_disk_full(where: Path | str) -> Iterator[None]:
    """Translate libraries' errors about the disk of a folder into `StorageError`, which names the folder."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if found := _of_disk(error, where):
            raise found from error
        raise


def storage_error(error: BaseException, store: Store) -> StorageError | None:
    """The `StorageError` for an error about a database or its disk; None for any other error."""
    return _of_disk(error, store.disk) or _of_database(error, store)


def is_in_use(error: BaseException) -> bool:
    """Whether another program holds the database, so that a retry may succeed."""
    return _says(error, _IN_USE)


def _of_disk(error: BaseException, where: Path | str) -> StorageError | None:
    code = error.errno if isinstance(error, OSError) else None
    if (
        code in (errno.ENOSPC, errno.EDQUOT)
        or _says(error, _FULL)
        or _is_full_as_sqlite_reports(error, where)
    ):
        if isinstance(where, Path) and _has_no_inodes(where):
            return DiskFull(
                f"The disk of {where} has no inodes left for new files. Delete files there; the next refresh "
                "continues, and published data is unaffected."
            )
        return DiskFull(
            f"The disk of {where} is full. Free some space; the next refresh continues, and published data "
            "is unaffected."
        )
    if code == errno.EROFS or _says(error, _READ_ONLY) or _is_read_only_as_sqlite_reports(error, where):
        return DiskReadOnly(
            f"The disk of {where} is read-only. Mount it writable; the next refresh continues."
        )
    if code in (errno.EACCES, errno.EPERM) or _says(error, _CLOSED):
        path = error.filename if isinstance(error, OSError) and error.filename else where
        return NoPermission(
            f"This account may not open {path}. Run the command as the owner of the data folder, or give the "
            "file to this account with chown."
        )
    return None


def _of_database(error: BaseException, store: Store) -> StorageError | None:
    if is_in_use(error):
        holder = re.search(r"\(PID (\d+)\)", _text(error))
        program = f"another program (process {holder[1]})" if holder else "another program"
        return DatabaseInUse(
            f"{store.name} is in use by {program}. Close it there and try again; no data is lost."
        )
    if _says(error, ("version number",)) and "read" in _text(error):
        return DatabaseDamaged(
            f"{store.name} was written by a newer DuckDB. Install the version that this finora requires, "
            "with pip install finora-pipeline."
        )
    if _says(error, _DAMAGED) or (_is_known(error) and type(error).__name__ in _DAMAGED_CLASSES):
        return DatabaseDamaged(
            f"{store.name} cannot be read; it is damaged or another kind of file. {store.when_damaged}"
        )
    if _says(error, ("disk I/O error",)):
        return StorageError(f"{store.name} cannot be read or written. Check its disk and try again.")
    if _says(error, ("unable to open database file", "attempt to write a readonly database")):
        return NoPermission(
            f"{store.name} cannot be opened by this account. Run the command as the owner of the data "
            "folder, or give the file to this account with chown."
        )
    if _is_known(error) and re.search(_REFUSED, _text(error)):
        return DatabaseUnreachable(
            f"{store.name} refuses this account. Check user, password and database in its URL."
        )
    if _says(error, _UNREACHABLE):
        return DatabaseUnreachable(
            f"{store.name} cannot be reached. Check that the server runs and that its URL is "
            "right, then try again."
        )
    return None


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return _is_known(error) and any(text in _text(error) for text in texts)


def _is_known(error: BaseException) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def _text(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error)


def _is_full_as_sqlite_reports(error: BaseException, where: Path | str) -> bool:
    # SQLite reports a full disk like this while mapping shared memory, and broken disks as well.
    return _says(error, ("disk I/O error",)) and isinstance(where, Path) and _has_no_room(where)


def _is_read_only_as_sqlite_reports(error: BaseException, where: Path | str) -> bool:
    texts = ("attempt to write a readonly database", "unable to open database file", "disk I/O error")
    return _says(error, texts) and isinstance(where, Path) and _is_mounted_read_only(where)


def _has_no_room(place: Path) -> bool:
    return shutil.disk_usage(_folder(place)).free < NO_ROOM_BYTES


def _has_no_inodes(place: Path) -> bool:
    about = os.statvfs(_folder(place))
    return about.f_files > 0 and about.f_favail == 0


def _is_mounted_read_only(place: Path) -> bool:
    return bool(os.statvfs(_folder(place)).f_flag & os.ST_RDONLY)


def _folder(place: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    return next(folder for folder in (place, *place.parents) if folder.exists())
