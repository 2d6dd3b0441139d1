"""Dagster's SQLite storage with its connections kept open: an event takes a third of the time.

Dagster opens and closes a database for every event, and stores the events of an asset's partitions one at a
time (docs/decisions has the measurements). Named in `dagster.yaml`; files and tables are Dagster's own, so
either class reads the other's.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import RLock
from typing import Any

import dagster as dg
from dagster._core.events import ASSET_EVENTS
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.storage.sqlite_storage import (
    DagsterSqliteStorage,
    _event_logs_directory,
    _runs_directory,
    _schedule_directory,
)
from dagster._serdes import ConfigurableClassData
from sqlalchemy import Connection, Engine, StaticPool, create_engine

# A run writes to two databases, its own and the index; a web server reads the databases of many runs.
KEPT_DATABASES = 8
BUSY_SECONDS = 60


class KeptEventLogStorage(SqliteEventLogStorage):
    """The event log; the databases used last keep one connection each, which threads use in turn."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._kept: OrderedDict[str, Engine] = OrderedDict()
        self._tables: set[str] = set()
        self._asset_columns: set[str] = set()
        self._begun: dict[str, Connection] = {}
        super().__init__(base_dir, inst_data)
        self._db_lock = RLock()

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        """A connection with a transaction; nested calls for the same database share it."""
        with self._db_lock:
            if shard in self._begun:
                yield self._begun[shard]
                return
            with self._engine(shard).begin() as connection:
                self._begun[shard] = connection
                try:
                    yield connection
                finally:
                    del self._begun[shard]

    def _engine(self, shard: str) -> Engine:
        if shard in self._kept:
            self._kept.move_to_end(shard)
            return self._kept[shard]
        engine = create_engine(
            self.conn_string_for_shard(shard),
            poolclass=StaticPool,
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        )
        if shard not in self._initialized_dbs:
            self._initdb(engine)
            self._initialized_dbs.add(shard)
        self._kept[shard] = engine
        while len(self._kept) > KEPT_DATABASES:
            self._kept.popitem(last=False)[1].dispose()
        return engine

    def has_table(self, table_name: str) -> bool:
        # Tables never disappear; Dagster would check again for every event.
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        if column_name not in self._asset_columns and super()._has_asset_key_col_on_connection(
            conn, column_name
        ):
            self._asset_columns.add(column_name)
        return column_name in self._asset_columns

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Store a run's events like repeated calls of `store_event`, in one transaction per database."""
        (run_id,) = {event.run_id for event in events}
        of_assets = [event for event in events if event.dagster_event_type in ASSET_EVENTS]
        rows = [self._event_to_row(event) for event in of_assets]
        insert = SqlEventLogStorageTable.insert()
        with self.run_connection(run_id) as run, self.index_connection() as index:
            if rows:
                run.execute(insert, rows)
            ids = [index.execute(insert, row).lastrowid for row in rows]
            self._store_asset_event_tags(index, of_assets, ids)
            # An asset's single row describes its last event.
            last = {event.get_dagster_event().asset_key: number for number, event in enumerate(of_assets)}
            for number in last.values():
                self._store_asset_event(index, of_assets[number], ids[number])
            for event in events:
                if event.dagster_event_type not in ASSET_EVENTS:
                    self.store_event(event)

    def dispose(self) -> None:
        super().dispose()
        with self._db_lock:
            while self._kept:
                self._kept.popitem()[1].dispose()


class KeptSqliteStorage(DagsterSqliteStorage):
    """Runs, schedules and events below one folder, like `DagsterSqliteStorage`."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        # Replaces the base class's constructor, which would open an unused event log.
        self.base_dir = base_dir
        self._run_storage = SqliteRunStorage.from_local(_runs_directory(base_dir))
        self._event_log_storage = KeptEventLogStorage(_event_logs_directory(base_dir))
        self._schedule_storage = SqliteScheduleStorage.from_local(_schedule_directory(base_dir))
        self._inst_data = inst_data
        DagsterStorage.__init__(self)

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Any
    ) -> "KeptSqliteStorage":
        return cls.from_local(inst_data=inst_data, **config_value)
