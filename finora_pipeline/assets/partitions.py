"""How assets are partitioned: facts by UTC day, a user's history by user."""

from datetime import date

import dagster as dg

# The day from which OpenAI's usage API has had data of any organization.
FIRST_PARTITION = date(2023, 1, 1)

# Today's partial day is a partition too: OpenAI has a bucket for it.
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_PARTITION.isoformat(), timezone="UTC", end_offset=1)

USERS_NAME = "users"
USERS = dg.DynamicPartitionsDefinition(name=USERS_NAME)
