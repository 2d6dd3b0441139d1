"""Publishes killed by SIGKILL at one point, each in its own process (for test_manifest.py).

    python -m tests.warehouse.publish_child POINT=HOME …

Prints an exit code a line. Each publish runs in a fork, which saves the seconds of the imports. Nothing is
faked: the real functions run until the process kills itself before or after one of them.
"""

import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finora_pipeline.warehouse import manifest, parquet_files, publish
from finora_pipeline.warehouse.database import Warehouse


def killed(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str) -> Callable[[], None]:
    assert hasattr(owner, name)
    return lambda: setattr(owner, name, killed)


def after(owner: Any, name: str) -> Callable[[], None]:
    real = getattr(owner, name)

    def then_killed(*arguments: Any, **options: Any) -> Any:
        real(*arguments, **options)
        killed()

    return lambda: setattr(owner, name, then_killed)


POINTS: dict[str, Callable[[], None]] = {
    "before a file is in place": before(parquet_files, "share_published"),
    "after the first file": after(parquet_files, "_write"),
    "before the database is swapped in": before(publish, "_swap_in"),
    "while files are linked": after(manifest, "_link"),
    "before the manifest": before(publish, "write_manifest"),
    "while the manifest is written": before(manifest.os, "fsync"),
    "before earlier snapshots are removed": before(publish, "remove_snapshots"),
    "while an earlier snapshot is removed": after(manifest.os, "unlink"),
    "before the files are recorded": before(publish, "end_publishing"),
}


def main(point: str, home: str) -> int:
    child = os.fork()
    if child == 0:
        POINTS[point]()
        try:
            publish.publish(Warehouse(Path(home)), list, datetime.now(UTC).date())
        finally:
            # A forked copy must not run its parent's clean-up.
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(main(*argument.split("=", 1)), flush=True)
