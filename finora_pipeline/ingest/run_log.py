"""The log of runs for machines: JSON lines with the run and, for lines about one user, the user.

All runs write to `$FINORA_HOME/logs/runs.log`, which is rotated when a run begins.
"""

import fcntl
import logging
import os
import re
from collections.abc import Generator
from contextlib import contextmanager
from logging.handlers import WatchedFileHandler
from pathlib import Path

import structlog

from finora_pipeline.data_folder.private_files import open_lock

# The logger whose lines go only to this file.
USERS_LOG = "finora_pipeline.users"
_ROOT = "finora_pipeline"
MOST_BYTES = 10_000_000
KEPT = 5


@contextmanager
def run_log(home: Path, run_id: str) -> Generator[None]:
    """Write what the project logs within the block to the log of runs, with the run id."""
    path = home / "logs" / "runs.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    _rotate(path)
    handler = WatchedFileHandler(path, encoding="utf-8")
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(),
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
            ],
        )
    )

    def with_run(record: logging.LogRecord) -> bool:
        record.run_id = run_id
        return True

    handler.addFilter(with_run)
    users_log = logging.getLogger(USERS_LOG)
    users_log.setLevel(logging.INFO)
    users_log.propagate = False
    loggers = (logging.getLogger(_ROOT), users_log)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def delete_user_lines(home: Path, user_id: str) -> int:
    """Delete the lines that name a user from all log files, including rotated ones; return how many.

    Files are changed in place, since `finora up` keeps its files open for appending.
    """
    folder = home / "logs"
    if not folder.exists():
        return 0
    # Matches the whole id only, not part of a longer one.
    named = re.compile(rf"(?<![\w@+-])(?<!\w\.){re.escape(user_id)}(?![\w@+-])(?!\.\w)".encode())
    removed = 0
    with os.fdopen(open_lock(folder / ".runs.lock"), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(folder.glob("*.log*")):
            with path.open("r+b") as file:
                lines = file.readlines()
                kept = [line for line in lines if not named.search(line)]
                if len(kept) < len(lines):
                    file.seek(0)
                    file.truncate()
                    file.writelines(kept)
                    removed += len(lines) - len(kept)
    return removed


def _rotate(path: Path) -> None:
    """Rotate a long file. Running runs notice and continue in the new file."""
    with os.fdopen(open_lock(path.with_name(".runs.lock")), "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists() or path.stat().st_size < MOST_BYTES:
            return
        for number in range(KEPT - 1, 0, -1):
            older = path.with_name(f"{path.name}.{number}")
            if older.exists():
                older.rename(path.with_name(f"{path.name}.{number + 1}"))
        path.rename(path.with_name(f"{path.name}.1"))
