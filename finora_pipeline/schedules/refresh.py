"""One schedule a plan, from the table of plans. A tick is skipped while a refresh of the plan is going."""

from datetime import UTC

import dagster as dg

from finora_pipeline.assets.partitions import day_range_tags
from finora_pipeline.plans import PLANS, Plan
from finora_pipeline.refresh.windows import trailing_window
from finora_pipeline.schedules.jobs import refresh_job

PLAN_TAG = "finora/plan"

_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
]


def refresh_config(plan: str | None = None, users: list[str] | None = None) -> dict[str, object]:
    """Run config of the refresh job: whom to read. Never holds a secret."""
    config = {"plan": plan, "users": users or []}
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
        description=f"Refreshes every connection of the {plan.name} plan, {plan.interval_text}.",
    )
    def refresh_plan(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        filters = dg.RunsFilter(job_name=refresh_job.name, tags={PLAN_TAG: plan.name}, statuses=_UNFINISHED)
        if context.instance.get_run_records(filters, limit=1):
            return dg.SkipReason(f"A refresh of the {plan.name} plan is still going.")
        moment = context.scheduled_execution_time
        window = trailing_window(moment.astimezone(UTC).date())
        return dg.RunRequest(
            run_key=f"{plan.name}/{moment.isoformat()}",
            run_config=refresh_config(plan=plan.name),
            tags={PLAN_TAG: plan.name} | day_range_tags(window.start, window.last),
        )

    return refresh_plan


def plan_schedules() -> list[dg.ScheduleDefinition]:
    """A schedule for each plan there is."""
    return [schedule_of(plan) for plan in PLANS.values()]
