"""Raw pages on disk: Parquet, one row a page as OpenAI sent it.

    raw/pending/<kind>~<run>~<number>.parquet       landed, not loaded yet
    raw/pages/<kind>/<day fetched>/<same name>      loaded
    raw/quarantine/<same name>                      cannot be loaded; <same name>.json says why

A file appears under its name only when it is whole and on disk, and holds complete page sets only. It is
moved after the transaction that loads it; a file whose move was lost is recognised by the ledger.
"""

import fcntl
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finora_pipeline.data_folder.disk import StorageError, translate_disk_full
from finora_pipeline.data_folder.private_files import open_lock
from finora_pipeline.openai_admin.pages import SECONDS_PER_DAY, Page, canonical, pieces

PROVIDER = "openai"
SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("provider", pa.string(), nullable=False),
        pa.field("endpoint", pa.string(), nullable=False),
        # UTC days asked for, the end exclusive.
        pa.field("window_start", pa.date32(), nullable=False),
        pa.field("window_end", pa.date32(), nullable=False),
        pa.field("grouping", pa.string(), nullable=False),
        pa.field("page_number", pa.int32(), nullable=False),
        # The moment of the whole set: that of its first page.
        pa.field("fetched_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("body", pa.string(), nullable=False),
        # The same page in the form that SQL reads exactly, where `body` has another: `pages.canonical`.
        pa.field("canonical", pa.string()),
        # The UTC days that the page has a bucket of, empty ones included: no other day is replaced.
        pa.field("days", pa.list_(pa.date32()), nullable=False),
        # The distinct line items of the page, so that they can be parsed without reading all bodies.
        pa.field("line_items", pa.list_(pa.string()), nullable=False),
    ]
)
# Statistics of whole pages would take longer than their compression.
_SMALL_COLUMNS = [field.name for field in SCHEMA if field.name not in ("body", "canonical")]
# DuckDB takes in a row group's bodies at once, in each of its threads, several times over.
ROW_GROUP_BYTES = 1_000_000
# The columns that the facts are made of.
_TEXT_COLUMNS = ("user_id", "provider", "endpoint", "fetched_at", "body", "canonical")
# To take a text apart takes ten times its length of memory, which DuckDB cannot spill.
LONGEST_TEXT_BYTES = 2 * ROW_GROUP_BYTES
_NAME = re.compile(r"(?P<kind>\w+)~(?P<run_id>[\w-]+)~(?P<number>\d+)\.parquet")


