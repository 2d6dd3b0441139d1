"""Repairs what a clock that ran ahead has left in the warehouse, with the next load.

Moments in the future count as older than every fetch by a correct clock; days in the future are deleted.
"""

from datetime import UTC, date, datetime, timedelta

import duckdb

from finora_pipeline.warehouse.sql import section

# Clocks of machines that share a data folder differ by less.
CLOCK_TOLERANCE = timedelta(minutes=5)


def end_of_present(now: datetime | None = None) -> datetime:
    """The moment after which a recorded moment is in the future."""
    return (now or datetime.now(UTC)) + CLOCK_TOLERANCE


def reset_future_moments(connection: duckdb.DuckDBPyConnection, now: datetime | None = None) -> None:
    """Makes fetches stamped by a clock that ran ahead older than the next ones.

    Within the caller's transaction, or that of each statement.
    """
    moment = end_of_present(now)
    ahead = (
        "SELECT 1 FROM pipeline.loaded_days WHERE fetched_at > $moment OR checked_at > $moment "
        "UNION ALL SELECT 1 FROM pipeline.loaded_sets WHERE fetched_at > $moment"
    )
    if not connection.execute(f"{ahead} LIMIT 1", {"moment": moment}).fetchall():
        return
    for statement in duckdb.extract_statements(section("clock", "moments")):
        wanted = {"end_of_present": moment} if statement.named_parameters else None
        connection.execute(statement, wanted)


def delete_future_days(connection: duckdb.DuckDBPyConnection, today: date) -> None:
    """Deletes the days after a UTC day from every table."""
    # The caller may have waited for the lock past midnight.
    today = max(today, datetime.now(UTC).date())
    query = "SELECT DISTINCT user_id FROM pipeline.loaded_days WHERE date > ?"
    users = [user_id for (user_id,) in connection.execute(query, [today]).fetchall()]
    if not users:
        return
    tables = connection.execute(
        "SELECT schema_name || '.' || table_name FROM duckdb_columns() SEMI JOIN duckdb_tables() "
        "USING (database_name, schema_name, table_name) WHERE column_name = 'date' AND NOT internal "
        "AND database_name = current_database() AND schema_name IN ('main', 'pipeline') ORDER BY ALL"
    ).fetchall()
    connection.execute(
        "INSERT INTO pipeline.stale_users SELECT DISTINCT user_id, provider FROM pipeline.loaded_days "
        "WHERE date > ? EXCEPT FROM pipeline.stale_users",
        [today],
    )
    for (table,) in tables:
        connection.execute(
            f"INSERT INTO pipeline.unpublished_months SELECT DISTINCT '{table.removeprefix('main.')}', "
            f"date_trunc('month', date)::DATE FROM {table} WHERE date > ? "
            "EXCEPT FROM pipeline.unpublished_months",
            [today],
        )
        connection.execute(f"DELETE FROM {table} WHERE date > ?", [today])
    # An equal page set that is fetched later must be loaded again, to restore what is deleted here.
    connection.execute("DELETE FROM pipeline.loaded_sets WHERE user_id IN (SELECT unnest(?))", [users])
