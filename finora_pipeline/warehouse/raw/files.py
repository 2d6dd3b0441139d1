"""One raw file: its name, its columns, and how it is written whole, read and cut."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finora_pipeline.data_folder.disk import StorageError
from finora_pipeline.openai_admin.pages import pieces

SCHEMA = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("provider", pa.string(), nullable=False),
        pa.field("endpoint", pa.string(), nullable=False),
        # UTC days requested, the end exclusive.
        pa.field("window_start", pa.date32(), nullable=False),
        pa.field("window_end", pa.date32(), nullable=False),
        pa.field("grouping", pa.string(), nullable=False),
        pa.field("page_number", pa.int32(), nullable=False),
        # Fetch time of the page set: that of its earliest page.
        pa.field("fetched_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("body", pa.string(), nullable=False),
        # The page in a form that SQL reads exactly, where it misreads `body` (`pages.canonical`); else NULL.
        pa.field("canonical", pa.string()),
        # UTC days that the page has a bucket for, empty ones included: only these days are replaced.
        pa.field("days", pa.list_(pa.date32()), nullable=False),
        # Distinct line items of the page, to parse them without reading all bodies.
        pa.field("line_items", pa.list_(pa.string()), nullable=False),
    ]
)
# Statistics of whole pages would take longer than their compression.
_SMALL_COLUMNS = [field.name for field in SCHEMA if field.name not in ("body", "canonical")]
# DuckDB reads the bodies of a row group at once, in each of its threads, several times over.
ROW_GROUP_BYTES = 1_000_000
# The columns that facts are made of.
_TEXT_COLUMNS = ("user_id", "provider", "endpoint", "fetched_at", "body", "canonical")
# Decoding a text takes ten times its length of memory, which DuckDB cannot spill.
LONGEST_TEXT_BYTES = 2 * ROW_GROUP_BYTES
_NAME = re.compile(r"(?P<kind>\w+)~(?P<run_id>[\w-]+)~(?P<number>\d+)\.parquet")


class RawFileDamaged(StorageError):
    """A raw file is not whole Parquet; the message says what to do."""


@dataclass(frozen=True, slots=True)
class RawFile:
    """A raw file and the parts of its name: kind of endpoint, run and number."""

    path: Path
    kind: str
    run_id: str
    number: str

    @classmethod
    def at(cls, path: Path) -> "RawFile | None":
        """The raw file of a path, or None where the name is not that of a raw file."""
        match = _NAME.fullmatch(path.name)
        return match and cls(path, match["kind"], match["run_id"], match["number"])

    @property
    def name(self) -> str:
        return self.path.name

    def is_damaged(self) -> bool:
        """Whether the file cannot be read whole."""
        try:
            with raw_file_errors(self.path), pq.ParquetFile(self.path) as whole:
                for group in range(whole.num_row_groups):
                    whole.read_row_group(group)
        except RawFileDamaged:
            return True
        return False


@contextmanager
def raw_file_errors(path: Path) -> Iterator[None]:
    """Turns Arrow's errors about a damaged file into `RawFileDamaged`, but not a disk's errors."""
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        # Only an error of the operating system has a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise RawFileDamaged(
            f"The raw file {path} is damaged. Restore it from your backup, or move it to raw/quarantine."
        ) from error


def write_whole(table: pa.Table, path: Path) -> None:
    """Writes raw pages so that the path holds the whole file or none, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    pages_a_group = max(1, ROW_GROUP_BYTES * table.num_rows // table.nbytes)
    try:
        # Without dictionaries, since texts repeat only within a page. Arrow opens the file itself: with a
        # Python file every write would wait for the interpreter.
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            write_statistics=_SMALL_COLUMNS,  # pyright: ignore[reportArgumentType]
            row_group_size=pages_a_group,
        )
        sync(temporary)
        temporary.rename(path)
    except BaseException:
        # A partial file would keep a full disk full.
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that the path holds the whole text or none, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    sync(temporary)
    temporary.rename(path)


def sync(path: Path) -> None:
    """Makes a file, or the names of the files in a folder, survive a crash."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cut_long_pages(file: RawFile, folder: Path) -> Path:
    """Copies a raw file into the folder with its long texts cut into pieces; returns the path.

    A piece is a page of costs or usage that DuckDB decodes in little memory. Returns the path of the raw
    file itself where no page is long.
    """
    with raw_file_errors(file.path), pq.ParquetFile(file.path) as whole:
        if not _has_long_page(whole.metadata):
            return file.path
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / file.name
        schema = pa.schema([SCHEMA.field(name) for name in _TEXT_COLUMNS])
        # It is read only once, and soon.
        plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        with pq.ParquetWriter(path, schema, **plain) as cut:
            for group in range(whole.num_row_groups):
                for row in whole.read_row_group(group, columns=list(_TEXT_COLUMNS)).to_pylist():
                    text = (row["canonical"] or row["body"]).encode()
                    for piece in pieces(text, ROW_GROUP_BYTES):
                        one = row | {"body": piece.decode(), "canonical": None}
                        cut.write_table(pa.Table.from_pylist([one], schema))
    return path


def _has_long_page(metadata: pq.FileMetaData) -> bool:
    texts = [index for index, name in enumerate(metadata.schema.names) if name in ("body", "canonical")]
    return any(
        metadata.row_group(group).column(column).total_uncompressed_size > LONGEST_TEXT_BYTES
        for group in range(metadata.num_row_groups)
        for column in texts
    )
