"""The manifest: every Parquet file of a publish, so that readers see a single moment.

Each publish links its files into a folder of its own, `published/snapshots/<UTC time>`, where nothing
changes, and then replaces `published/manifest.json` by a rename. The snapshot of the publish before stays
until the next one, for readers that opened its manifest.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from finora_pipeline.data_folder.private_files import share_published
from finora_pipeline.warehouse.parquet_files import (
    PARQUET,
    Columns,
    existing_files,
    make_shared_folder,
    parquet_below,
)

MANIFEST = "manifest.json"
SNAPSHOTS = "snapshots"
CURRENCY, TIME_ZONE = "USD", "UTC"
# A file in the folder of snapshots after a purge: earlier ones have the user's rows, so none is kept.
_WITHDRAWN = "withdrawn"
# Errors of a file system, or of two, that cannot link a file.
_NO_LINKS = {errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A Parquet file of a manifest: its path below `published/`, its rows and bytes."""

    path: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A table of a manifest: its columns and its files, none where it has no rows."""

    columns: Columns
    files: tuple[PublishedFile, ...]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one publish published: version and moment, as in the table `about`, and the tables' files.

    `snapshot`: the folder below `published/` with the files.
    """

    schema_version: str
    published_at: datetime
    finora_version: str
    database: str
    snapshot: str
    tables: dict[str, PublishedTable]

    @property
    def rows(self) -> dict[str, int]:
        """The rows of each file, by its path below `published/` as it is outside of the snapshot."""
        files = (file for table in self.tables.values() for file in table.files)
        return {f"{PARQUET}/{_place(file.path)}": file.rows for file in files}


def read_manifest(published: Path) -> Manifest | None:
    """The manifest, or None before the first publish or if another program has damaged it."""
    try:
        found = json.loads((published / MANIFEST).read_text())
        return Manifest(
            found["schema_version"],
            datetime.fromisoformat(found["published_at"]),
            found["finora_version"],
            found["database"],
            found["snapshot"],
            {name: _table(one) for name, one in found["tables"].items()},
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _table(found: Any) -> PublishedTable:
    return PublishedTable(
        {column["name"]: column["type"] for column in found["columns"]},
        tuple(PublishedFile(file["path"], file["rows"], file["bytes"]) for file in found["files"]),
    )


def write_manifest(published: Path, manifest: Manifest) -> None:
    """Replaces the manifest by a rename."""
    tables = {
        name: {
            "columns": [{"name": column, "type": type_} for column, type_ in table.columns.items()],
            "rows": table.rows,
            "files": [{"path": file.path, "rows": file.rows, "bytes": file.bytes} for file in table.files],
        }
        for name, table in manifest.tables.items()
    }
    content = {
        "schema_version": manifest.schema_version,
        "published_at": manifest.published_at.isoformat(),
        "finora_version": manifest.finora_version,
        "currency": CURRENCY,
        "time_zone": TIME_ZONE,
        "database": manifest.database,
        "snapshot": manifest.snapshot,
        "tables": tables,
    }
    path = published / MANIFEST
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        share_published(temporary, published)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def snapshot_folder(published: Path, at: datetime) -> tuple[str, datetime]:
    """The folder below `published/` for a publish at this moment, and the moment.

    It is a little later where a snapshot has that moment already.
    """
    while True:
        folder = f"{SNAPSHOTS}/{at:%Y-%m-%dT%H-%M-%S-%fZ}"
        if not (published / folder).exists():
            return folder, at
        at += timedelta(microseconds=1)


def link_snapshot(published: Path, folder: str) -> None:
    """Makes the snapshot's folder with links to all Parquet files; copies them where links are impossible."""
    target = published / folder
    temporary = target.with_name(f".{target.name}")
    try:
        for name in existing_files(published):
            link = temporary / name.removeprefix(f"{PARQUET}/")
            make_shared_folder(link.parent, published)
            _link(published / name, link, published)
        temporary.rename(target)
    except BaseException:
        # A partial snapshot would keep a full disk full.
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _link(source: Path, link: Path, published: Path) -> None:
    try:
        link.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, link)
        share_published(link, published)


def list_files(
    published: Path, folder: str, columns: dict[str, Columns], before: Manifest | None
) -> dict[str, PublishedTable]:
    """The tables with the files of a snapshot's folder.

    Rows of files that the manifest `before` holds unchanged are taken from it.
    """
    known = (
        {_place(file.path): file for table in before.tables.values() for file in table.files}
        if before
        else {}
    )
    found: dict[str, list[PublishedFile]] = {name: [] for name in columns}
    for path in sorted(parquet_below(published / folder)):
        name = path.relative_to(published).as_posix()
        earlier = known.get(_place(name))
        if earlier and _is_same(path, published / earlier.path):
            rows = earlier.rows
        else:
            rows = pq.read_metadata(path).num_rows
        found[_place(name).split("/")[0]].append(PublishedFile(name, rows, path.stat().st_size))
    return {name: PublishedTable(columns[name], tuple(files)) for name, files in found.items()}


def _place(name: str) -> str:
    """The path of a snapshot's file within its folder."""
    return name.split("/", 2)[2]


def _is_same(path: Path, earlier: Path) -> bool:
    """Whether both are links to a file, or copies of it, which keep its time."""
    if not earlier.exists():
        return False
    one, other = path.stat(), earlier.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def withdraw_snapshots(published: Path) -> None:
    """Has the next publish keep no earlier snapshot, since those have rows of a purged user."""
    if (published / SNAPSHOTS).is_dir():
        (published / SNAPSHOTS / _WITHDRAWN).touch()


def remove_snapshots(published: Path, current: str, before: Manifest | None) -> None:
    """Removes all snapshots but the current one and, unless withdrawn, the one before."""
    folder = published / SNAPSHOTS
    kept = {current}
    if before and not (folder / _WITHDRAWN).exists():
        kept.add(before.snapshot)
    for entry in folder.iterdir():
        if entry.name != _WITHDRAWN and entry.relative_to(published).as_posix() not in kept:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    # Last, so that a killed publish leaves it for the next one.
    (folder / _WITHDRAWN).unlink(missing_ok=True)
