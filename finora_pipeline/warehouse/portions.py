"""Loads raw files in portions that fit into memory, and sets unloadable files aside.

A portion is bounded by the length of its decoded text, which also bounds its rows. One that fails is halved
and tried again: by files, then by the page sets of a file. A page set that fails alone is quarantined, so
that one user's page stops no other user.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow.parquet as pq

from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.raw import RawFile, RawFileDamaged
from finora_pipeline.warehouse.raw.files import raw_file_errors

_log = logging.getLogger("finora_pipeline.warehouse")
# Decoding a text takes about ten times its length of memory (measured with pages of 100 to 20,000 rows).
MEMORY_A_DECODED_BYTE = 12
LEAST_DECODED_BYTES = 6_000_000
MOST_DECODED_BYTES = 96_000_000
# More files per transaction gain nothing: its commit waits for the disk, and DuckDB reads them in parallel.
MOST_FILES = 16
# Errors that pages can cause; a full disk or a file in use is not among them.
CAUSED_BY_PAGES = (
    duckdb.OutOfMemoryException,
    duckdb.DataError,
    duckdb.InvalidInputException,
    duckdb.ConstraintException,
    RawFileDamaged,
)

Load = Callable[[list[RawFile]], None]


def decoded_bytes_at_once() -> int:
    """Bytes of text that one transaction loads at most."""
    fitting = duckdb_limits().memory_bytes // MEMORY_A_DECODED_BYTE
    return max(LEAST_DECODED_BYTES, min(fitting, MOST_DECODED_BYTES))


def portions(files: Sequence[RawFile]) -> Iterator[list[RawFile]]:
    """Groups files into portions, each for one transaction."""
    most = decoded_bytes_at_once()
    portion: list[RawFile] = []
    size = 0
    for file in files:
        length = _decoded_bytes(file)
        if portion and (len(portion) == MOST_FILES or size + length > most):
            yield portion
            portion, size = [], 0
        portion.append(file)
        size += length
    if portion:
        yield portion


def load_or_halve(
    connection: duckdb.DuckDBPyConnection,
    files: list[RawFile],
    load: Load,
    split: Callable[[RawFile], list[RawFile]],
    set_aside: Callable[[RawFile, str], None],
) -> None:
    """Loads the files, all at once or in ever smaller portions.

    `split` replaces a file by several with its page sets, or returns it alone if it has only one;
    `set_aside` gets a file with a single page set that cannot be loaded, and a sentence that says why.
    """
    # A listing may hold a file that was split as well as parts of it, if a process died on the way.
    files = [file for file in files if file.path.exists()]
    if not files:
        return
    error = _failure(files, load)
    if not error:
        return
    _log.warning("Failed to load %d raw files at once: %s", len(files), _first_line(error))
    if len(files) > 1:
        middle = len(files) // 2
        halves = [files[:middle], files[middle:]]
    else:
        with _one_thread(connection):
            error = _failure(files, load)
        if not error:
            return
        parts = _parts(files[0], split)
        if len(parts) < 2:
            set_aside(files[0], "The file is damaged." if files[0].is_damaged() else _reason(error))
            return
        halves = [[part] for part in parts]
    for half in halves:
        load_or_halve(connection, half, load, split, set_aside)


def _failure(files: list[RawFile], load: Load) -> Exception | None:
    """Loads the files; returns the error if their pages caused one, or None on success."""
    try:
        load(files)
    except (*CAUSED_BY_PAGES, duckdb.Error) as error:
        if not _is_caused_by(files, error):
            raise
        return error
    return None


def _parts(file: RawFile, split: Callable[[RawFile], list[RawFile]]) -> list[RawFile]:
    try:
        return split(file)
    except RawFileDamaged:
        return [file]


def _is_caused_by(files: Sequence[RawFile], error: Exception) -> bool:
    """Whether an error is about the files' pages; DuckDB has many errors for a damaged file."""
    if "max_temp_directory_size" in str(error):
        # The disk has no space to spill to.
        return False
    return isinstance(error, CAUSED_BY_PAGES) or any(file.is_damaged() for file in files)


@contextmanager
def _one_thread(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Limits DuckDB to one thread for the length of a block, since each takes memory."""
    ((threads,),) = connection.execute("SELECT current_setting('threads')").fetchall()
    connection.execute("SET threads = 1")
    try:
        yield
    finally:
        connection.execute(f"SET threads = {int(threads)}")


def _decoded_bytes(file: RawFile) -> int:
    try:
        with raw_file_errors(file.path):
            metadata = pq.read_metadata(file.path)
    except RawFileDamaged:
        return 0
    return sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))


def _reason(error: BaseException) -> str:
    if isinstance(error, duckdb.OutOfMemoryException):
        limit = duckdb_limits().memory_bytes / 1e6
        return f"It does not fit into {limit:,.0f} MB of memory; raise FINORA_MEMORY_LIMIT."
    return "It holds values that cannot be stored."


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
