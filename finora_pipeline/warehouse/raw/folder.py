"""The raw folder: which raw files are pending, loaded or in quarantine, and how they move."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finora_pipeline.data_folder.private_files import open_lock
from finora_pipeline.warehouse.raw.files import RawFile, raw_file_errors, sync, write_whole
from finora_pipeline.warehouse.raw.landing import RawWriter
from finora_pipeline.warehouse.raw.quarantine import Quarantined, move_to_quarantine


class RawPages:
    """The raw folder of a data folder; creating the object touches nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending = folder / "pending"
        self._pages = folder / "pages"
        self._quarantine = folder / "quarantine"

    def writer(self, run_id: str) -> RawWriter:
        """A writer that lands the page sets of a run; several runs may write at the same time."""
        self._pending.mkdir(parents=True, exist_ok=True)
        return RawWriter(self._pending, run_id)

    @contextmanager
    def landing(self, alone: bool = False) -> Iterator[None]:
        """Waits for and holds the landing lock, shared or, if `alone`, exclusively.

        Writers hold it shared and check that the user still exists; a purge holds it exclusively, so that no
        page of a purged user lands afterwards.
        """
        self._pending.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(self._pending.with_name("landing.lock"))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    def delete_temp_files(self) -> None:
        """Deletes temp files of processes that died; files that a live process is writing stay."""
        for temporary in (*self._pending.glob(".*.parquet.*"), *self._pages.glob("*/*/.*.parquet.*")):
            if not _is_running(int(temporary.suffix[1:])):
                temporary.unlink(missing_ok=True)

    def pending(self, kind: str | None = None) -> list[RawFile]:
        """Files that have landed and are not moved yet, by name; all kinds by default."""
        return [file for file in _files_in(self._pending) if kind in (None, file.kind)]

    def archived(self) -> Iterator[RawFile]:
        """Every loaded file, oldest fetch day first within a kind."""
        for path in sorted(self._pages.glob("*/*/*.parquet")):
            if file := RawFile.at(path):
                yield file

    def quarantined(self) -> list[Quarantined]:
        """The files in quarantine, by name."""
        return [Quarantined.read(file) for file in _files_in(self._quarantine)]

    def archive(self, file: RawFile, fetched_on: date) -> None:
        """Moves a loaded file to its kind and fetch day."""
        folder = self._pages / file.kind / fetched_on.isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        file.path.rename(folder / file.name)

    def quarantine(self, file: RawFile, reason: str) -> None:
        """Moves a landed file that cannot be loaded to quarantine, with a sentence why."""
        move_to_quarantine(file, self._quarantine, reason)

    def split(self, file: RawFile) -> list[RawFile]:
        """Replaces a landed file by two with about half of its page sets each.

        Returns the file itself if it has only one set. A crash may leave sets in two files; they are loaded
        once. Raises `RawFileDamaged`.
        """
        with raw_file_errors(file.path):
            table = pq.read_table(file.path)
        sets = [_set_of(table, row) for row in range(table.num_rows)]
        distinct = list(dict.fromkeys(sets))
        if len(distinct) < 2:
            return [file]
        first = set(distinct[: len(distinct) // 2])
        parts = []
        for part, is_wanted in enumerate((True, False), 1):
            number = f"{file.number}{part}"
            path = file.path.with_name(f"{file.kind}~{file.run_id}~{number}.parquet")
            write_whole(table.filter(pa.array([(one in first) is is_wanted for one in sets])), path)
            parts.append(RawFile(path, file.kind, file.run_id, number))
        file.path.unlink()
        sync(self._pending)
        return parts


def _files_in(folder: Path) -> list[RawFile]:
    if not folder.exists():
        return []
    return [file for path in sorted(folder.iterdir()) if (file := RawFile.at(path))]


def _set_of(table: pa.Table, row: int) -> tuple[object, ...]:
    return tuple(table[column][row].as_py() for column in ("user_id", "endpoint", "fetched_at"))


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
