"""Simulated days of an installation: real schedules, sensor and accounts, a simulated clock.

Runs are not executed: each takes a given time and records the outcome of a run that fetched all its users.
The clock advances by minutes.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import yaml
from dagster._vendored.croniter.croniter import croniter
from sqlalchemy import insert, select, update

from finora_pipeline.accounts.database import connections, users
from finora_pipeline.accounts.model import CompleteRefresh, Connection, Refresh
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.partitions import USERS_NAME
from finora_pipeline.ingest.selection import select_connections
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.instance.config import SHIPPED
from finora_pipeline.jobs import BATCH_TAG, PLAN_TAG, history_job
from finora_pipeline.plans import PLANS, Plan

MINUTE = timedelta(minutes=1)
_LIMITS = yaml.safe_load(SHIPPED.read_text())["concurrency"]["runs"]
MOST_RUNS: int = _LIMITS["max_concurrent_runs"]
(MOST_BATCHES,) = (limit["limit"] for limit in _LIMITS["tag_concurrency_limits"] if limit["key"] in BATCH_TAG)


@dataclass
class SimulatedRun:
    """A queued or running run: its end, its users and their fetch time."""

    run_id: str
    job: str
    config: dict[str, Any]
    tags: dict[str, str]
    ends: datetime | None = None
    began: datetime | None = None
    reads: list[Connection] = field(default_factory=list)


class Days:
    """An installation whose clock advances by `minute`."""

    def __init__(
        self,
        definitions: dg.Definitions,
        instance: dg.DagsterInstance,
        accounts: Accounts,
        start: datetime,
        minutes_of: Callable[[SimulatedRun], int],
    ) -> None:
        self.now = start
        self.accounts = accounts
        self.is_daemon_up = True
        self.worst: dict[str, timedelta] = {}
        self.launched: list[tuple[datetime, str, str]] = []
        self.most_of_a_plan = 0
        self._definitions = definitions
        self._repository = definitions.get_repository_def()
        self._instance = instance
        resources = definitions.resources or {}
        needed = {name: resources[name] for name in ("accounts", "warehouse")}
        # One context for all ticks: each new one would open the instance's databases again.
        self._contexts = ExitStack()
        self._context = self._contexts.enter_context(
            dg.build_schedule_context(instance=instance, scheduled_execution_time=start, resources=needed)
        )
        self._minutes_of = minutes_of
        self._runs: list[SimulatedRun] = []
        self._missed: set[str] = set()
        self._cursor: str | None = None
        self._crons = {name: croniter(plan.cron, start - MINUTE) for name, plan in PLANS.items()}
        self._next = {name: cron.get_next(datetime) for name, cron in self._crons.items()}
        self._last_refresh: dict[str, tuple[Plan, datetime]] = {}
        self._known_users = 0

    def close(self) -> None:
        """Close what was opened; call it before the instance closes."""
        self._contexts.close()

    def arrive(self, template: str, user_ids: list[str], plan: str) -> None:
        """Connect more users, with copies of the pattern user's rows."""
        with self.accounts.database.write() as database:
            user = database.execute(select(users).where(users.c.user_id == template)).mappings().one()
            one = (
                database.execute(select(connections).where(connections.c.user_id == template))
                .mappings()
                .one()
            )
            fresh = {
                "connected_at": self.now, "changed_at": self.now, "status_since": self.now,
                "history_from": None, "read_until": None, "last_attempt_at": None, "last_refresh_at": None,
            }  # fmt: skip
            for user_id in user_ids:
                database.execute(insert(users).values({**user, "user_id": user_id, "plan": plan}))
                database.execute(insert(connections).values({**one, **fresh, "user_id": user_id}))

    def settle(self, user_ids: list[str], refreshed_at: datetime) -> None:
        """Mark users as long connected, fetched completely and last at that moment."""
        with self.accounts.database.write() as database:
            database.execute(
                update(connections)
                .where(connections.c.user_id.in_(user_ids))
                .values(
                    connected_at=refreshed_at,
                    changed_at=refreshed_at - timedelta(days=1),
                    last_refresh_at=refreshed_at,
                    last_attempt_at=refreshed_at,
                    history_from=refreshed_at.date() - timedelta(days=400),
                    read_until=refreshed_at.date() + timedelta(days=1),
                )
            )

    def minute(self) -> None:
        """Advance the clock by a minute."""
        for run in [run for run in self._runs if run.ends and run.ends <= self.now]:
            self._end(run)
        for name in PLANS:
            if self._next[name] <= self.now:
                self._missed.add(name)
                self._next[name] = self._crons[name].get_next(datetime)
        if self.is_daemon_up:
            for name in sorted(self._missed):
                self._tick(name)
            self._missed.clear()
            self._sense()
            self._dequeue()
        self._measure()
        self.now += MINUTE

    def _tick(self, plan: str) -> None:
        self._context._scheduled_execution_time = self.now
        result = self._repository.get_schedule_def(f"refresh_{plan}").evaluate_tick(self._context)
        for request in result.run_requests or []:
            self._queue("refresh", request)

    def _sense(self) -> None:
        # The sensor is skipped without changes: evaluating it costs as much either way.
        found = len(self.accounts.users.ids())
        if found == self._known_users:
            return
        self._known_users = found
        resources = self._definitions.resources or {}
        with dg.build_sensor_context(
            instance=self._instance,
            cursor=self._cursor,
            repository_def=self._repository,
            resources={"accounts": resources["accounts"]},
        ) as context:
            result = self._repository.get_sensor_def("connection_changes").evaluate_tick(context)
        self._cursor = result.cursor
        for added in result.dynamic_partitions_requests or []:
            self._instance.add_dynamic_partitions(USERS_NAME, list(added.partition_keys))
        for request in result.run_requests or []:
            self._queue(request.job_name or "refresh", request)

    def _queue(self, job: str, request: dg.RunRequest) -> None:
        # No run events are stored: they take far longer than the simulation.
        run = dg.DagsterRun(job_name=job, tags=dict(request.tags), status=dg.DagsterRunStatus.NOT_STARTED)
        self._instance.add_run(run)
        self._runs.append(SimulatedRun(run.run_id, job, dict(request.run_config), dict(request.tags)))
        self.launched.append((self.now, job, request.tags.get(PLAN_TAG, "")))

    def _dequeue(self) -> None:
        # Dagster's queue: by priority, then by age.
        for run in sorted(self._runs, key=lambda run: -int(run.tags.get("dagster/priority", 0))):
            going = [other for other in self._runs if other.began]
            plan = run.tags.get(PLAN_TAG)
            batches = [other for other in going if other.job == history_job.name]
            if (
                run.began
                or len(going) >= MOST_RUNS
                or (plan and any(other.tags.get(PLAN_TAG) == plan for other in going))
                or (run.job == history_job.name and len(batches) >= MOST_BATCHES)
            ):
                continue
            run.began = self.now
            run.reads = self._chosen(run)
            run.ends = self.now + timedelta(minutes=self._minutes_of(run))
        for plan in PLANS:
            of_plan = sum(run.tags.get(PLAN_TAG) == plan for run in self._runs)
            self.most_of_a_plan = max(self.most_of_a_plan, of_plan)

    def _chosen(self, run: SimulatedRun) -> list[Connection]:
        if run.job == history_job.name:
            keys = self._instance.get_dynamic_partitions(USERS_NAME)
            first, last = (run.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))
            keys = keys[keys.index(first) : keys.index(last) + 1]
            return select_connections(self.accounts, user_ids=keys, skip_missing=True)
        config = run.config["ops"]["raw_openai_pages"]["config"]
        return select_connections(
            self.accounts,
            plan=config.get("plan"),
            user_ids=config.get("users"),
            now=self.now,
            skip_missing=True,
            only_due=config.get("only_due", False),
        )

    def _end(self, run: SimulatedRun) -> None:
        assert run.began is not None
        window = trailing_window(run.began.date())
        read = [
            Refresh(c.user_id, window.start, window.end, run.began, self.now, 1, plan=c.plan.name)
            for c in run.reads
        ]
        read = [
            replace(one, window_start=(c.first_day(run.began.date()) or window.start))
            if c.history_from is None
            else one
            for c, one in zip(run.reads, read, strict=True)
        ]
        self.accounts.refreshes.record(run.run_id, read)
        done = [CompleteRefresh(run.run_id, one.user_id, one.started_at, one.window_end) for one in read]
        self.accounts.refreshes.mark_published(done, self.now)
        self._instance.run_storage.delete_run(run.run_id)
        self._runs.remove(run)
        self._last_refresh.clear()

    def _measure(self) -> None:
        if len(self._last_refresh) != self._known_users or not self._last_refresh:
            self._last_refresh = {
                c.user_id: (c.plan, c.last_refresh_at or c.connected_at)
                for c in self.accounts.connections.all()
            }
        for plan, since in self._last_refresh.values():
            self.worst[plan.name] = max(self.worst.get(plan.name, timedelta(0)), self.now - since)
