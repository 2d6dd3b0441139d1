"""Partitions of assets: facts by UTC day, histories by user."""

from datetime import date

import dagster as dg

# The first day for which OpenAI's usage API has had data of any organization.
FIRST_PARTITION = date(2023, 1, 1)

# Includes today's partial day, for which OpenAI has a bucket.
DAYS = dg.DailyPartitionsDefinition(start_date=FIRST_PARTITION.isoformat(), timezone="UTC", end_offset=1)

USERS_NAME = "users"
USERS = dg.DynamicPartitionsDefinition(name=USERS_NAME)
