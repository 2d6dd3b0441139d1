"""The name under which the `dagster.yaml` of earlier versions knows `instance.run_launcher`."""

from finora_pipeline.instance.run_launcher import WatchedRunLauncher

__all__ = ["WatchedRunLauncher"]
