"""One schedule a plan, from the table of plans. A tick is skipped while a refresh of the plan is going, and
when nothing is due."""

import time
from datetime import UTC
from pathlib import Path

import dagster as dg

from finora_pipeline.accounts.store import Accounts
from finora_pipeline.assets.partitions import day_range_tags
from finora_pipeline.liveness import is_alive
from finora_pipeline.plans import PLANS, Plan
from finora_pipeline.refresh.fetch import select_connections
from finora_pipeline.refresh.windows import trailing_window
from finora_pipeline.schedules.jobs import refresh_job
from finora_pipeline.warehouse.warehouse import Warehouse

# After which a run that was started holds its lock.
START_SECONDS = 120
PLAN_TAG = "finora/plan"
# Names the plan of which somebody reads other days than a schedule would: its live refreshes do not wait.
DAYS_OF_PLAN_TAG = "finora/days-of-plan"
# What a schedule asks for goes first; all else has 0.
LIVE_TAGS = {"dagster/priority": "1"}

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def refresh_config(
    plan: str | None = None, users: list[str] | None = None, only_due: bool = False
) -> dict[str, object]:
    """Run config of the refresh job: whom to read. Never holds a secret."""
    config = {"plan": plan, "users": users or [], "only_due": only_due}
    chosen = {name: value for name, value in config.items() if value}
    return {"ops": {"raw_openai_pages": {"config": chosen}}}


def schedule_of(plan: Plan) -> dg.ScheduleDefinition:
    """The schedule that keeps a plan's promise."""

    @dg.schedule(
        job=refresh_job,
        name=f"refresh_{plan.name}",
        cron_schedule=plan.cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Refreshes the connections of the {plan.name} plan that are due, so that each is "
        f"refreshed {plan.interval_text} at least.",
    )
    def refresh_plan(
        context: dg.ScheduleEvaluationContext,
        accounts: dg.ResourceParam[Accounts],
        warehouse: dg.ResourceParam[Warehouse],
    ) -> dg.RunRequest | dg.SkipReason:
        moment = context.scheduled_execution_time.astimezone(UTC)
        filters = dg.RunsFilter(job_name=refresh_job.name, tags={PLAN_TAG: plan.name}, statuses=_UNFINISHED)
        unfinished = context.instance.get_run_records(filters)
        dead = [record for record in unfinished if _is_dead(record, warehouse.home)]
        for record in dead:
            context.instance.report_run_failed(record.dagster_run, "The process of this run is gone.")
        if len(dead) < len(unfinished):
            return dg.SkipReason(f"A refresh of the {plan.name} plan is still going.")
        if not select_connections(accounts, plan=plan.name, now=moment, only_due=True):
            return dg.SkipReason(f"No connection of the {plan.name} plan is due.")
        window = trailing_window(moment.date())
        return dg.RunRequest(
            run_key=f"{plan.name}/{moment.isoformat()}",
            run_config=refresh_config(plan=plan.name, only_due=True),
            tags={PLAN_TAG: plan.name} | LIVE_TAGS | day_range_tags(window.start, window.last),
        )

    return refresh_plan


def _is_dead(record: dg.RunRecord, home: Path) -> bool:
    """Whether a run that Dagster believes to be going has lost its process, in a power failure, say."""
    if record.dagster_run.status is not dg.DagsterRunStatus.STARTED or record.start_time is None:
        return False
    has_begun = time.time() - record.start_time > START_SECONDS
    return has_begun and not is_alive(home, record.dagster_run.run_id)


def plan_schedules() -> list[dg.ScheduleDefinition]:
    """A schedule for each plan there is."""
    return [schedule_of(plan) for plan in PLANS.values()]
