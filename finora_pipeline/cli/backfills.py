"""Backfills: past days fetched again by the daemon, after the refreshes that keep the plans' promises.

The UI's dialog for a range of partitions takes no run config, so that it fetches every user. These are the
same backfills, shown on the same page, for a plan or some users.
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
    """How far a backfill is: its state in Dagster's word, its runs, and the users whose fetch ended."""

    status: str
    is_over: bool
    succeeded: bool
    run_ids: list[str]
    users_read: int
    users_failed: int


def launch_backfill(
    settings: Settings, window: Window, *, plan: str | None = None, users: Sequence[str] = ()
) -> str:
    """Asks the daemon to fetch these UTC days again for all users, a plan or some; returns the backfill's id.

    One run fetches all users; a second makes metrics and the published copy. Both wait for live refreshes.
    """
    prepare_instance(settings)
    whom = (", ".join(users) or plan or "all users")[:NAME_LENGTH]
    with dg.DagsterInstance.get() as instance:
        return request_backfill(
            instance,
            build_defs(settings),
            refresh_job.selection,
            [(window.start + timedelta(days=number)).isoformat() for number in range(window.days)],
            title=f"{whom}: {window.start} to {window.last}",
            tags=BATCH_TAG | LAST_TAGS | user_tags(users) | {BACKFILL_TAG: whom},
            run_config=refresh_config(plan, list(users)),
        )


def backfill_state(accounts: Accounts, backfill_id: str) -> BackfillState:
    """How far a backfill is; of a user who was fetched again after a failure, the latest fetch counts."""
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
