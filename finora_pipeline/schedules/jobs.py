"""The two jobs: a refresh of many users for a range of days, and the whole history of one user."""

import dagster as dg

from finora_pipeline.assets.metrics import split_costs, user_metrics
from finora_pipeline.assets.serving import published
from finora_pipeline.assets.user_history import user_history

refresh_job = dg.define_asset_job(
    "refresh",
    selection=dg.AssetSelection.all() - dg.AssetSelection.assets(user_history),
    description="Reads a range of days of the users that are due, and brings facts, metrics and the "
    "published copy up to date. Configure a plan or users to read only those.",
)

history_job = dg.define_asset_job(
    "load_user_history",
    selection=dg.AssetSelection.assets(user_history, split_costs, user_metrics, published),
    description="Loads the whole history of one user, a new one or again.",
)
