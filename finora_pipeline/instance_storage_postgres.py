"""Alias of `instance.postgres_storage`, named in the `dagster.yaml` of earlier versions."""

from finora_pipeline.instance.postgres_storage import KeptPostgresStorage

__all__ = ["KeptPostgresStorage"]
