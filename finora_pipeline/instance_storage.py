"""Alias of `instance.sqlite_storage`, named in the `dagster.yaml` of earlier versions."""

from finora_pipeline.instance.sqlite_storage import KeptSqliteStorage

__all__ = ["KeptSqliteStorage"]
