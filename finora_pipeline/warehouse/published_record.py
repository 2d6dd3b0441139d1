"""The record of published files: a publish notices and repairs changes by other programs.

The record is private to the pipeline (`warehouse/published.json`). A file counts as unchanged while its size
and modification time are those recorded; a moved or restored data folder keeps both.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.tables import MONTHLY_TABLES

# How long a repair is an open alert.
REPORTED_FOR = timedelta(days=1)
_Stamp = tuple[int, int]
_MONTH = re.compile(r"month=(\d{4}-(?:0[1-9]|1[0-2]))")


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
    return sorted({*differing, *companions(warehouse)})


def remove_companions(warehouse: Warehouse) -> None:
    """Deletes the log of a program that opened the published file to write.

    DuckDB would replay it over every later snapshot.
    """
    for name in companions(warehouse):
        (warehouse.published / name).unlink(missing_ok=True)


def month_of(name: str) -> tuple[str, str] | None:
    """The table and the month's first day of a Parquet file, or None for any other file.

    `name`: its path below `published/`.
    """
    parts = name.split("/")
    if len(parts) != 4 or parts[1] not in MONTHLY_TABLES or parts[3] != f"{parts[1]}.parquet":
        return None
    month = _MONTH.fullmatch(parts[2])
    return month and (parts[1], f"{month[1]}-01")


def companions(warehouse: Warehouse) -> list[str]:
    """Names of logs that DuckDB has left for a program that opened the published file to write."""
    name = warehouse.published_database.name
    return sorted(path.name for path in warehouse.published.glob(f"{name}.wal*"))


def _stamps(warehouse: Warehouse) -> Iterator[tuple[str, _Stamp]]:
    files = [warehouse.published_database, *warehouse.published.glob("parquet/*/*/*.parquet")]
    for path in files:
        # Temp files start with a dot.
        if not path.name.startswith(".") and path.exists():
            about = path.stat()
            yield path.relative_to(warehouse.published).as_posix(), (about.st_size, about.st_mtime_ns)


def _path(warehouse: Warehouse) -> Path:
    return warehouse.database.with_name("published.json")
