"""Connections to the published snapshot."""

from pathlib import Path

import duckdb

from finora_pipeline.data_folder.disk import published_store, storage_errors
from finora_pipeline.settings import Settings
from finora_pipeline.warehouse.machine import duckdb_limits
from finora_pipeline.warehouse.snapshot import DATABASE, attach, close_off


class NothingPublished(FileNotFoundError):
    """No refresh has published yet."""


def connect(path: str | Path | None = None, *, external_access: bool = False) -> duckdb.DuckDBPyConnection:
    """Open a read-only DuckDB connection to the current published snapshot.

    `path` defaults to the published file of `FINORA_HOME`. The connection keeps showing the same snapshot;
    connect again to see a newer one. It blocks no writer.

    SQL reaches the published tables and tables it creates in memory: no files, networks, extensions or
    settings. With `external_access`, for your own SQL, it may use all of DuckDB: `COPY … TO`, other files,
    data frames, and results larger than memory. DuckDB uses up to FINORA_MEMORY_LIMIT, by default a quarter
    of the machine's memory, at most 4 GB. Raises `NothingPublished`, and `StorageError` for a file that
    cannot be read.

        finora_pipeline.connect().sql("SELECT date, sum(amount_usd) FROM daily_costs GROUP BY date")
    """
    settings = Settings.from_environment()
    file = Path(path).expanduser() if path else settings.published_database
    if not file.exists():
        raise NothingPublished(
            f"{file} does not exist. Connect an organization and run finora refresh first."
        )
    config = duckdb_limits(settings).config
    if not external_access:
        # Without a spill folder a query that is too large fails with a memory error, not a permission error.
        config["temp_directory"] = ""
    connection = duckdb.connect(":memory:", config=config)
    try:
        with storage_errors(published_store(file)):
            attach(connection, file)
        if not external_access:
            close_off(connection, spills=False)
        connection.execute(f"USE {DATABASE}")
    except BaseException:
        connection.close()
        raise
    return connection
