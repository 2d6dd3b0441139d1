"""What was published last, file by file, so that a change by another program is noticed and put right.

The record is private to the pipeline (`warehouse/published.json`). A file counts as unchanged while its size
and time of change are those recorded; a moved or restored data folder keeps both.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.schema import MONTHLY_TABLES

# How long a repair is reported as a condition that needs a person.
REPORTED_FOR = timedelta(days=1)
_Stamp = tuple[int, int]
_MONTH = re.compile(r"month=(\d{4}-(?:0[1-9]|1[0-2]))")


@dataclass(frozen=True, slots=True)
class Repair:
    """Published files that another program had changed, by their paths below `published/`, and the moment at
    which a publishing run put them right."""

    at: datetime
    files: tuple[str, ...]

    @property
    def message(self) -> str:
        named = ", ".join(self.files[:3]) + (
            f" and {len(self.files) - 3} more" if len(self.files) > 3 else ""
        )
        return (
            f"The published file had been written to by another program: {named}. It was published again at "
            f"{self.at:%Y-%m-%d %H:%M} UTC; open it read-only."
        )


@dataclass(frozen=True, slots=True)
class PublishedRecord:
    """The recorded files with size and time of change; `is_publishing` while a run replaces them."""

    files: dict[str, _Stamp] = field(default_factory=dict)
    is_publishing: bool = False
    repair: Repair | None = None


def read_record(warehouse: Warehouse) -> PublishedRecord | None:
    """The record, or None before the first and where a power failure has left none."""
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
    """Replaces the record, whole or not at all."""
    repair = record.repair and {"at": record.repair.at.isoformat(), "files": record.repair.files}
    text = json.dumps({"files": record.files, "is_publishing": record.is_publishing, "repair": repair})
    path = _path(warehouse)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text)
        aside.rename(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def compare_with_record(warehouse: Warehouse, now: datetime) -> tuple[PublishedRecord, list[str]]:
    """The record as a run that publishes now has to keep it, and the files that it has to put right: changed,
    added or taken away since they were published."""
    known = read_record(warehouse)
    if known is None:
        # A folder of an earlier version, or a restored one: nothing to compare with.
        changed = companions(warehouse)
        return PublishedRecord(repair=Repair(now, tuple(changed)) if changed else None), changed
    changed = foreign_changes(warehouse, known)
    if changed and not known.is_publishing:
        return replace(known, repair=Repair(now, tuple(changed))), changed
    return known, changed


def begin_publishing(warehouse: Warehouse, record: PublishedRecord) -> None:
    """Notes that files are being replaced: what a killed run leaves is no other program's change."""
    write_record(warehouse, replace(record, is_publishing=True))


def end_publishing(warehouse: Warehouse, record: PublishedRecord) -> None:
    """Records the files as they are now, under the lock."""
    write_record(warehouse, replace(record, files=dict(_stamps(warehouse)), is_publishing=False))


def foreign_changes(warehouse: Warehouse, record: PublishedRecord) -> list[str]:
    """The published files that differ from a record, and the companions of the database."""
    found = dict(_stamps(warehouse))
    differing = {
        name for name in record.files.keys() | found.keys() if record.files.get(name) != found.get(name)
    }
    return sorted({*differing, *companions(warehouse)})


def remove_companions(warehouse: Warehouse) -> None:
    """Removes the log of a program that had opened the published file to write: DuckDB would replay it over
    every later copy."""
    for name in companions(warehouse):
        (warehouse.published / name).unlink(missing_ok=True)


def month_of(name: str) -> tuple[str, str] | None:
    """The table and the month's first day of a Parquet file by its path below `published/`; None for
    anything else."""
    parts = name.split("/")
    if len(parts) != 4 or parts[1] not in MONTHLY_TABLES or parts[3] != f"{parts[1]}.parquet":
        return None
    month = _MONTH.fullmatch(parts[2])
    return month and (parts[1], f"{month[1]}-01")


def companions(warehouse: Warehouse) -> list[str]:
    """What DuckDB has left beside the published file for a program that had opened it to write."""
    name = warehouse.published_database.name
    return sorted(path.name for path in warehouse.published.glob(f"{name}.wal*"))


def _stamps(warehouse: Warehouse) -> Iterator[tuple[str, _Stamp]]:
    files = [warehouse.published_database, *warehouse.published.glob("parquet/*/*/*.parquet")]
    for path in files:
        # Files that are written aside have a name that ends in a process id.
        if not path.name.startswith(".") and path.exists():
            about = path.stat()
            yield path.relative_to(warehouse.published).as_posix(), (about.st_size, about.st_mtime_ns)


def _path(warehouse: Warehouse) -> Path:
    return warehouse.database.with_name("published.json")
