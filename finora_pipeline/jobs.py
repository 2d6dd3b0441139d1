"""The jobs, and the run config and tags of their runs."""

from collections.abc import Sequence
from datetime import date

import dagster as dg

from finora_pipeline.assets.metrics import compute_metrics
from finora_pipeline.assets.partitions import FIRST_PARTITION
from finora_pipeline.assets.published import published
from finora_pipeline.assets.retention import retention
from finora_pipeline.assets.user_history import user_history
from finora_pipeline.instance.tags import ASSET_JOB_NAME, PRIORITY_TAG, RANGE_TAGS

# Marks long runs. dagster.yaml limits how many run at once, so that refreshes never wait for them.
BATCH_TAG = {"finora/batch": "yes"}
# The users or the plan of a backfill.
BACKFILL_TAG = "finora/backfill"
# The user of a run for one user.
USER_TAG = "finora/user"
# The plan of a scheduled refresh.
PLAN_TAG = "finora/plan"
# The plan of a refresh of past days, for which the plan's scheduled refreshes do not wait.
DAYS_OF_PLAN_TAG = "finora/days-of-plan"
# Scheduled refreshes leave the queue first, backfills last.
LIVE_TAGS = {PRIORITY_TAG: "1"}
LAST_TAGS = {PRIORITY_TAG: "-1"}


def user_tags(user_ids: Sequence[str]) -> dict[str, str]:
    """The tag that identifies runs of a single user; empty for several users."""
    return {USER_TAG: user_ids[0]} if len(user_ids) == 1 else {}


def range_tags(first: str, last: str) -> dict[str, str]:
    """The tags of a run over the partitions from `first` to `last`, both included."""
    return dict(zip(RANGE_TAGS, (first, last), strict=True))


def day_range_tags(first: date, last: date) -> dict[str, str]:
    """The tags of a run over the UTC days from `first` to `last`, both included."""
    return range_tags(max(first, FIRST_PARTITION).isoformat(), last.isoformat())


def refresh_config(
    plan: str | None = None, users: list[str] | None = None, only_due: bool = False
) -> dict[str, object]:
    """Run config of the refresh job: which connections to fetch, without secrets."""
    config = {"plan": plan, "users": users or [], "only_due": only_due}
    chosen = {name: value for name, value in config.items() if value}
    return {"ops": {"raw_openai_pages": {"config": chosen}}}


refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(user_history, retention),
    description="Fetches a range of days of all users, updates facts and metrics, and publishes. "
    "Configure a plan, users or only_due to fetch only those.",
)

history_job = dg.define_asset_job(
    "load_user_history",
    selection=dg.AssetSelection.assets(user_history, compute_metrics, published),
    description="Loads a user's whole history: for a new connection, or again.",
    tags=BATCH_TAG,
)

upkeep_job = dg.define_asset_job(
    "upkeep",
    selection=dg.AssetSelection.assets(retention),
    description="Deletes expired days, and raw pages no fact depends on.",
)

JOB_NAMES = (refresh_job.name, history_job.name, upkeep_job.name, ASSET_JOB_NAME)
