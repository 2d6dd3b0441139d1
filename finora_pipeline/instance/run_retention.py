"""Deletion of old runs and partitions, which Dagster keeps forever."""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import dagster as dg
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage

from finora_pipeline.instance.tags import RANGE_TAGS

# Alerts need a week. All four plans then take 1.3 GB of SQLite (docs/benchmarks.md).
RUNS_KEPT = timedelta(days=14)
# Most runs deleted per night; each takes some hundredths of a second.
MOST_AT_ONCE = 2_000
_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_UNFINISHED = [status for status in dg.DagsterRunStatus if status not in _FINISHED]
_MATERIALIZATION = dg.DagsterEventType.ASSET_MATERIALIZATION


def prune_runs(instance: dg.DagsterInstance, before: datetime) -> int:
    """Delete finished runs created before a moment; return how many.

    The last run that materialized an asset or a partition stays: without it the UI would show them as never
    materialized, and their checks as never evaluated.
    """
    filters = dg.RunsFilter(statuses=_FINISHED, created_before=before)
    old = {run.run_id for run in instance.get_runs(filters)}
    removed = sorted(old - set(_last_runs(instance)))[:MOST_AT_ONCE] if old else []
    for run_id in removed:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        _remove_database(instance, run_id)
    return len(removed)


def delete_partitions(instance: dg.DagsterInstance, name: str, keys: Iterable[str]) -> None:
    """Delete keys of the dynamic partitions `name`, except the ends of an unfinished run's range.

    Without its ends the run would fail for the whole range.
    """
    unfinished = instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED))
    named = {run.tags.get(tag) for run in unfinished for tag in RANGE_TAGS}
    for key in set(keys) - named:
        instance.delete_dynamic_partition(name, key)


def _last_runs(instance: dg.DagsterInstance) -> Iterator[str]:
    """The ids of the runs that define the state of assets and their partitions."""
    storage = instance.event_log_storage
    for key in instance.all_asset_keys():
        if event := instance.get_latest_materialization_event(key):
            yield event.run_id
        newest = list(storage.get_latest_storage_id_by_partition(key, _MATERIALIZATION).values())
        if newest:
            wanted = dg.EventRecordsFilter(_MATERIALIZATION, asset_key=key, storage_ids=newest)
            yield from (record.run_id for record in storage.get_event_records(wanted))


def _remove_database(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete the run's own SQLite file, which Dagster leaves behind empty."""
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        path = Path(storage.path_for_shard(run_id))
        for file in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            file.unlink(missing_ok=True)
