"""Alias of `instance.run_launcher`, named in the `dagster.yaml` of earlier versions."""

from finora_pipeline.instance.run_launcher import WatchedRunLauncher

__all__ = ["WatchedRunLauncher"]
