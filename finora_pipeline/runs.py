"""Runs the Dagster jobs in this process, recorded in the instance that the UI shows."""

import fcntl
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.assets.partitions import USERS_NAME, day_range_tags, range_tags
from finora_pipeline.definitions import build_defs
from finora_pipeline.disk import StorageError, runs_store, storage_errors
from finora_pipeline.instance_settings import write_instance_file
from finora_pipeline.liveness import release
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.private_files import open_lock
from finora_pipeline.refresh.fetch import ProgressCallback
from finora_pipeline.refresh.windows import trailing_window
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.run_history import forget_partitions
from finora_pipeline.schedules.jobs import history_job, refresh_job, user_tags
from finora_pipeline.schedules.refresh import DAYS_OF_PLAN_TAG, PLAN_TAG, refresh_config
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.rebuild import bring_up_to_date
from finora_pipeline.warehouse.warehouse import Warehouse

# The UI's log holds the same and more.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# What the `workspace.yaml` of the project says, for those who have no copy of it: schedules and sensors keep
# their state under the location's name.
LOCATION = "finora"
WORKSPACE = f"""\
load_from:
  - python_module:
      module_name: finora_pipeline.definitions
      location_name: {LOCATION}
"""


# Their messages are for a person; what caused them is a library's own text.
_SENTENCES = {StorageError.__name__, *(kind.__name__ for kind in StorageError.__subclasses__())}


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended: its id, whether every step succeeded, each user's row of `refreshes`, and what the
    failed steps said."""

    run_id: str
    succeeded: bool
    refreshes: list[dict[str, Any]]
    errors: list[str]

    @property
    def failed_users(self) -> list[dict[str, Any]]:
        return [row for row in self.refreshes if row["outcome"] != "complete"]


def prepare_instance(settings: Settings) -> None:
    """Makes DAGSTER_HOME with an up-to-date `dagster.yaml`, and points this process to it.

    Raises `InstanceFileError`.
    """
    settings.dagster_home.mkdir(parents=True, exist_ok=True)
    write_instance_file(settings.dagster_home)
    os.environ["DAGSTER_HOME"] = str(settings.dagster_home)
    _create_databases(settings.dagster_home)


def check_record(settings: Settings) -> None:
    """Raises `StorageError` where one of Dagster's databases cannot be read, with which its processes only
    end and are started again."""
    with storage_errors(runs_store(settings.dagster_home)), dg.DagsterInstance.get() as instance:
        instance.get_runs_count()
        instance.all_asset_keys()
        instance.all_instigator_state()


def _create_databases(dagster_home: Path) -> None:
    """Dagster creates its databases at the first use, which two processes must not do at the same time."""
    created = dagster_home / ".created"
    if created.exists():
        return
    descriptor = open_lock(dagster_home / ".create.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with dg.DagsterInstance.get() as instance:
            instance.get_runs_count()
        created.touch()
    finally:
        os.close(descriptor)


def refresh(
    settings: Settings,
    window: Window,
    *,
    plan: str | None = None,
    users: Sequence[str] = (),
    openai_admin: OpenAIAdmin | None = None,
    on_progress: ProgressCallback | None = None,
) -> RunResult:
    """Runs the refresh job for a range of UTC days and a plan, some users or everybody who is due."""
    tags = day_range_tags(window.start, window.last) | user_tags(users)
    if plan:
        live = trailing_window(datetime.now(UTC).date())
        is_live = window.start >= live.start and window.end >= live.end
        tags[PLAN_TAG if is_live else DAYS_OF_PLAN_TAG] = plan
    config = refresh_config(plan, list(users))
    return _run(settings, refresh_job.name, config, tags, openai_admin, on_progress)


def load_history(
    settings: Settings,
    user_ids: Sequence[str],
    *,
    openai_admin: OpenAIAdmin | None = None,
    on_progress: ProgressCallback | None = None,
) -> list[RunResult]:
    """Loads the whole history of users again; each becomes a partition of `user_history`.

    Users whose partitions stand side by side share a run, since a run covers a range of partitions.
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
            results.append(_run(settings, history_job.name, {}, tags, openai_admin, on_progress))
    return results


def _run(
    settings: Settings,
    job: str,
    config: dict[str, Any],
    tags: dict[str, str],
    openai_admin: OpenAIAdmin | None,
    on_progress: ProgressCallback | None,
) -> RunResult:
    prepare_instance(settings)
    bring_up_to_date(Warehouse(settings.home))
    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    defs = build_defs(settings, openai_admin=openai_admin, on_progress=on_progress)
    # A full disk below Dagster's record ends the whole call: there is nowhere to say how the run ended.
    with storage_errors(runs_store(settings.dagster_home)), dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def(job).execute_in_process(
            run_config=config | _QUIET, instance=instance, tags=tags, raise_on_error=False
        )
    release(settings.home, result.run_id)
    rows = accounts_of(settings).refreshes_of(result.run_id)
    errors = [_failure_of(event) for event in result.all_events if event.is_step_failure]
    return RunResult(result.run_id, result.success, rows, errors)


def _failure_of(event: dg.DagsterEvent) -> str:
    """The step and the last line of what went wrong in it."""
    error = event.step_failure_data.error
    while error is not None and error.cause is not None and error.cls_name not in _SENTENCES:
        error = error.cause
    said = error.message.strip() if error else "no reason given"
    if error and error.cls_name == DagsterExecutionInterruptedError.__name__:
        said = "Interrupted. Nothing is lost: the next refresh goes on."
    return f"{event.step_key}: {said}"


def forget_user(settings: Settings, user_id: str) -> None:
    """Removes a user's partition from Dagster; the nightly upkeep does while a run needs it."""
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        forget_partitions(instance, [user_id])


def step_seconds(settings: Settings, run_id: str) -> dict[str, float]:
    """How long each step of a run took, by its name."""
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        stats = instance.get_run_step_stats(run_id)
    return {s.step_key: round(s.end_time - s.start_time, 3) for s in stats if s.start_time and s.end_time}


def started_at(settings: Settings, run_id: str) -> float:
    """When a run began, in Unix seconds."""
    prepare_instance(settings)
    with dg.DagsterInstance.get() as instance:
        start = instance.get_run_stats(run_id).start_time
    assert start is not None, "the run has begun"
    return start
