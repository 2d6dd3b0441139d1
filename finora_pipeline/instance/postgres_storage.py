"""Dagster's Postgres storage with a connection kept open: a run takes a half or a third of the time.

Dagster opens a connection for every event, which is most of an event's cost. Installations with Postgres
name this class in `dagster.yaml`; the tables are Dagster's own, so either class reads the other's. Needs the
extra `postgres`.
"""

from typing import Any

from dagster._core.storage.base_storage import DagsterStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import (
    DagsterPostgresStorage,
    PostgresEventLogStorage,
    PostgresRunStorage,
    PostgresScheduleStorage,
)
from dagster_postgres.utils import create_pg_engine, pg_url_from_config


class KeptEventLogStorage(PostgresEventLogStorage):
    """The event log; when the instance ends it closes the connection kept open."""

    def dispose(self) -> None:
        super().dispose()
        self._engine.dispose()


class KeptPostgresStorage(DagsterPostgresStorage):
    """Runs, schedules and events in one database like `DagsterPostgresStorage`, with one connection pool."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        # Replaces the base class's constructor, whose event log keeps its connections when the instance ends.
        self.postgres_url = postgres_url
        self.should_autocreate_tables = should_autocreate_tables
        self._inst_data = inst_data
        self._run_storage = PostgresRunStorage(postgres_url, should_autocreate_tables)
        self._event_log_storage = KeptEventLogStorage(postgres_url, should_autocreate_tables)
        self._schedule_storage = PostgresScheduleStorage(postgres_url, should_autocreate_tables)
        # One connection is kept, further threads get temporary ones, and a restarted server is reconnected.
        engine = create_pg_engine(
            postgres_url, isolation_level="AUTOCOMMIT", pool_size=1, max_overflow=-1, pool_pre_ping=True
        )
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine
        DagsterStorage.__init__(self)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "KeptPostgresStorage":
        return cls(
            pg_url_from_config(config_value), config_value.get("should_autocreate_tables", True), inst_data
        )
