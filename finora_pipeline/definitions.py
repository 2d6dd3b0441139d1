"""The one Dagster entry point: assets, jobs, schedules, sensors and resources of this installation."""

import gc
import warnings

# What modules make is no garbage: with Dagster loaded, looking for some takes a third of these imports.
gc.disable()

import dagster as dg  # noqa: E402

# `backfill_policy` is still marked beta; the warning would be printed by every process.
warnings.filterwarnings("ignore", category=dg.BetaWarning)

from finora_pipeline.assets.facts import load_pages  # noqa: E402
from finora_pipeline.assets.metrics import compute_metrics  # noqa: E402
from finora_pipeline.assets.raw_pages import raw_openai_pages  # noqa: E402
from finora_pipeline.assets.retention import retention  # noqa: E402
from finora_pipeline.assets.serving import published  # noqa: E402
from finora_pipeline.assets.user_history import user_history  # noqa: E402
from finora_pipeline.private_files import restrict_new_files  # noqa: E402
from finora_pipeline.refresh.fetch import ProgressCallback  # noqa: E402
from finora_pipeline.resources.accounts import accounts_resource  # noqa: E402
from finora_pipeline.resources.openai_admin import OpenAIAdmin, openai_admin_resource  # noqa: E402
from finora_pipeline.resources.values import no_values  # noqa: E402
from finora_pipeline.resources.warehouse import warehouse_resource  # noqa: E402
from finora_pipeline.schedules.alarms import alarms  # noqa: E402
from finora_pipeline.schedules.jobs import history_job, nightly_upkeep, refresh_job, upkeep_job  # noqa: E402
from finora_pipeline.schedules.refresh import plan_schedules  # noqa: E402
from finora_pipeline.schedules.sensors import connection_changes  # noqa: E402
from finora_pipeline.settings import Settings  # noqa: E402

ASSETS = [
    raw_openai_pages,
    load_pages,
    user_history,
    compute_metrics,
    published,
    retention,
]


def build_defs(
    settings: Settings | None = None,
    *,
    openai_admin: OpenAIAdmin | None = None,
    on_progress: ProgressCallback | None = None,
) -> dg.Definitions:
    """The definitions of an installation; tests and the command line hand in what differs."""
    settings = settings or Settings.from_environment()
    return dg.Definitions(
        assets=ASSETS,
        jobs=[refresh_job, history_job, upkeep_job],
        schedules=[*plan_schedules(), nightly_upkeep],
        sensors=[connection_changes, alarms],
        resources={
            "accounts": accounts_resource(settings),
            "openai_admin": openai_admin_resource(openai_admin or OpenAIAdmin.of(settings)),
            "warehouse": warehouse_resource(settings),
            "on_progress": on_progress or _no_progress,
            "io_manager": no_values,
        },
        # One process a run: half the start-up time, and writers of one run never meet.
        executor=dg.in_process_executor,
    )


def _no_progress(done: int, total: int, failed: int) -> None:
    """Runs launched by the daemon tell their progress by their metadata."""


# Code servers and run workers import this module, whatever started them.
restrict_new_files()
defs = build_defs()

# Modules live as long as the process: a run need not have them searched for garbage, a tenth of a second each
# time.
gc.freeze()
gc.enable()
