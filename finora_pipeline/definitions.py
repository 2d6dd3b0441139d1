"""The Dagster entry point: assets, jobs, schedules, sensors and resources of this installation."""

import dagster as dg

from finora_pipeline.assets.facts import load_pages
from finora_pipeline.assets.metrics import compute_metrics
from finora_pipeline.assets.published import published
from finora_pipeline.assets.raw_pages import raw_openai_pages
from finora_pipeline.assets.retention import retention
from finora_pipeline.assets.user_history import user_history
from finora_pipeline.data_folder.private_files import restrict_new_files
from finora_pipeline.jobs import history_job, refresh_job, upkeep_job
from finora_pipeline.resources.accounts import accounts_resource
from finora_pipeline.resources.openai_admin import OpenAIAdmin, openai_admin_resource
from finora_pipeline.resources.values import no_values
from finora_pipeline.resources.warehouse import warehouse_resource
from finora_pipeline.schedules.refresh import plan_schedules
from finora_pipeline.schedules.upkeep import nightly_upkeep
from finora_pipeline.sensors.alerts import alerts
from finora_pipeline.sensors.connections import connection_changes
from finora_pipeline.settings import Settings

ASSETS = [
    raw_openai_pages,
    load_pages,
    user_history,
    compute_metrics,
    published,
    retention,
]


def build_defs(
    settings: Settings | None = None, *, openai_admin: OpenAIAdmin | None = None
) -> dg.Definitions:
    """The definitions of an installation; without arguments the one named by the environment."""
    settings = settings or Settings.from_environment()
    return dg.Definitions(
        assets=ASSETS,
        jobs=[refresh_job, history_job, upkeep_job],
        schedules=[*plan_schedules(), nightly_upkeep],
        sensors=[connection_changes, alerts],
        resources={
            "accounts": accounts_resource(settings),
            "openai_admin": openai_admin_resource(openai_admin or OpenAIAdmin.of(settings)),
            "warehouse": warehouse_resource(settings),
            "io_manager": no_values,
        },
        # One process per run halves the start-up time, and steps of a run never write at the same time.
        executor=dg.in_process_executor,
    )


# Every code server and run worker imports this module.
restrict_new_files()
defs = build_defs()
