"""The name under which the `dagster.yaml` of earlier versions knows `instance.sqlite_storage`."""

from finora_pipeline.instance.sqlite_storage import KeptSqliteStorage

__all__ = ["KeptSqliteStorage"]
