"""One schedule per plan. It skips a tick while a refresh of the plan runs, and when nothing is due."""

from datetime import UTC

import dagster as dg

from finora_pipeline.accounts.store import Accounts
from finora_pipeline.ingest.selection import select_connections
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.jobs import LIVE_TAGS, PLAN_TAG, day_range_tags, refresh_config, refresh_job
from finora_pipeline.plans import PLANS, Plan

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def schedule_of(plan: Plan) -> dg.ScheduleDefinition:
    """The schedule that keeps a plan's promise."""

    @dg.schedule(
        job=refresh_job,
        name=f"refresh_{plan.name}",
        cron_schedule=plan.cron,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Refreshes due connections of the {plan.name} plan, each at least {plan.interval_text}.",
    )
    def refresh_plan(
        context: dg.ScheduleEvaluationContext, accounts: dg.ResourceParam[Accounts]
    ) -> dg.RunRequest | dg.SkipReason:
        moment = context.scheduled_execution_time.astimezone(UTC)
        filters = dg.RunsFilter(job_name=refresh_job.name, tags={PLAN_TAG: plan.name}, statuses=_UNFINISHED)
        if context.instance.get_runs_count(filters):
            return dg.SkipReason(f"A refresh of the {plan.name} plan is still running.")
        if not select_connections(accounts, plan=plan.name, now=moment, only_due=True):
            return dg.SkipReason(f"No connection of the {plan.name} plan is due.")
        window = trailing_window(moment.date())
        return dg.RunRequest(
            run_key=f"{plan.name}/{moment.isoformat()}",
            run_config=refresh_config(plan=plan.name, only_due=True),
            tags={PLAN_TAG: plan.name} | LIVE_TAGS | day_range_tags(window.start, window.last),
        )

    return refresh_plan


def plan_schedules() -> list[dg.ScheduleDefinition]:
    """The schedules of all plans."""
    return [schedule_of(plan) for plan in PLANS.values()]
