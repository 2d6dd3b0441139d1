"""Revisions of the accounts database, one file each in `versions`, run in order by Alembic.

To add one: change `accounts/database.py`, write `versions/NNNN_name.py` and set `HEAD`. A test compares the
tables that the revisions create with those in `database.py`, in SQLite and in Postgres.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

# The newest revision, compared at every start without importing Alembic.
HEAD = "0002"
# Dagster's revisions may be in `alembic_version` of the same database.
VERSION_TABLE = "accounts_version"


class NewerAccounts(Exception):
    """A newer version of finora upgraded the accounts; the message says what to do."""


def revision_of(database: Connection) -> str | None:
    """The revision of a database, None if it has no revision table."""
    if not inspect(database).has_table(VERSION_TABLE):
        return None
    return database.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))


def upgrade(database: Connection) -> None:
    """Upgrade the tables to `HEAD` within the caller's transaction. Raises `NewerAccounts`."""
    # Imported here: Alembic takes a dozen megabytes and is rarely needed.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = database
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    revision = revision_of(database)
    if revision is not None and revision not in known:
        raise NewerAccounts(
            f"A newer version of finora upgraded the accounts (revision {revision}, this one knows {HEAD}). "
            "Install that version again, or a later one."
        )
    command.upgrade(config, "head")
