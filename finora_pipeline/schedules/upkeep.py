"""The schedule of the nightly upkeep."""

import dagster as dg

from finora_pipeline.jobs import upkeep_job

# After OpenAI's UTC day has ended and before most daily refreshes.
nightly_upkeep = dg.ScheduleDefinition(
    name="nightly_upkeep",
    job=upkeep_job,
    cron_schedule="40 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Runs the upkeep job every night.",
)
