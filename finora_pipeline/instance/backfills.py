"""Backfills with run config, which Dagster offers no public way to launch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.utils import make_new_backfill_id
from dagster._time import get_current_timestamp

from finora_pipeline.instance.tags import BACKFILL_ID_TAG

_SUCCEEDED = (BulkActionStatus.COMPLETED, BulkActionStatus.COMPLETED_SUCCESS)


@dataclass(frozen=True, slots=True)
class Backfill:
    """The state of a backfill; `status` is Dagster's word for it."""

    status: str
    is_over: bool
    succeeded: bool
    run_ids: list[str]


def request_backfill(
    instance: dg.DagsterInstance,
    definitions: dg.Definitions,
    selection: dg.AssetSelection,
    partitions: Sequence[str],
    *,
    title: str,
    tags: dict[str, str],
    run_config: dict[str, Any],
) -> str:
    """Request the daemon to materialize these partitions of these assets; return the backfill's id."""
    graph = definitions.resolve_asset_graph()
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id=make_new_backfill_id(),
        asset_graph=graph,
        partition_names=list(partitions),
        asset_selection=sorted(selection.resolve(graph)),
        backfill_timestamp=get_current_timestamp(),
        tags=tags,
        dynamic_partitions_store=instance,
        all_partitions=False,
        title=title,
        description=None,
        run_config=run_config,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id


def backfill_of(instance: dg.DagsterInstance, backfill_id: str) -> Backfill:
    """The current state of a backfill."""
    backfill = instance.get_backfill(backfill_id)
    assert backfill is not None, "Dagster keeps its backfills"
    runs = instance.get_runs(dg.RunsFilter(tags={BACKFILL_ID_TAG: backfill_id}))
    return Backfill(
        status=backfill.status.value.lower(),
        is_over=backfill.status in BULK_ACTION_TERMINAL_STATUSES,
        succeeded=backfill.status in _SUCCEEDED,
        run_ids=[run.run_id for run in runs],
    )
