"""Dagster's default run launcher that also knows whether a run's process still lives.

Named in `dagster.yaml`. Dagster's run monitoring asks it, ends runs whose process is gone, whoever started
them, and so frees their places in the queue; by itself it would wait for hours.
"""

import time
from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._config.config_schema import UserConfigSchema
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._serdes import ConfigurableClassData

from finora_pipeline.data_folder.run_locks import is_alive
from finora_pipeline.settings import Settings

# After which a run that was started holds its lock.
START_SECONDS = 60


class WatchedRunLauncher(DefaultRunLauncher):
    """Launches runs as ever; `start_seconds` is how long a run is not judged after its start."""

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
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, "The process of this run is gone.")
