"""Says in one sentence what each library says in its own words: the disk is full."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# DuckDB, SQLite and Postgres tell it in the text alone.
_SAID = ("No space left on device", "database or disk is full", "Disk quota exceeded")

# With less than this a SQLite database cannot be opened for writing.
NO_ROOM_BYTES = 1_000_000


class DiskFull(Exception):
    """There is no room for what had to be written; the message says where and what to do."""


@contextmanager
def told_if_full(where: Path | str) -> Iterator[None]:
    """Turns any error of a full disk into `DiskFull`, which names the place."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not _is_full(error, where):
            raise
        raise DiskFull(
            f"The disk of {where} is full: make room, and the next refresh goes on. What is published stays."
        ) from None


def _is_full(error: Exception, where: Path | str) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    told = str(error)
    if any(said in told for said in _SAID):
        return True
    # SQLite's word for it where it maps its shared memory, and for broken disks, too.
    return "disk I/O error" in told and isinstance(where, Path) and _has_no_room(where)


def _has_no_room(folder: Path) -> bool:
    return shutil.disk_usage(folder).free < NO_ROOM_BYTES
