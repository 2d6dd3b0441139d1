"""The sensor that checks for conditions that need a person, and notifies."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from finora_pipeline.accounts.model import Connection, Status
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.alerts.conditions import Condition, of_connections, of_installation
from finora_pipeline.alerts.notify import Notifier, NotifyError, message_of
from finora_pipeline.alerts.store import mark_notified, sync_alerts
from finora_pipeline.assets.partitions import USERS_NAME
from finora_pipeline.assets.raw_pages import FETCH_CHECK
from finora_pipeline.instance.checks import last_evaluation
from finora_pipeline.instance.tags import (
    ASSET_JOB_NAME,
    BACKFILL_ID_TAG,
    PARTITION_TAG,
    RANGE_TAGS,
    WILL_RETRY_TAG,
)
from finora_pipeline.jobs import BACKFILL_TAG, JOB_NAMES, PLAN_TAG, history_job, refresh_job
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.database import Warehouse

# How long a failure is reported if no run of the same kind follows.
FAILURES_KEPT = timedelta(days=7)
# Number of newest finished runs examined per job; an older failure is unlikely to be the last of its kind.
RUNS_EXAMINED = 200
_NEVER = datetime.min.replace(tzinfo=UTC)


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notifies by e-mail, Slack or webhook (FINORA_NOTIFY) of connections that need attention, "
    "late data, failed runs and failed checks: once, and again when the condition is over.",
)
def alerts(
    context: dg.SensorEvaluationContext,
    accounts: dg.ResourceParam[Accounts],
    warehouse: dg.ResourceParam[Warehouse],
) -> dg.SkipReason:
    now = datetime.now(UTC)
    connections = accounts.connections.all()
    conditions = [
        *of_connections(connections, now),
        *of_installation(warehouse, Settings.from_environment().dagster_home, now),
        *failed_runs(context.instance, connections, now),
        *failed_checks(context.instance, context.repository_def),
    ]
    database = accounts.database
    pending = sync_alerts(database, conditions, now)
    if not pending:
        return dg.SkipReason(f"Nothing new; {len(conditions)} open.")
    notifier = Notifier()
    title, body = message_of(pending)
    sent_by, problem = notifier.kinds, ""
    try:
        notifier.send(title, body)
    except NotifyError as error:
        context.log.warning(str(error))
        if not error.sent_by:
            return dg.SkipReason(f"{error} The next evaluation tries again.")
        # Retrying for the failed address would notify the others every minute.
        sent_by, problem = error.sent_by, f" {error}"
    mark_notified(database, pending, now)
    context.log.info(f"{title}\n{body}")
    channels = ", ".join(sent_by) or "no one, FINORA_NOTIFY is empty"
    return dg.SkipReason(f"{title} (sent by: {channels}){problem}")


def failed_runs(
    instance: dg.DagsterInstance, connections: Iterable[Connection], now: datetime
) -> Iterator[Condition]:
    """Jobs whose last run of a kind (`_run_kind`) failed and is not retried.

    A failed load of histories is also over when its users have been refreshed since.
    """
    refreshed_at = {c.user_id: c.last_refresh_at or _NEVER for c in connections if c.status is Status.ACTIVE}
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
    for job in JOB_NAMES:
        filters = dg.RunsFilter(job_name=job, statuses=ended, updated_after=now - FAILURES_KEPT)
        seen: set[str] = set()
        for record in instance.get_run_records(filters, limit=RUNS_EXAMINED):
            run = record.dagster_run
            kind = _run_kind(run)
            if kind in seen:
                continue
            seen.add(kind)
            if not run.is_failure or run.tags.get(WILL_RETRY_TAG) == "true":
                continue
            if job == history_job.name:
                users = _users_of(run, instance.get_dynamic_partitions(USERS_NAME))
                requested_at = record.create_timestamp
                if all(refreshed_at.get(user_id, now) >= requested_at for user_id in users):
                    continue
            at = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else now
            yield Condition(
                f"run/{job}/{kind}",
                f"{_job_title(run)}{' of ' + kind if kind else ''} failed at {at:%Y-%m-%d %H:%M} UTC. See "
                f"run {run.run_id[:8]} in the Dagster UI.",
            )


def _job_title(run: dg.DagsterRun) -> str:
    if run.job_name != ASSET_JOB_NAME:
        return f"The job {run.job_name}"
    return "A backfill" if BACKFILL_ID_TAG in run.tags else "A materialization"


def _run_kind(run: dg.DagsterRun) -> str:
    """The kind of a run: its plan, its backfill's users, or its range of days or users.

    A later run of the same kind and job replaces an earlier one.
    """
    for tag in (PLAN_TAG, BACKFILL_TAG):
        if tag in run.tags:
            return run.tags[tag]
    # Refreshes of any range of days are the same kind.
    is_refresh = run.job_name == refresh_job.name
    return run.tags.get(PARTITION_TAG, "") if is_refresh else " to ".join(_ends(run))


def _ends(run: dg.DagsterRun) -> list[str]:
    """The first and last partition of a run, or its only one."""
    ends = [run.tags[tag] for tag in (PARTITION_TAG, *RANGE_TAGS) if tag in run.tags]
    return list(dict.fromkeys(ends))


def _users_of(run: dg.DagsterRun, user_ids: Sequence[str]) -> Sequence[str]:
    """The users whose history a run loads; `user_ids` holds all partitions in order."""
    ends = _ends(run)
    if len(ends) < 2:
        return ends
    first, last = ends
    if first not in user_ids or last not in user_ids:
        # The range of a deleted user is unknown and may cover all users.
        return user_ids
    return user_ids[user_ids.index(first) : user_ids.index(last) + 1]


def failed_checks(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition | None
) -> Iterator[Condition]:
    """Asset checks whose last result is an error."""
    if repository is None:
        return
    for key in sorted(repository.asset_graph.asset_check_keys, key=str):
        if key.name == FETCH_CHECK:
            # Each failed user has a condition of their own.
            continue
        evaluation = last_evaluation(instance, key)
        if evaluation and not evaluation.passed and evaluation.severity is dg.AssetCheckSeverity.ERROR:
            asset = key.asset_key.to_user_string()
            yield Condition(
                f"check/{asset}/{key.name}",
                f"The check {key.name} of {asset} fails. Its page in the Dagster UI shows the differences.",
            )
