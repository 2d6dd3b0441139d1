"""The jobs: a refresh of many users for a range of days, the whole history of one, the nightly upkeep."""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME

from finora_pipeline.assets.metrics import compute_metrics
from finora_pipeline.assets.retention import retention
from finora_pipeline.assets.serving import published
from finora_pipeline.assets.user_history import user_history

# Marks the long runs, of which few go at a time (dagster.yaml), so that a refresh never waits for them.
BATCH_TAG = {"finora/batch": "yes"}
# Names whom a backfill reads.
BACKFILL_TAG = "finora/backfill"
# Names the user that a run was made for.
USER_TAG = "finora/user"


def user_tags(user_ids: Sequence[str]) -> dict[str, str]:
    """The tag by which the runs of a user are found, for a run of that user alone."""
    return {USER_TAG: user_ids[0]} if len(user_ids) == 1 else {}


refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(user_history, retention),
    description="Reads a range of days of every user, and brings facts, metrics and the "
    "published copy up to date. Configure a plan, users or only_due to read only those.",
)

history_job = dg.define_asset_job(
    "load_user_history",
    selection=dg.AssetSelection.assets(user_history, compute_metrics, published),
    description="Loads the whole history of one user, a new one or again.",
    tags=BATCH_TAG,
)

upkeep_job = dg.define_asset_job(
    "upkeep",
    selection=dg.AssetSelection.assets(retention),
    description="Removes what plans keep no longer and raw pages that newer ones replace.",
)

# What runs are of; the last is Dagster's name for backfills and for materializations from assets' pages.
JOBS = (refresh_job.name, history_job.name, upkeep_job.name, IMPLICIT_ASSET_JOB_NAME)

# After OpenAI's day has ended and before the daily plans are read.
nightly_upkeep = dg.ScheduleDefinition(
    name="nightly_upkeep",
    job=upkeep_job,
    cron_schedule="40 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Runs the upkeep job every night.",
)
