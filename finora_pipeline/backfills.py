"""Backfills: days of many users read again by the daemon, behind the refreshes that keep the plans' promises.

The UI's dialog for a range of partitions has no place for run config, so that it reads everybody. These are
the same backfills, shown on the same page, for a plan or some users.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionStatus,
    PartitionBackfill,
)
from dagster._core.utils import make_new_backfill_id
from dagster._time import get_current_timestamp

from finora_pipeline import runs
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.definitions import build_defs
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.schedules.jobs import BACKFILL_TAG, BATCH_TAG, refresh_job, user_tags
from finora_pipeline.schedules.refresh import refresh_config
from finora_pipeline.settings import Settings

# Behind everything else that waits in the queue.
_LAST = {"dagster/priority": "-1"}
_WELL = (BulkActionStatus.COMPLETED, BulkActionStatus.COMPLETED_SUCCESS)


@dataclass(frozen=True, slots=True)
class BackfillState:
    """How far a backfill is: its state in Dagster's word, its runs, and the reads of users that ended."""

    status: str
    is_over: bool
    succeeded: bool
    run_ids: list[str]
    users_read: int
    users_failed: int


def launch_backfill(
    settings: Settings, window: Window, *, plan: str | None = None, users: Sequence[str] = ()
) -> str:
    """Asks the daemon to read these UTC days again, of everybody, a plan or some users; the backfill's id.

    One run reads them, however many there are; a second makes metrics and the published copy. Both wait
    behind the live refreshes (`BATCH_TAG`, priority).
    """
    runs.prepare_instance(settings)
    graph = build_defs(settings).resolve_asset_graph()
    days = [(window.start + timedelta(days=number)).isoformat() for number in range(window.days)]
    whom = ", ".join(users) or plan or "everybody"
    with dg.DagsterInstance.get() as instance:
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id=make_new_backfill_id(),
            asset_graph=graph,
            partition_names=days,
            asset_selection=sorted(refresh_job.selection.resolve(graph)),
            backfill_timestamp=get_current_timestamp(),
            tags=BATCH_TAG | _LAST | user_tags(users) | {BACKFILL_TAG: whom[:100]},
            dynamic_partitions_store=instance,
            all_partitions=False,
            title=f"{whom[:100]}: {window.start} to {window.last}",
            description=None,
            run_config=refresh_config(plan, list(users)),
        )
        instance.add_backfill(backfill)
    return backfill.backfill_id


def backfill_state(accounts: Accounts, backfill_id: str) -> BackfillState:
    """How far a backfill is: of a user that was read again after a failure, the latest read counts."""
    with dg.DagsterInstance.get() as instance:
        backfill = instance.get_backfill(backfill_id)
        assert backfill is not None, "Dagster keeps its backfills"
        run_ids = [
            run.run_id for run in instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill_id}))
        ]
    reads = [read for run_id in run_ids for read in accounts.refreshes_of(run_id)]
    latest = {read["user_id"]: read for read in sorted(reads, key=lambda read: read["started_at"])}
    return BackfillState(
        status=backfill.status.value.lower(),
        is_over=backfill.status in BULK_ACTION_TERMINAL_STATUSES,
        succeeded=backfill.status in _WELL,
        run_ids=run_ids,
        users_read=len(latest),
        users_failed=sum(read["outcome"] != "complete" for read in latest.values()),
    )
