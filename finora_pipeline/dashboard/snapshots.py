"""The published snapshot, reopened after each publish, and a sample for users without known days."""

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from finora_pipeline.dashboard.known_days import KnownDays
from finora_pipeline.dashboard.sql import statement
from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.snapshot import attach, close_off

# DuckDB's buffers for the queries of pages; other blocks are read again from the system's file cache.
MEMORY_LIMIT = "20MB"
# Memory of a single page that does not fit into that limit, freed after it.
ALONE_BYTES = 256_000_000
# Pages computed at the same time, each in a thread.
PAGES_AT_ONCE = 2
# DuckDB's memory for an open file grows slowly with each query; opening one takes milliseconds.
REOPENED_AFTER = 1_000
# The user in the file that `sample.py` makes, and the longest that may take.
SAMPLE_USER = "sample"
SAMPLE_SECONDS = 60
_log = logging.getLogger("finora.dashboard")
Result = TypeVar("Result")


def utc_now() -> datetime:
    """The present, for all that pages compute; tests pass another clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class TodaySoFar:
    """The spend of today in USD, as known at a moment."""

    usd: Decimal
    known_until: datetime


@dataclass(slots=True)
class Snapshot:
    """A reference-counted handle on a published file; once replaced, its last reader closes it."""

    connection: duckdb.DuckDBPyConnection
    spill: Path
    version: tuple[int, ...]
    readers: int = 0
    times_read: int = 0
    is_replaced: bool = False
    known_days: dict[tuple[str, date], KnownDays] = field(default_factory=dict)

    def close(self) -> None:
        self.connection.close()
        shutil.rmtree(self.spill, ignore_errors=True)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A cursor for one thread. Cursors do not inherit the current database."""
        cursor = self.connection.cursor()
        cursor.execute("USE finora")
        return cursor


class UserSnapshot:
    """One user's data in a snapshot; the sample's for a user without known days."""

    def __init__(
        self, snapshot: Snapshot, cursor: duckdb.DuckDBPyConnection, user_id: str, is_sample: bool
    ) -> None:
        self._snapshot = snapshot
        self._cursor = cursor
        self._user_id = user_id
        self.is_sample = is_sample

    def rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query (`sql/`) for this user."""
        return self._cursor.execute(statement(name), values | {"user_id": self._user_id}).fetchall()

    def rows_over(self, source: str, name: str, **values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query over `days`, which the query `source` returns."""
        query = f"WITH days AS MATERIALIZED ({statement(source)}) FROM ({statement(name)})"
        return self._cursor.execute(query, values | {"user_id": self._user_id}).fetchall()

    def known_days(self, today: date) -> KnownDays:
        """Which UTC days are known, seen from today."""
        known = self._snapshot.known_days
        if (self._user_id, today) not in known:
            known[self._user_id, today] = KnownDays.of_row(self.rows("span", today=today)[0])
        return known[self._user_id, today]

    def today_so_far(self, today: date, model: str | None, project_id: str | None) -> TodaySoFar | None:
        """The spend of today, of a model or project if given; None if today was not read yet."""
        known_until = self.known_days(today).today_until
        if known_until is None:
            return None
        ((usd,),) = self.rows("today", today=today, model=model, project_id=project_id)
        return TodaySoFar(usd, known_until)


