"""How assets are partitioned: facts by UTC day, a user's history by user."""

from datetime import date

import dagster as dg

# The day from which OpenAI's usage API has had data of any organization.
FIRST_PARTITION = date(2023, 1, 1)

# Today's partial day is a partition too: OpenAI has a bucket for it.
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_PARTITION.isoformat(), timezone="UTC", end_offset=1)

USERS_NAME = "users"
USERS = dg.DynamicPartitionsDefinition(name=USERS_NAME)

# The first and the last partition that a run covers.
RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


def range_tags(first: str, last: str) -> dict[str, str]:
    """The tags that make a run cover the partitions from `first` to `last`, both included."""
    return dict(zip(RANGE_TAGS, (first, last), strict=True))


def day_range_tags(first: date, last: date) -> dict[str, str]:
    """The tags that make a run cover the days from `first` to `last`, both included."""
    return range_tags(max(first, FIRST_PARTITION).isoformat(), last.isoformat())
