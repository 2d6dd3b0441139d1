"""Quarantine: raw files that cannot be loaded, each with a JSON file that says why."""

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq

from finora_pipeline.warehouse.raw.files import RawFile, RawFileDamaged, raw_file_errors, sync, write_text


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A raw file that cannot be loaded: the reason, since when, and its page sets.

    `sets`: user, endpoint, fetch time and UTC days of each; empty for a file that cannot be read at all.
    """

    file: RawFile
    reason: str
    at: datetime
    sets: list[tuple[str, str, datetime, list[date]]]

    @classmethod
    def read(cls, file: RawFile) -> "Quarantined":
        """The entry of a quarantined file; a file that a person put there has no reason."""
        path = _entry_path(file.path)
        entry = json.loads(path.read_text()) if path.exists() else {}
        return cls(
            file,
            entry.get("reason", "It was put there by hand."),
            datetime.fromisoformat(entry["quarantined_at"]) if entry else datetime.now(UTC),
            [
                (user_id, endpoint, datetime.fromisoformat(at), [date.fromisoformat(day) for day in days])
                for user_id, endpoint, at, days in entry.get("sets", [])
            ],
        )

    @property
    def user_ids(self) -> list[str]:
        return sorted({user_id for user_id, *_ in self.sets})

    def remove(self) -> None:
        """Deletes the file and its entry, once newer pages have replaced it."""
        self.file.path.unlink(missing_ok=True)
        _entry_path(self.file.path).unlink(missing_ok=True)


def move_to_quarantine(file: RawFile, folder: Path, reason: str) -> None:
    """Moves a landed file to the quarantine folder, where no load reads it, with the reason."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = {
        "reason": reason,
        "quarantined_at": datetime.now(UTC).isoformat(),
        "sets": _sets_of(file),
    }
    target = folder / file.name
    write_text(_entry_path(target), json.dumps(entry))
    file.path.rename(target)
    sync(folder)


def _sets_of(file: RawFile) -> list[list[object]]:
    """Each page set's user, endpoint, fetch time and days, for JSON; none of a damaged file."""
    try:
        with raw_file_errors(file.path):
            table = pq.read_table(file.path, columns=["user_id", "endpoint", "fetched_at", "days"])
    except RawFileDamaged:
        return []
    days: dict[tuple[str, str, str], set[str]] = {}
    for row in table.to_pylist():
        key = (row["user_id"], row["endpoint"], row["fetched_at"].isoformat())
        days.setdefault(key, set()).update(day.isoformat() for day in row["days"])
    return [[*key, sorted(found)] for key, found in days.items()]


def _entry_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
