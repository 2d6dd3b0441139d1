"""Tags and names that Dagster gives to runs, as in its documentation."""

# The first and last partition of a run over a range; other runs have `PARTITION_TAG`.
RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
PARTITION_TAG = "dagster/partition"
# The backfill that launched a run.
BACKFILL_ID_TAG = "dagster/backfill"
# "true" on a failed run that Dagster will start again.
WILL_RETRY_TAG = "dagster/will_retry"
# Runs with a higher number leave the queue first; the default is 0.
PRIORITY_TAG = "dagster/priority"
# The job of backfills and of materializations launched from an asset's page.
ASSET_JOB_NAME = "__ASSET_JOB"
