"""Locks of runs: a run's process holds an operating-system lock that is released when the process dies.

Without it Dagster's default launcher leaves a run STARTED whose machine or process tree was killed.
"""

import atexit
import fcntl
import os
from pathlib import Path

from finora_pipeline.data_folder.private_files import open_lock

_held: dict[Path, int] = {}


def hold(home: Path, run_id: str) -> None:
    """Hold the run's lock until `release` or until this process exits or dies."""
    path = _path(home, run_id)
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_lock(path)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _held[path] = descriptor
    atexit.register(release, home, run_id)


def release(home: Path, run_id: str) -> None:
    """Release the lock of a run that ended; does nothing if this process does not hold it."""
    path = _path(home, run_id)
    if (descriptor := _held.pop(path, None)) is not None:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def is_alive(home: Path, run_id: str) -> bool:
    """Whether a process holds the run's lock."""
    try:
        descriptor = os.open(_path(home, run_id), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _path(home: Path, run_id: str) -> Path:
    return home / "runs" / f"{run_id}.lock"