class Snapshots:
    """Opens the newest published file for readers, and a sample for users without known days.

    A snapshot is attached to an in-memory database (`warehouse.snapshot.attach`).
    """

    def __init__(self, published: Path, now: Callable[[], datetime] = utc_now) -> None:
        self._published = published
        self._now = now
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(PAGES_AT_ONCE)
        self._alone = threading.Lock()
        self._current: Snapshot | None = None
        self._sample_lock = threading.Lock()
        self._sample: Snapshot | None = None
        self._sample_day: date | None = None

    @contextmanager
    def of(self, user_id: str) -> Iterator[UserSnapshot]:
        """Open the user's own data, or the sample for a user without known days."""
        with self._turns, self._reading() as snapshot:
            if snapshot is not None:
                with snapshot.cursor() as cursor:
                    own = UserSnapshot(snapshot, cursor, user_id, is_sample=False)
                    if own.known_days(self._today()).since is not None:
                        yield own
                        return
        # Made outside a turn, so that other pages do not wait for it.
        sample = self._sample_of_today()
        with self._turns, sample.cursor() as cursor:
            yield UserSnapshot(sample, cursor, SAMPLE_USER, is_sample=True)

    def read(self, user_id: str, compute: Callable[[UserSnapshot], Result]) -> Result:
        """Compute a page from the user's snapshot.

        A page that does not fit into memory is computed again with more of it, one at a time. Raises
        `duckdb.OutOfMemoryException` if that fails, too.
        """
        try:
            with self.of(user_id) as snapshot:
                return compute(snapshot)
        except duckdb.OutOfMemoryException:
            with self._alone, self._with_more_memory() as opened, opened.cursor() as cursor:
                own = UserSnapshot(opened, cursor, user_id, is_sample=False)
                if own.known_days(self._today()).since is None:
                    # The sample is small: more memory would not help.
                    raise
                return compute(own)

    @contextmanager
    def _with_more_memory(self) -> Iterator[Snapshot]:
        limit = min(ALONE_BYTES, duckdb_limits().memory_bytes)
        snapshot = _open(self._published, (), f"{limit}B")
        try:
            yield snapshot
        finally:
            snapshot.close()

    def spend_by_user(self) -> dict[str, Any]:
        """USD of the last 30 days by user id; empty before the first publish."""
        with self._reading() as snapshot:
            if snapshot is None:
                return {}
            with snapshot.cursor() as cursor:
                return dict(cursor.execute(statement("users")).fetchall())

    def close(self) -> None:
        """Close the open files."""
        with self._lock:
            for snapshot in (self._current, self._sample):
                if snapshot:
                    snapshot.close()
            self._current = self._sample = None

    @contextmanager
    def _reading(self) -> Iterator[Snapshot | None]:
        with self._lock:
            snapshot = self._newest()
            if snapshot:
                snapshot.readers += 1
                snapshot.times_read += 1
        try:
            yield snapshot
        finally:
            if snapshot:
                with self._lock:
                    snapshot.readers -= 1
                    if snapshot.is_replaced and not snapshot.readers:
                        snapshot.close()

    def _newest(self) -> Snapshot | None:
        old = self._current
        try:
            about = self._published.stat()
        except FileNotFoundError:
            # The file was removed, perhaps for a moment; the open one still reads.
            return old
        version = (about.st_ino, about.st_mtime_ns, about.st_size)
        if old is None or old.version != version or old.times_read >= REOPENED_AFTER:
            try:
                self._current = _open(self._published, version)
            except duckdb.Error:
                if old is None:
                    raise
                _log.exception("The published snapshot cannot be opened; the previous one is shown.")
                return old
            if old:
                old.is_replaced = True
                if not old.readers:
                    old.close()
        return self._current

    def _sample_of_today(self) -> Snapshot:
        """The sample of today, made by `sample.py`."""
        today = self._today()
        with self._sample_lock:
            if self._sample is None or self._sample_day != today:
                # An older sample stays open for its readers: it is small, and one is made a day.
                self._sample, self._sample_day = _make_sample(today), today
            return self._sample

    def _today(self) -> date:
        return self._now().date()


def _open(path: Path, version: tuple[int, ...], memory_limit: str | None = None) -> Snapshot:
    # Databases that spill into one folder use the same file names and corrupt each other's.
    spill = Path(tempfile.mkdtemp(prefix="finora-dashboard-"))
    config = {"memory_limit": memory_limit or MEMORY_LIMIT, "threads": 1, "temp_directory": str(spill)}
    snapshot = Snapshot(duckdb.connect(":memory:", config=config), spill, version)
    try:
        attach(snapshot.connection, path)
        close_off(snapshot.connection, spills=True)
    except BaseException:
        snapshot.close()
        raise
    return snapshot


def _make_sample(today: date) -> Snapshot:
    with tempfile.TemporaryDirectory(prefix="finora-sample-") as folder:
        # In a child process, because its imports and computation would double this one's memory for good.
        file = Path(folder) / "sample.duckdb"
        command = [sys.executable, "-m", "finora_pipeline.dashboard.sample", str(file), today.isoformat()]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=SAMPLE_SECONDS)
        # The file is deleted at once; the open handle stays readable.
        return _open(file, ())
