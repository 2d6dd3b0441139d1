"""The published copy, opened once and again whenever a newer one has been swapped in; and the sample."""

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
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from finora_pipeline.dashboard.sample import SAMPLE_USER
from finora_pipeline.dashboard.sql import statement
from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.snapshot import attach, close_off

# The blocks that pages' questions read; what does not fit is read again from the system's file cache.
MEMORY_LIMIT = "20MB"
# What one page may take alone, where it does not fit into that: it is given back when the page is made.
ALONE_BYTES = 256_000_000
# Pages that are computed at a time, each on a thread of its own.
PAGES_AT_ONCE = 2
# What DuckDB holds for an open file grows slowly with the questions; a file is opened in milliseconds.
REOPENED_AFTER = 1_000
SAMPLE_SECONDS = 60
_log = logging.getLogger("finora.dashboard")
Made = TypeVar("Made")


@dataclass(slots=True)
class _Opened:
    """One copy, open until the last who reads it is done."""

    connection: duckdb.DuckDBPyConnection
    spill: Path
    version: tuple[int, ...]
    readers: int = 0
    times_read: int = 0
    is_replaced: bool = False
    spans: dict[str, tuple[date | None, date | None]] = field(default_factory=dict)

    def close(self) -> None:
        self.connection.close()
        shutil.rmtree(self.spill, ignore_errors=True)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """For one thread; a cursor does not take over which database is meant."""
        cursor = self.connection.cursor()
        cursor.execute("USE finora")
        return cursor


class Copy:
    """A user's figures in one copy: the user's own, or the sample for who has none."""

    def __init__(
        self, opened: _Opened, cursor: duckdb.DuckDBPyConnection, user_id: str, is_sample: bool
    ) -> None:
        self._opened = opened
        self._cursor = cursor
        self._user_id = user_id
        self.is_sample = is_sample

    def rows(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        """The answer to a question (`sql/`) about this user."""
        return self._cursor.execute(statement(name), values | {"user_id": self._user_id}).fetchall()

    def rows_over(self, source: str, name: str, **values: Any) -> list[tuple[Any, ...]]:
        """The answer to a question that reads `days`, which another file selects."""
        query = f"WITH days AS MATERIALIZED ({statement(source)}) FROM ({statement(name)})"
        return self._cursor.execute(query, values | {"user_id": self._user_id}).fetchall()

    @property
    def span(self) -> tuple[date | None, date | None]:
        """The first and last UTC day with figures; None without any."""
        spans = self._opened.spans
        if self._user_id not in spans:
            spans[self._user_id] = self.rows("span", sample=self.is_sample)[0]
        return spans[self._user_id]


class Copies:
    """Hands out copies: of the published file as it is now, and of a sample for those without figures.

    A copy is attached to a database in memory (`published.attach`).
    """

    def __init__(self, published: Path) -> None:
        self._published = published
        self._lock = threading.Lock()
        self._turns = threading.Semaphore(PAGES_AT_ONCE)
        self._alone = threading.Lock()
        self._current: _Opened | None = None
        self._sample_lock = threading.Lock()
        self._sample: _Opened | None = None
        self._sample_day: date | None = None

    @contextmanager
    def of(self, user_id: str) -> Iterator[Copy]:
        """The user's own figures, or the sample's while there are none."""
        with self._turns, self._reading() as opened:
            if opened is not None:
                with opened.cursor() as cursor:
                    copy = Copy(opened, cursor, user_id, is_sample=False)
                    if copy.span[0] is not None:
                        yield copy
                        return
        # Made without a turn, which others wait for.
        sample = self._sampled()
        with self._turns, sample.cursor() as cursor:
            yield Copy(sample, cursor, SAMPLE_USER, is_sample=True)

    def read(self, user_id: str, make: Callable[[Copy], Made]) -> Made:
        """What a page makes of the user's copy. One that does not fit into memory is made again, with more of
        it and one at a time."""
        try:
            with self.of(user_id) as copy:
                return make(copy)
        except duckdb.OutOfMemoryException:
            with self._alone, self._with_more_memory() as opened, opened.cursor() as cursor:
                copy = Copy(opened, cursor, user_id, is_sample=False)
                if copy.span[0] is None:
                    # The sample is the same for all users, and small.
                    raise
                return make(copy)

    @contextmanager
    def _with_more_memory(self) -> Iterator[_Opened]:
        limit = min(ALONE_BYTES, duckdb_limits().memory_bytes)
        opened = _open(self._published, (), f"{limit}B")
        try:
            yield opened
        finally:
            opened.close()

    def everybody(self) -> dict[str, Any]:
        """What each user cost in the last 30 days, USD by user id."""
        with self._reading() as opened:
            if opened is None:
                return {}
            with opened.cursor() as cursor:
                return dict(cursor.execute(statement("users")).fetchall())

    def close(self) -> None:
        """Closes what is open."""
        with self._lock:
            for opened in (self._current, self._sample):
                if opened:
                    opened.close()
            self._current = self._sample = None

    @contextmanager
    def _reading(self) -> Iterator[_Opened | None]:
        with self._lock:
            opened = self._newest()
            if opened:
                opened.readers += 1
                opened.times_read += 1
        try:
            yield opened
        finally:
            if opened:
                with self._lock:
                    opened.readers -= 1
                    if opened.is_replaced and not opened.readers:
                        opened.close()

    def _newest(self) -> _Opened | None:
        old = self._current
        try:
            about = self._published.stat()
        except FileNotFoundError:
            # Taken away, for a while: what is open can still be read.
            return old
        version = (about.st_ino, about.st_mtime_ns, about.st_size)
        if old is None or old.version != version or old.times_read >= REOPENED_AFTER:
            try:
                self._current = _open(self._published, version)
            except duckdb.Error:
                if old is None:
                    raise
                _log.exception("The published copy cannot be opened; the one before it is shown.")
                return old
            if old:
                old.is_replaced = True
                if not old.readers:
                    old.close()
        return self._current

    def _sampled(self) -> _Opened:
        """The sample of today: 30 days of an imaginary organization, computed as everybody's figures are."""
        today = datetime.now(UTC).date()
        with self._sample_lock:
            if self._sample is None or self._sample_day != today:
                # An older one stays open for whoever reads it: it is small, and made once a day.
                self._sample, self._sample_day = _make_sample(today), today
            return self._sample


def _open(path: Path, version: tuple[int, ...], memory_limit: str | None = None) -> _Opened:
    # Of its own: databases that spill into one folder give their files the same names and spoil each other's.
    spill = Path(tempfile.mkdtemp(prefix="finora-dashboard-"))
    config = {"memory_limit": memory_limit or MEMORY_LIMIT, "threads": 1, "temp_directory": str(spill)}
    opened = _Opened(duckdb.connect(":memory:", config=config), spill, version)
    try:
        attach(opened.connection, path)
        close_off(opened.connection, spills=True)
    except BaseException:
        opened.close()
        raise
    return opened


def _make_sample(today: date) -> _Opened:
    with tempfile.TemporaryDirectory(prefix="finora-sample-") as folder:
        # In a process of its own: what it imports and computes would double this one's memory for good.
        file = Path(folder) / "sample.duckdb"
        command = [sys.executable, "-m", "finora_pipeline.dashboard.sample", str(file), today.isoformat()]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=SAMPLE_SECONDS)
        # The file goes at once; what is open of it stays readable.
        return _open(file, ())
