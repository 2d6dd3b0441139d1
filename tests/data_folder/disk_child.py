"""Refreshes on a disk that is full from one point on, in a separate mount namespace.

    unshare --mount --map-root-user python -m tests.data_folder.disk_child HOME

HOME is a data folder refreshed once. For each point a small tmpfs replaces it, or Dagster's folder, and a
file fills the disk when the point's function is called. Prints a line of JSON for each point. Nothing is
faked: the real functions run.
"""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finora_pipeline.accounts.refresh_log import RefreshLog
from finora_pipeline.cli import runs
from finora_pipeline.data_folder.disk import DiskFull
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.reading import connect
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse import load, metrics, publish
from finora_pipeline.warehouse.raw import RawWriter

MEGABYTES = 48
BALLAST = "ballast"
AT_ONCE = 2
# The functions before which the disk becomes full.
POINTS: dict[str, tuple[Any, str]] = {
    "landing raw pages": (RawWriter, "land"),
    "recording refreshes": (RefreshLog, "record"),
    "loading facts": (load, "load_files"),
    "computing metrics": (metrics, "_refresh_costs"),
    "swapping the copy in": (publish, "_swap_in"),
    "writing the manifest": (publish, "write_manifest"),
    "recording what is published": (RefreshLog, "mark_published"),
    "recording the run": (runs, "build_defs"),
}
# Dagster stores the run's record; all else is in the data folder.
OF_DAGSTER = "recording the run"


def fill(folder: Path) -> None:
    """Write until the disk has no space for a byte."""
    descriptor = os.open(folder / BALLAST, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size in (1 << 20, 1 << 12, 1):
            while True:
                try:
                    os.write(descriptor, b"x" * size)
                except OSError:
                    break
    finally:
        os.close(descriptor)


def fill_before(owner: Any, name: str, folder: Path) -> Callable[[], None]:
    """Fill the disk when the function is called; return a function that undoes it."""
    real = getattr(owner, name)

    def on_a_full_disk(*arguments: Any, **options: Any) -> Any:
        fill(folder)
        return real(*arguments, **options)

    setattr(owner, name, on_a_full_disk)
    return lambda: setattr(owner, name, real)


def published(settings: Settings) -> list[list[str]]:
    """Return every published cost row."""
    with connect(settings.published_database) as connection:
        query = "SELECT user_id, date, project_id, line_item, amount_usd FROM daily_costs ORDER BY ALL"
        return [list(map(str, row)) for row in connection.execute(query).fetchall()]


def refreshed(settings: Settings) -> list[str]:
    """Run a refresh; return its errors."""
    costs_alone = OpenAIAdmin(settings.openai_base_url, endpoints=(), directory=False)
    window = trailing_window(datetime.now(UTC).date())
    try:
        return runs.refresh(settings, window, openai_admin=costs_alone).errors
    except DiskFull as error:
        return [str(error)]


def main(home: Path, point: str, scratch: Path) -> None:
    data, dagster = scratch / "data", scratch / "dagster"
    for folder in (data, dagster):
        folder.mkdir()
    small = dagster if point == OF_DAGSTER else data
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", small], check=True)
    subprocess.run(["cp", "-a", f"{home}/.", data], check=True)
    subprocess.run(["cp", "-a", f"{data}/dagster/.", dagster], check=True)
    os.environ |= {"FINORA_HOME": str(data), "DAGSTER_HOME": str(dagster)}
    settings = Settings.from_environment()
    before = published(settings)
    make_room = fill_before(*POINTS[point], small)
    said = refreshed(settings)
    kept = published(settings)
    make_room()
    (small / BALLAST).unlink()
    said_again = refreshed(settings)
    after = published(settings)
    shown = "old" if kept == before else "new" if kept == after else "neither"
    outcome = {"point": point, "said": said, "shown": shown, "then": said_again}
    left = [str(path.relative_to(data)) for path in data.glob("published/**/.*")]
    line = json.dumps(outcome | {"left": left, "rows": after}) + "\n"
    # One call, under a lock, so that lines of several forks do not mix.
    with Path(home.parent / "output.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sys.stdout.write(line)
        sys.stdout.flush()


def serve(home: Path) -> None:
    """Fork for each point, which saves the seconds of the imports; two at a time."""
    going = 0
    for point in POINTS:
        if going == AT_ONCE:
            os.wait()
            going -= 1
        going += 1
        if os.fork() == 0:
            try:
                with tempfile.TemporaryDirectory(dir=home.parent, ignore_cleanup_errors=True) as scratch:
                    main(home, point, Path(scratch))
            except BaseException:
                traceback.print_exc()
            finally:
                # A forked copy must not run its parent's clean-up.
                os._exit(0)
    for _ in range(going):
        os.wait()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
