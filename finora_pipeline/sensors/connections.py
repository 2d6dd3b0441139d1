"""The sensor that loads a new connection's history and refreshes an updated one within seconds."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import dagster as dg

from finora_pipeline.accounts.model import Connection, Status
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.partitions import USERS, USERS_NAME
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.jobs import (
    day_range_tags,
    history_job,
    range_tags,
    refresh_config,
    refresh_job,
    user_tags,
)

POLL_SECONDS = 5
# Changes are timestamped before they are committed, so an earlier one may become visible after a later one.
OVERLAP = timedelta(minutes=2)
# Users whose history one run loads; more new users at once are split into several runs.
USERS_A_RUN = 100


@dg.sensor(
    jobs=[refresh_job, history_job],
    minimum_interval_seconds=POLL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Loads the history of new connections and refreshes updated ones immediately.",
)
def connection_changes(
    context: dg.SensorEvaluationContext, accounts: dg.ResourceParam[Accounts]
) -> dg.SensorResult | dg.SkipReason:
    """Requests runs for changed connections.

    The cursor holds the time up to which changes were seen, and the changes seen within `OVERLAP` before it.
    """
    now = datetime.now(UTC)
    since, seen = _read_cursor(context.cursor)
    # A change timestamped by a clock that ran ahead must not hide later ones.
    since = since and min(since, now)
    recent = accounts.connections.all(changed_after=since and since - OVERLAP)
    changed = [c for c in recent if _change_of(c) not in seen]
    if not changed:
        return dg.SkipReason("No connection is new or updated.")
    waiting = [c for c in changed if c.status is not Status.REMOVED and not _is_fetched(c)]
    # Users of faster plans expect their first figures sooner.
    waiting.sort(key=lambda connection: connection.plan.refresh_interval)
    new = [c.user_id for c in waiting if c.history_from is None]
    updated = [c.user_id for c in waiting if c.history_from is not None]
    known = set(context.instance.get_dynamic_partitions(USERS_NAME))
    added = [user_id for user_id in new if user_id not in known]
    requests = [_history_request(part) for part in _parts(added)]
    # Partitions that existed before may not be adjacent, as a range requires.
    requests += [_history_request([user_id]) for user_id in new if user_id in known]
    requests += [_refresh_request(part) for part in _parts(updated)]
    # Also users already fetched by a command: the UI offers histories only of users with a partition.
    offered = known.union(new)
    added += [c.user_id for c in changed if c.status is not Status.REMOVED and c.user_id not in offered]
    return dg.SensorResult(
        run_requests=requests,
        dynamic_partitions_requests=[USERS.build_add_request(added)] if added else [],
        cursor=_cursor_after(recent, now),
    )


def _change_of(connection: Connection) -> str:
    return f"{connection.user_id}/{connection.changed_at.isoformat()}"


def _read_cursor(cursor: str | None) -> tuple[datetime | None, set[str]]:
    if not cursor:
        return None, set()
    read = json.loads(cursor)
    return datetime.fromisoformat(read["since"]), set(read["seen"])


def _cursor_after(recent: list[Connection], now: datetime) -> str:
    since = min(now, max(c.changed_at for c in recent))
    seen = [_change_of(c) for c in recent if c.changed_at > since - OVERLAP]
    return json.dumps({"since": since.isoformat(), "seen": seen})


def _is_fetched(connection: Connection) -> bool:
    """Whether a refresh has already used the current key."""
    attempt = connection.last_attempt_at
    return attempt is not None and attempt >= connection.changed_at


def _parts(user_ids: list[str]) -> Iterable[list[str]]:
    for first in range(0, len(user_ids), USERS_A_RUN):
        yield user_ids[first : first + USERS_A_RUN]


def _history_request(user_ids: list[str]) -> dg.RunRequest:
    if len(user_ids) == 1:
        return dg.RunRequest(job_name=history_job.name, partition_key=user_ids[0], tags=user_tags(user_ids))
    return dg.RunRequest(job_name=history_job.name, tags=range_tags(user_ids[0], user_ids[-1]))


def _refresh_request(user_ids: list[str]) -> dg.RunRequest:
    window = trailing_window(datetime.now(UTC).date())
    return dg.RunRequest(
        job_name=refresh_job.name,
        run_config=refresh_config(users=user_ids),
        tags=user_tags(user_ids) | day_range_tags(window.start, window.last),
    )
