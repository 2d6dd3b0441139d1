"""The sensor that looks for what needs a person, and tells."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.storage.asset_check_execution_record import COMPLETED_ASSET_CHECK_EXECUTION_RECORD_STATUSES
from dagster._core.storage.tags import WILL_RETRY_TAG

from finora_pipeline.accounts.model import Connection, Status
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.alarms.book import mark_told, note
from finora_pipeline.alarms.conditions import Condition, of_connections, of_installation
from finora_pipeline.alarms.notify import Notifier, NotifyError, message_of
from finora_pipeline.assets.partitions import RANGE_TAGS, USERS_NAME
from finora_pipeline.assets.raw_pages import READ_CHECK
from finora_pipeline.schedules.jobs import BACKFILL_TAG, JOBS, history_job, refresh_job
from finora_pipeline.schedules.refresh import PLAN_TAG
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.warehouse import Warehouse

# How long a failure that nothing of its kind has followed is told of.
FAILURES_KEPT = timedelta(days=7)
# The newest finished runs of a job that are looked at: an older failure is hardly the last of its kind.
RUNS_LOOKED_AT = 200
_NEVER = datetime.min.replace(tzinfo=UTC)


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells once by e-mail, Slack or webhook (FINORA_NOTIFY) of connections that need attention, "
    "data older than promised, failed runs and checks, and once again when that is over.",
)
def alarms(
    context: dg.SensorEvaluationContext,
    accounts: dg.ResourceParam[Accounts],
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.SkipReason:
    now = datetime.now(UTC)
    connections = accounts.connections()
    conditions = [
        *of_connections(connections, now),
        *of_installation(warehouse, Settings.from_environment().dagster_home, now),
        *failed_runs(context.instance, connections, now),
        *failed_checks(context.instance, context.repository_def),
    ]
    database = accounts.database
    untold = note(database, conditions, now)
    if not untold:
        return dg.SkipReason(f"Nothing new; {len(conditions)} open.")
    notifier = Notifier()
    title, body = message_of(untold)
    told_by, problem = notifier.kinds, ""
    try:
        notifier.send(title, body)
    except NotifyError as error:
        context.log.warning(str(error))
        if not error.told_by:
            return dg.SkipReason(f"{error} The next look tries again.")
        # Sent again for the one that failed, it would reach the others every minute.
        told_by, problem = error.told_by, f" {error}"
    mark_told(database, untold, now)
    context.log.info(f"{title}\n{body}")
    told = ", ".join(told_by) or "nobody, FINORA_NOTIFY is empty"
    return dg.SkipReason(f"{title} (told by: {told}){problem}")


def failed_runs(
    instance: dg.DagsterInstance, connections: Iterable[Connection], now: datetime
) -> Iterator[Condition]:
    """Jobs whose last run, of a plan or of certain days or users, failed and is not tried again. A failed
    load of histories is over, too, when its users have been read since."""
    read_at = {c.user_id: c.last_refresh_at or _NEVER for c in connections if c.status is Status.ACTIVE}
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
            if not run.is_failure or run.tags.get(WILL_RETRY_TAG) == "true":
                continue
            if job == history_job.name:
                users = _users_of(run, instance.get_dynamic_partitions(USERS_NAME))
                unread = [user_id for user_id in users if read_at.get(user_id, now) < record.create_timestamp]
                if not unread:
                    continue
            at = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else now
            yield Condition(
                f"run/{job}/{what}",
                f"{_name(run)}{' of ' + what if what else ''} failed at {at:%Y-%m-%d %H:%M} UTC. Its "
                f"run {run.run_id[:8]} in the Dagster UI says why.",
            )


def _name(run: dg.DagsterRun) -> str:
    if run.job_name != IMPLICIT_ASSET_JOB_NAME:
        return f"The job {run.job_name}"
    return "A backfill" if "dagster/backfill" in run.tags else "A materialization"


def _what(run: dg.DagsterRun) -> str:
    """What makes a run one of its kind: its plan, whom it fills back, or the days or users it is of."""
    for tag in (PLAN_TAG, BACKFILL_TAG):
        if tag in run.tags:
            return run.tags[tag]
    # Refreshes of whatever range of days are of one kind.
    is_refresh = run.job_name == refresh_job.name
    return run.tags.get("dagster/partition", "") if is_refresh else " to ".join(_ends(run))


def _ends(run: dg.DagsterRun) -> list[str]:
    """The first and the last partition of a run, or its only one."""
    ends = [run.tags[tag] for tag in ("dagster/partition", *RANGE_TAGS) if tag in run.tags]
    return list(dict.fromkeys(ends))


def _users_of(run: dg.DagsterRun, user_ids: Sequence[str]) -> Sequence[str]:
    """Of all users, in the order of their partitions, those whose history a run loads."""
    ends = _ends(run)
    if len(ends) < 2:
        return ends
    first, last = ends
    if first not in user_ids or last not in user_ids:
        # The range of a user who is gone may be of everybody.
        return user_ids
    return user_ids[user_ids.index(first) : user_ids.index(last) + 1]


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
