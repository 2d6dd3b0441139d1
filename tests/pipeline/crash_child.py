"""Refreshes killed by SIGKILL at one point, each in its own process (for test_crashes.py).

    python -m tests.pipeline.crash_child

Reads lines of JSON, a point and an environment each, and prints the exit code. Each refresh runs in a fork,
which saves the seconds of the imports. Nothing is faked: the real functions run until the process kills
itself before or after one of them.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finora_pipeline.accounts.refresh_log import RefreshLog
from finora_pipeline.cli import runs
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse import load, metrics, publish
from finora_pipeline.warehouse.raw import RawPages, RawWriter


def killed(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def before(owner: Any, name: str) -> None:
    assert hasattr(owner, name)
    setattr(owner, name, killed)


def after(owner: Any, name: str, when: Callable[..., bool] = lambda *_: True) -> None:
    real = getattr(owner, name)

    def then_killed(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        return killed() if when(*arguments) else result

    setattr(owner, name, then_killed)


def section_is(table: str, name: str) -> Callable[..., bool]:
    return lambda _connection, *section: section[:2] == (table, name)


POINTS: dict[str, Callable[[], None]] = {
    "before anything lands": lambda: before(RawWriter, "land"),
    "while a raw file is written": lambda: before(Path, "rename"),
    "after landing, before it is recorded": lambda: before(RefreshLog, "record"),
    "after fetching, before loading": lambda: before(load, "load_files"),
    "inside the load of costs": lambda: after(load, "run_section", section_is("daily_costs", "load")),
    "after the load's commit, before the move": lambda: before(RawPages, "archive"),
    "inside the load of usage": lambda: after(load, "run_section", section_is("daily_usage", "load")),
    "inside the metrics": lambda: after(metrics, "run_section", section_is("daily_model_costs", "refresh")),
    "after the metrics": lambda: before(publish, "publish"),
    "before the published copy is swapped in": lambda: before(publish, "_swap_in"),
    "after the swap, before it is recorded": lambda: before(RefreshLog, "mark_published"),
}


def main(point: str) -> None:
    settings = Settings.from_environment()
    POINTS[point]()
    if point == "after the metrics":
        from finora_pipeline.ingest import publish as serve

        before(serve, "publish")
    runs.refresh(settings, trailing_window(datetime.now(UTC).date()))


def serve() -> None:
    """Fork for each line of the standard input."""
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            os.environ |= order["environment"]
            try:
                main(order["point"])
            finally:
                # A forked copy must not run its parent's clean-up.
                os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
