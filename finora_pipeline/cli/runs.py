"""Dagster runs in this process; the UI shows them like all others."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any
from uuid import uuid4

import dagster as dg

from finora_pipeline.accounts.model import Refresh
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.assets.partitions import USERS_NAME
from finora_pipeline.data_folder.disk import StorageError, runs_store, storage_errors
from finora_pipeline.data_folder.run_locks import release
from finora_pipeline.definitions import build_defs
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.instance.run_retention import delete_partitions
from finora_pipeline.jobs import (
    DAYS_OF_PLAN_TAG,
    PLAN_TAG,
    day_range_tags,
    history_job,
    range_tags,
    refresh_config,
    refresh_job,
    user_tags,
)
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.rebuild import bring_up_to_date

# Dagster's error for Ctrl-C, whose class is not public.
INTERRUPTION = "DagsterExecutionInterruptedError"
# The UI has the run's log.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# Errors whose messages are sentences for a person, unlike those of their causes.
_SENTENCES = {StorageError.__name__, *(kind.__name__ for kind in StorageError.__subclasses__())}

# Entered with a run's id while the run is executed.
RunWatch = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run: whether every step succeeded, each user's refresh, the failed steps' errors."""

    run_id: str
    succeeded: bool
    refreshes: list[Refresh]
    errors: list[str]

    @property
    def failed_users(self) -> list[Refresh]:
        """The refreshes of the users that failed."""
        return [refresh for refresh in self.refreshes if not refresh.is_complete]


def refresh(
    settings: Settings,
    window: Window,
    *,
    plan: str | None = None,
    users: Sequence[str] = (),
    openai_admin: OpenAIAdmin | None = None,
    watch: RunWatch = nullcontext,
) -> RunResult:
    """Run the refresh job for a range of UTC days and a plan, some users or all that may be fetched."""
    tags = day_range_tags(window.start, window.last) | user_tags(users)
    if plan:
        live = trailing_window(datetime.now(UTC).date())
        is_live = window.start >= live.start and window.end >= live.end
        tags[PLAN_TAG if is_live else DAYS_OF_PLAN_TAG] = plan
    config = refresh_config(plan, list(users))
    return _run(settings, refresh_job.name, config, tags, openai_admin, watch)


def load_history(
    settings: Settings,
    user_ids: Sequence[str],
    *,
    openai_admin: OpenAIAdmin | None = None,
    watch: RunWatch = nullcontext,
) -> list[RunResult]:
    """Load the whole history of users again; each becomes a partition of `user_history`.

    Users with adjacent partitions share a run, since a run covers a range of partitions.
    """
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions(USERS_NAME, list(user_ids))
        partitions = instance.get_dynamic_partitions(USERS_NAME)
    results = []
    for wanted, group in groupby(partitions, key=set(user_ids).__contains__):
        if wanted:
            block = list(group)
            tags = user_tags(block) | range_tags(block[0], block[-1])
            results.append(_run(settings, history_job.name, {}, tags, openai_admin, watch))
    return results


def _run(
    settings: Settings,
    job: str,
    config: dict[str, Any],
    tags: dict[str, str],
    openai_admin: OpenAIAdmin | None,
    watch: RunWatch,
) -> RunResult:
    prepare_instance(settings)
    bring_up_to_date(Warehouse(settings.home))
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    defs = build_defs(settings, openai_admin=openai_admin)
    # A full disk of Dagster's databases fails the whole call, since the run's end cannot be recorded.
    run_id = str(uuid4())
    with (
        storage_errors(runs_store(settings.dagster_home)),
        dg.DagsterInstance.get() as instance,
        watch(run_id),
    ):
        result = defs.resolve_job_def(job).execute_in_process(
            run_config=config | _QUIET, instance=instance, tags=tags, raise_on_error=False, run_id=run_id
        )
    release(settings.home, result.run_id)
    rows = accounts_of(settings).refreshes.of_run(result.run_id)
    errors = [_failure_of(event) for event in result.all_events if event.is_step_failure]
    return RunResult(result.run_id, result.success, rows, errors)


def _failure_of(event: dg.DagsterEvent) -> str:
    """The failed step, and the message of its outermost cause that is a sentence, else of the innermost."""
    error = event.step_failure_data.error
    while error is not None and error.cause is not None and error.cls_name not in _SENTENCES:
        error = error.cause
    message = error.message.strip() if error else "no reason given"
    if error and error.cls_name == INTERRUPTION:
        message = "Interrupted. No data lost; the next refresh resumes."
    return f"{event.step_key}: {message}"


def delete_partition(settings: Settings, user_id: str) -> None:
    """Delete a user's partition from Dagster; while a run needs it, the nightly upkeep deletes it later."""
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        delete_partitions(instance, USERS_NAME, [user_id])


def step_seconds(settings: Settings, run_id: str) -> dict[str, float]:
    """The seconds that each step of a run took, by step name."""
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        stats = instance.get_run_step_stats(run_id)
    return {s.step_key: round(s.end_time - s.start_time, 3) for s in stats if s.start_time and s.end_time}


def started_at(settings: Settings, run_id: str) -> float:
    """The start of a run, in Unix seconds."""
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        start = instance.get_run_stats(run_id).start_time
    assert start is not None, "the run has started"
    return start
