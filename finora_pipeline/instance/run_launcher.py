"""Dagster's default run launcher, extended by a check whether a run's process is alive.

Named in `dagster.yaml`. Dagster's run monitoring calls the check and fails runs whose process died, which
frees their places in the queue; without it they would block the queue for hours.
"""

import time
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._config.config_schema import UserConfigSchema
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._serdes import ConfigurableClassData

from finora_pipeline.data_folder.run_locks import is_alive
from finora_pipeline.settings import Settings

# A started run holds its lock after this time.
START_SECONDS = 60


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """Launches runs like its base class; runs started less than `start_seconds` ago count as alive."""

    def __init__(
        self, inst_data: ConfigurableClassData | None = None, start_seconds: int = START_SECONDS
    ) -> None:
        super().__init__(inst_data)
        self._start_seconds = start_seconds

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return {"start_seconds": dg.Field(int, is_required=False, default_value=START_SECONDS)}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> "WatchedRunLauncher":
        return cls(inst_data, **config_value)

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        record = self._instance.get_run_record_by_id(run.run_id)
        start = record.start_time if record else None
        if start is None or time.time() - start < self._start_seconds:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        if is_alive(Settings.from_environment().home, run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "The run's process died.")
