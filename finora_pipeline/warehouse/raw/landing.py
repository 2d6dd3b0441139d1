"""Landing: page sets become raw files, one file per kind."""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from finora_pipeline.data_folder.disk import translate_disk_full
from finora_pipeline.openai_admin.pages import SECONDS_PER_DAY, Page, canonical
from finora_pipeline.openai_admin.provider import PROVIDER
from finora_pipeline.warehouse.raw.files import SCHEMA, sync, write_whole

# Shared by the writers of a process, since two may start in one millisecond. It starts at the clock, so that
# a run that is executed again after a crash uses new names.
_numbers = itertools.count(int(datetime.now(UTC).timestamp() * 1000))


@dataclass(frozen=True)
class PageSet:
    """All pages of a user's window and endpoint, fetched completely."""

    user_id: str
    pages: list[Page]

    @property
    def bytes(self) -> int:
        return sum(len(page.body) for page in self.pages)

    @property
    def fetched_at(self) -> datetime:
        """Fetch time of the earliest page: no page knows less than OpenAI did then."""
        return min(page.fetched_at for page in self.pages)

    @cached_property
    def page_hashes(self) -> list[str]:
        """SHA-256 of the body of each page."""
        return [hashlib.sha256(page.body).hexdigest() for page in self.pages]

    @property
    def sha256(self) -> str:
        """Content hash of windows, groupings and bodies."""
        hashed = zip(self.pages, self.page_hashes, strict=True)
        lines = [
            f"{page.window.start} {page.window.end} {','.join(page.grouping)} {sha256}"
            for page, sha256 in sorted(hashed, key=lambda pair: (pair[0].window.start, pair[0].number))
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RawWriter:
    """Lands the page sets of a run."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id

    def land(self, page_sets: Iterable[PageSet]) -> None:
        """Writes complete page sets to disk, a file per kind; once it returns they survive a crash.

        Raises `DiskFull`.
        """
        by_kind: dict[str, list[PageSet]] = {}
        for page_set in page_sets:
            by_kind.setdefault(page_set.pages[0].endpoint.kind, []).append(page_set)
        with translate_disk_full(self._folder):
            for kind, sets in by_kind.items():
                name = f"{kind}~{self._run_id}~{next(_numbers)}.parquet"
                write_whole(_table(sets, self._run_id), self._folder / name)
            sync(self._folder)


def _table(sets: list[PageSet], run_id: str) -> pa.Table:
    rows = [(one.user_id, one.fetched_at, page) for one in sets for page in one.pages]
    pages = [page for _, _, page in rows]
    columns = [
        [user_id for user_id, _, _ in rows],
        [PROVIDER] * len(rows),
        [page.endpoint.name for page in pages],
        [page.window.start for page in pages],
        [page.window.end for page in pages],
        [",".join(page.grouping) for page in pages],
        [page.number for page in pages],
        [fetched_at for _, fetched_at, _ in rows],
        [run_id] * len(rows),
        [sha256 for one in sets for sha256 in one.page_hashes],
        _texts([page.body for page in pages]),
        [canonical(page) for page in pages],
        [[start // SECONDS_PER_DAY for start in page.head.starts] for page in pages],
        [sorted(page.head.line_items) for page in pages],
    ]
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _texts(bodies: list[bytes]) -> pa.StringArray:
    """The bodies as one array of texts, without a second check of their UTF-8.

    The check of each page found valid UTF-8; Arrow would read every byte again while holding the interpreter.
    """
    ends = pa.array(itertools.accumulate(map(len, bodies), initial=0), pa.int32())
    return pa.StringArray.from_buffers(len(bodies), ends.buffers()[1], pa.py_buffer(b"".join(bodies)))
