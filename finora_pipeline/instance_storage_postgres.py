"""The name under which the `dagster.yaml` of earlier versions knows `instance.postgres_storage`."""

from finora_pipeline.instance.postgres_storage import KeptPostgresStorage

__all__ = ["KeptPostgresStorage"]
