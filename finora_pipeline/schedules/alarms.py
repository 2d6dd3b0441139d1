"""The sensor that looks for what needs a person, and tells."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.tags import WILL_RETRY_TAG

from finora_pipeline.alarms.book import mark_told, note
from finora_pipeline.alarms.conditions import Condition, of_connections
from finora_pipeline.alarms.notify import Notifier, NotifyError, message_of
from finora_pipeline.assets.raw_pages import READ_CHECK
from finora_pipeline.resources.accounts import AccountsResource
from finora_pipeline.schedules.jobs import history_job, refresh_job, upkeep_job
from finora_pipeline.schedules.refresh import PLAN_TAG

JOBS = (refresh_job.name, history_job.name, upkeep_job.name)
# How long a failure that nothing of its kind has followed is told of.
FAILURES_KEPT = timedelta(days=7)
# The newest finished runs of a job that are looked at: an older failure is hardly the last of its kind.
RUNS_LOOKED_AT = 200


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells once by e-mail, Slack or webhook (FINORA_NOTIFY) of connections that need attention, "
    "data older than promised, failed runs and checks, and once again when that is over.",
)
def alarms(context: dg.SensorEvaluationContext, accounts: AccountsResource) -> dg.SkipReason:
    now = datetime.now(UTC)
    conditions = [
        *of_connections(accounts.accounts.connections(), now),
        *failed_runs(context.instance, now),
        *failed_checks(context.instance, context.repository_def),
    ]
    database = accounts.accounts.database
    untold = note(database, conditions, now)
    if not untold:
        return dg.SkipReason(f"Nothing new; {len(conditions)} open.")
    notifier = Notifier()
    title, body = message_of(untold)
    if notifier.kinds:
        try:
            notifier.send(title, body)
        except NotifyError as error:
            context.log.warning(str(error))
            return dg.SkipReason(f"{error} The next look tries again.")
    mark_told(database, untold, now)
    told_by = ", ".join(notifier.kinds) or "nobody, FINORA_NOTIFY is empty"
    context.log.info(f"{title}\n{body}")
    return dg.SkipReason(f"{title} (told by: {told_by})")


def failed_runs(instance: dg.DagsterInstance, now: datetime) -> Iterator[Condition]:
    """Jobs whose last run, of a plan or of certain days or users, failed and is not tried again."""
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    for job in JOBS:
        filters = dg.RunsFilter(job_name=job, statuses=ended, updated_after=now - FAILURES_KEPT)
        seen: set[str] = set()
        for record in instance.get_run_records(filters, limit=RUNS_LOOKED_AT):
            run = record.dagster_run
            what = _what(run)
            if what in seen:
                continue
            seen.add(what)
            if run.is_failure and run.tags.get(WILL_RETRY_TAG) != "true":
                at = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else now
                yield Condition(
                    f"run/{job}/{what}",
                    f"The job {job}{' of ' + what if what else ''} failed at {at:%Y-%m-%d %H:%M} UTC. Its "
                    f"run {run.run_id[:8]} in the Dagster UI says why.",
                )


def _what(run: dg.DagsterRun) -> str:
    """What makes a run one of its kind: its plan, or the users whose history it loads."""
    for tag in (PLAN_TAG, "dagster/partition"):
        if tag in run.tags:
            return run.tags[tag]
    if run.job_name == history_job.name and "dagster/asset_partition_range_start" in run.tags:
        return "{dagster/asset_partition_range_start} to {dagster/asset_partition_range_end}".format_map(
            run.tags
        )
    return ""


def failed_checks(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition | None
) -> Iterator[Condition]:
    """Asset checks whose last result is an error."""
    if repository is None:
        return
    for key in sorted(repository.asset_graph.asset_check_keys, key=str):
        if key.name == READ_CHECK:
            # What its users need is told of each.
            continue
        # A run that waits or goes has a record of the check, too, which tells nothing yet.
        for record in instance.event_log_storage.get_asset_check_execution_history(
            key, limit=1, status=COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
        ):
            event = record.event.dagster_event if record.event else None
            if event is None:
                continue
            told = event.asset_check_evaluation_data
            if not told.passed and told.severity is dg.AssetCheckSeverity.ERROR:
                asset = key.asset_key.to_user_string()
                yield Condition(
                    f"check/{asset}/{key.name}",
                    f"The check {key.name} of {asset} fails; its page in the Dagster UI shows what differs.",
                )