class RawFileDamaged(StorageError):
    """A raw file is not whole Parquet; the message says what to do."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what Arrow says of a damaged file into `RawFileDamaged`; a disk's own error has a number."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RawFileDamaged(
            f"The raw file {path} is damaged. Put it back from your backup, or move it to raw/quarantine."
        ) from error


@dataclass(frozen=True, slots=True)
class RawFile:
    """A raw file by its name's parts."""

    path: Path
    kind: str
    run_id: str

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A raw file that cannot be loaded: why, since when, and its page sets by user, endpoint, moment of the
    read and UTC days (none for a file that cannot be read at all)."""

    file: RawFile
    reason: str
    at: datetime
    sets: list[tuple[str, str, datetime, list[date]]]

    @classmethod
    def read(cls, file: RawFile) -> "Quarantined":
        """What stands beside the file; a file that was put there by hand has no reason."""
        beside = file.path.with_name(f"{file.name}.json")
        found = json.loads(beside.read_text()) if beside.exists() else {}
        return cls(
            file,
            found.get("reason", "It was put there by hand."),
            datetime.fromisoformat(found["quarantined_at"]) if found else datetime.now(UTC),
            [
                (user_id, endpoint, datetime.fromisoformat(at), [date.fromisoformat(day) for day in days])
                for user_id, endpoint, at, days in found.get("sets", [])
            ],
        )

    @property
    def user_ids(self) -> list[str]:
        return sorted({user_id for user_id, *_ in self.sets})

    def remove(self) -> None:
        """Deletes the file, when newer pages have taken its place."""
        self.file.path.unlink(missing_ok=True)
        self.file.path.with_name(f"{self.file.name}.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class PageSet:
    """All pages of one complete read of one endpoint of one user."""

    user_id: str
    pages: list[Page]

    @property
    def bytes(self) -> int:
        return sum(len(page.body) for page in self.pages)

    @property
    def fetched_at(self) -> datetime:
        """When the first of its pages came, whichever that was: none says less than was known then."""
        return min(page.fetched_at for page in self.pages)

    @cached_property
    def page_hashes(self) -> list[str]:
        """The SHA-256 of each page's body."""
        return [hashlib.sha256(page.body).hexdigest() for page in self.pages]

    @property
    def sha256(self) -> str:
        """Tells a page set from every other that was asked or answered otherwise."""
        hashed = zip(self.pages, self.page_hashes, strict=True)
        lines = [
            f"{page.window.start} {page.window.end} {','.join(page.grouping)} {sha256}"
            for page, sha256 in sorted(hashed, key=lambda pair: (pair[0].window.start, pair[0].number))
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class RawPages:
    """The raw folder of a data folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pending = folder / "pending"
        self._pages = folder / "pages"
        self._quarantine = folder / "quarantine"

    def writer(self, run_id: str) -> "RawWriter":
        """Lands the page sets of a run; several runs may write at the same time."""
        self._pending.mkdir(parents=True, exist_ok=True)
        return RawWriter(self._pending, run_id)

    @contextmanager
    def landing(self, alone: bool = False) -> Iterator[None]:
        """Waits for and holds the right to land, which many may have; `alone`, nobody has it meanwhile.

        Whoever lands looks under it whose pages are wanted still, and whoever forgets a user does so alone:
        no page of theirs lands afterwards.
        """
        self._pending.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(self._pending.with_name("landing.lock"))
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    def remove_halves(self) -> None:
        """Removes what processes that were killed have written aside; what another is writing stays."""
        for half in (*self._pending.glob(".*.parquet.*"), *self._pages.glob("*/*/.*.parquet.*")):
            if not _is_running(int(half.suffix[1:])):
                half.unlink(missing_ok=True)

    def pending(self, kind: str | None = None) -> list[RawFile]:
        """Files that have landed and are not moved yet, of one kind or all, by name."""
        if not self._pending.exists():
            return []
        found = [(path, _NAME.fullmatch(path.name)) for path in sorted(self._pending.iterdir())]
        return [
            RawFile(path, match["kind"], match["run_id"])
            for path, match in found
            if match and kind in (None, match["kind"])
        ]

    def archive(self, file: RawFile, fetched_on: date) -> None:
        """Moves a loaded file out of the way."""
        folder = self._pages / file.kind / fetched_on.isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        file.path.rename(folder / file.name)

    def split(self, file: RawFile) -> list[RawFile]:
        """Two landed files in the place of one, each with about half of its page sets; the file itself where
        it has only one. A crash on the way leaves sets twice, which are loaded once."""
        with reading(file.path):
            table = pq.read_table(file.path)
        sets = [_set_of(table, row) for row in range(table.num_rows)]
        distinct = list(dict.fromkeys(sets))
        if len(distinct) < 2:
            return [file]
        first = set(distinct[: len(distinct) // 2])
        parts = []
        for part, is_wanted in enumerate((True, False), 1):
            name = _NAME.fullmatch(file.name)
            assert name, "a landed file has the name of one"
            path = file.path.with_name(f"{file.kind}~{file.run_id}~{name['number']}{part}.parquet")
            write_whole(table.filter(pa.array([(one in first) is is_wanted for one in sets])), path)
            parts.append(RawFile(path, file.kind, file.run_id))
        file.path.unlink()
        _sync(self._pending)
        return parts

    def quarantine(self, file: RawFile, reason: str) -> None:
        """Puts a landed file that cannot be loaded where no load looks for it, with a sentence why."""
        self._quarantine.mkdir(parents=True, exist_ok=True)
        entry: dict[str, object] = {"reason": reason, "quarantined_at": datetime.now(UTC).isoformat()}
        try:
            with reading(file.path):
                table = pq.read_table(file.path, columns=["user_id", "endpoint", "fetched_at", "days"])
        except RawFileDamaged:
            entry["sets"] = []
        else:
            days: dict[tuple[str, str, str], set[str]] = {}
            for row in table.to_pylist():
                key = (row["user_id"], row["endpoint"], row["fetched_at"].isoformat())
                days.setdefault(key, set()).update(day.isoformat() for day in row["days"])
            entry["sets"] = [[*key, sorted(found)] for key, found in days.items()]
        target = self._quarantine / file.name
        write_text(target.with_name(f"{file.name}.json"), json.dumps(entry))
        file.path.rename(target)
        _sync(self._quarantine)

    def quarantined(self) -> list["Quarantined"]:
        """What is in quarantine, by name."""
        if not self._quarantine.exists():
            return []
        return [
            Quarantined.read(RawFile(path, match["kind"], match["run_id"]))
            for path in sorted(self._quarantine.iterdir())
            if (match := _NAME.fullmatch(path.name))
        ]

    def archived(self) -> Iterator[RawFile]:
        """Every loaded file, oldest day first within a kind."""
        for path in sorted(self._pages.glob("*/*/*.parquet")):
            if match := _NAME.fullmatch(path.name):
                yield RawFile(path, match["kind"], match["run_id"])


# Of all writers of a process, since two may begin in one millisecond; from the clock, so that a run that is
# executed again after a crash takes fresh names.
_numbers = itertools.count(int(datetime.now(UTC).timestamp() * 1000))


class RawWriter:
    """Lands the page sets of one run."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder
        self._run_id = run_id

    def land(self, page_sets: Iterable[PageSet]) -> None:
        """Writes complete reads to disk, a file a kind; when it returns they survive a crash.

        Raises `DiskFull`.
        """
        by_kind: dict[str, list[PageSet]] = {}
        for page_set in page_sets:
            by_kind.setdefault(page_set.pages[0].endpoint.kind, []).append(page_set)
        with translate_disk_full(self._folder):
            for kind, sets in by_kind.items():
                name = f"{kind}~{self._run_id}~{next(_numbers)}.parquet"
                write_whole(_table(sets, self._run_id), self._folder / name)
            _sync(self._folder)


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
    """The bodies, which their check found to be UTF-8, in one piece: Arrow would look at each byte again, and
    hold the interpreter meanwhile."""
    ends = pa.array(itertools.accumulate(map(len, bodies), initial=0), pa.int32())
    return pa.StringArray.from_buffers(len(bodies), ends.buffers()[1], pa.py_buffer(b"".join(bodies)))


def write_whole(table: pa.Table, path: Path) -> None:
    """Writes raw pages under a name that holds the whole file or none, also after a crash."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    pages_a_group = max(1, ROW_GROUP_BYTES * table.num_rows // table.nbytes)
    try:
        # Bodies repeat themselves within a page only: a dictionary would just be built and dropped. Arrow
        # writes the file itself, since a Python file would make it wait for the interpreter at every write.
        pq.write_table(
            table,
            aside,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=_SMALL_COLUMNS,  # pyright: ignore[reportArgumentType]
            row_group_size=pages_a_group,
        )
        _sync(aside)
        aside.rename(path)
    except BaseException:
        # Half a file would keep a full disk full.
        aside.unlink(missing_ok=True)
        raise


def cut_long_pages(file: RawFile, folder: Path) -> Path:
    """A file of the same name with the texts of a raw file's pages of costs or usage cut into pieces that
    DuckDB takes apart in little memory; the raw file itself where no page is long."""
    with reading(file.path), pq.ParquetFile(file.path) as whole:
        if not _has_long_page(whole.metadata):
            return file.path
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file.name
        schema = pa.schema([SCHEMA.field(name) for name in _TEXT_COLUMNS])
        # It is read once, at once.
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(path, schema, **plain) as cut:
            for group in range(whole.num_row_groups):
                for row in whole.read_row_group(group, columns=list(_TEXT_COLUMNS)).to_pylist():
                    text = (row["canonical"] or row["body"]).encode()
                    for piece in pieces(text, ROW_GROUP_BYTES):
                        one = row | {"body": piece.decode(), "canonical": None}
                        cut.write_table(pa.Table.from_pylist([one], schema))
    return path


def is_damaged(file: RawFile) -> bool:
    """Whether a raw file cannot be read whole."""
    try:
        with reading(file.path), pq.ParquetFile(file.path) as whole:
            for group in range(whole.num_row_groups):
                whole.read_row_group(group)
    except RawFileDamaged:
        return True
    return False


def _has_long_page(metadata: pq.FileMetaData) -> bool:
    texts = [index for index, name in enumerate(metadata.schema.names) if name in ("body", "canonical")]
    return any(
        metadata.row_group(group).column(column).total_uncompressed_size > LONGEST_TEXT_BYTES
        for group in range(metadata.num_row_groups)
        for column in texts
    )


def write_text(path: Path, text: str) -> None:
    """Writes a small file under a name that holds the whole text or none, also after a crash."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    _sync(aside)
    aside.rename(path)


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


def _sync(path: Path) -> None:
    """Makes a file, or the names of the files in a folder, survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
