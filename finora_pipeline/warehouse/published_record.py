"""The record of published files: a publish notices and repairs changes by other programs.

The record is private to the pipeline (`warehouse/published.json`). A file counts as unchanged while its size
and modification time are those recorded; a moved or restored data folder keeps both.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.manifest import MANIFEST, SNAPSHOTS
from finora_pipeline.warehouse.parquet_files import PARQUET, existing_files, parquet_below

# How long a repair is an open alert.
REPORTED_FOR = timedelta(days=1)
_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Repair:
    """Published files that another program had changed, and when a publish repaired them.

    `files`: their paths below `published/`.
    """

    at: datetime
    files: tuple[str, ...]

    @property
    def message(self) -> str:
        named = ", ".join(self.files[:3]) + (
            f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        )
        return (
            f"Another program had written to the published file: {named}. It was published again at "
            f"{self.at:%Y-%m-%d %H:%M} UTC; open it read-only."
        )


@dataclass(frozen=True, slots=True)
class PublishedRecord:
    """The published files with size and time; `is_publishing` while a run replaces them."""

    files: dict[str, _Stamp] = field(default_factory=dict)
    is_publishing: bool = False
    repair: Repair | None = None


def read_record(warehouse: Warehouse) -> PublishedRecord | None:
    """The record, or None before the first publish or if a power failure has damaged it."""
    try:
        found = json.loads(_path(warehouse).read_text())
        repair = found["repair"]
        return PublishedRecord(
            {name: (size, changed) for name, (size, changed) in found["files"].items()},
            found["is_publishing"],
            repair and Repair(datetime.fromisoformat(repair["at"]), tuple(repair["files"])),
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write_record(warehouse: Warehouse, record: PublishedRecord) -> None:
    """Replaces the record atomically."""
    repair = record.repair and {"at": record.repair.at.isoformat(), "files": record.repair.files}
    text = json.dumps({"files": record.files, "is_publishing": record.is_publishing, "repair": repair})
    path = _path(warehouse)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def compare_with_record(warehouse: Warehouse, now: datetime) -> tuple[PublishedRecord, list[str]]:
    """The record for a publish to keep, and the files that it must repair.

    Those are files that another program has changed, added or deleted since they were published.
    """
    known = read_record(warehouse)
    if known is None:
        # A folder of an earlier version, or a restored one, has no record to compare with.
        changed = companions(warehouse)
        return PublishedRecord(repair=Repair(now, tuple(changed)) if changed else None), changed
    changed = foreign_changes(warehouse, known)
    if changed and not known.is_publishing:
        return replace(known, repair=Repair(now, tuple(changed))), changed
    return known, changed


def begin_publishing(warehouse: Warehouse, record: PublishedRecord) -> None:
    """Records that files are being replaced: a killed run's changes are not another program's."""
    write_record(warehouse, replace(record, is_publishing=True))


def end_publishing(warehouse: Warehouse, record: PublishedRecord) -> None:
    """Records the published files; the caller holds the lock."""
    write_record(warehouse, replace(record, files=dict(_stamps(warehouse)), is_publishing=False))


def foreign_changes(warehouse: Warehouse, record: PublishedRecord) -> list[str]:
    """The published files that differ from a record, and the companion files of the database."""
    found = dict(_stamps(warehouse))
    differing = {
        name for name in record.files.keys() | found.keys() if record.files.get(name) != found.get(name)
    }
    # A file and its links in snapshots change together.
    links = {name for name in differing if _linked(name) in differing}
    return sorted({*differing - links, *companions(warehouse)})


def remove_changed_links(warehouse: Warehouse, record: PublishedRecord) -> None:
    """Deletes files of snapshots that another program has changed: a missing file misleads no reader."""
    found = dict(_stamps(warehouse))
    for name, stamp in record.files.items():
        if _linked(name) and found.get(name, stamp) != stamp:
            (warehouse.published / name).unlink()


def remove_companions(warehouse: Warehouse) -> None:
    """Deletes the log of a program that opened the published file to write.

    DuckDB would replay it over every later snapshot.
    """
    for name in companions(warehouse):
        (warehouse.published / name).unlink(missing_ok=True)


def companions(warehouse: Warehouse) -> list[str]:
    """Names of logs that DuckDB has left for a program that opened the published file to write."""
    name = warehouse.published_database.name
    return sorted(path.name for path in warehouse.published.glob(f"{name}.wal*"))


def _linked(name: str) -> str | None:
    """The file in `parquet/` that a snapshot's file was linked to, or None for any other file."""
    parts = name.split("/", 2)
    return f"{PARQUET}/{parts[2]}" if parts[0] == SNAPSHOTS and len(parts) == 3 else None


def _stamps(warehouse: Warehouse) -> Iterator[tuple[str, _Stamp]]:
    published = warehouse.published
    files = [warehouse.published_database, published / MANIFEST]
    files += (published / name for name in existing_files(published))
    files += parquet_below(published / SNAPSHOTS)
    for path in files:
        # A publish may have removed it since it was listed.
        with suppress(FileNotFoundError):
            about = path.stat()
            yield path.relative_to(published).as_posix(), (about.st_size, about.st_mtime_ns)


def _path(warehouse: Warehouse) -> Path:
    return warehouse.database.with_name("published.json")
