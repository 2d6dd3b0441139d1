"""Backfills of a plan or some users: the daemon fetches past days again, after scheduled refreshes.

Dagster's dialog for a range of partitions accepts no run config and so fetches every user; these backfills
show on the same page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import dagster as dg

from finora_pipeline.accounts.store import Accounts
from finora_pipeline.definitions import build_defs
from finora_pipeline.instance.backfills import backfill_of, request_backfill
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.jobs import BACKFILL_TAG, BATCH_TAG, LAST_TAGS, refresh_config, refresh_job, user_tags
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.settings import Settings

# Longer lists of users are cut in titles and tags.
NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class BackfillState:
    """The state of a backfill: Dagster's word for it, its runs, and the numbers of finished users."""

    status: str
    is_over: bool
    succeeded: bool
    run_ids: list[str]
    users_read: int
    users_failed: int


def launch_backfill(
    settings: Settings, window: Window, *, plan: str | None = None, users: Sequence[str] = ()
) -> str:
    """Request the daemon to fetch these UTC days again for all users, a plan or some users; return its id.

    One run fetches all users, a second refreshes metrics and publishes. Both wait for scheduled refreshes.
    """
    prepare_instance(settings)
    selected = (", ".join(users) or plan or "all users")[:NAME_LENGTH]
    with dg.DagsterInstance.get() as instance:
        return request_backfill(
            instance,
            build_defs(settings),
            refresh_job.selection,
            [(window.start + timedelta(days=number)).isoformat() for number in range(window.days)],
            title=f"{selected}: {window.start} to {window.last}",
            tags=BATCH_TAG | LAST_TAGS | user_tags(users) | {BACKFILL_TAG: selected},
            run_config=refresh_config(plan, list(users)),
        )


def backfill_state(accounts: Accounts, backfill_id: str) -> BackfillState:
    """The state of a backfill; of a user fetched again after a failure, the latest fetch counts."""
    with dg.DagsterInstance.get() as instance:
        backfill = backfill_of(instance, backfill_id)
    refreshes = [one for run_id in backfill.run_ids for one in accounts.refreshes.of_run(run_id)]
    latest = {one.user_id: one for one in sorted(refreshes, key=lambda one: one.started_at)}
    return BackfillState(
        backfill.status,
        backfill.is_over,
        backfill.succeeded,
        backfill.run_ids,
        users_read=len(latest),
        users_failed=sum(not one.is_complete for one in latest.values()),
    )
