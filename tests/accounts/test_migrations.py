"""Accounts of older versions are migrated, in SQLite and in Postgres."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from finora_pipeline.accounts import migrations
from finora_pipeline.accounts.database import metadata, open_database


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'accounts.sqlite'}"
    return request.getfixturevalue("postgres").new_url()


def test_revisions_create_the_tables_the_program_declares(url: str):
    with open_database(url).connect() as database:
        context = MigrationContext.configure(database, opts={"version_table": migrations.VERSION_TABLE})
        differences = [one for one in compare_metadata(context, metadata) if one[0] != "remove_table"]
    assert differences == []


def test_head_is_the_newest_revision():
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [migrations.HEAD]


def test_missing_columns_indexes_and_rules_are_restored(url: str):
    with open_database(url).begin() as database:
        database.execute(text("DROP INDEX connections_changed_at"))
        database.execute(text("ALTER TABLE connections DROP COLUMN read_until"))
        database.execute(text("ALTER TABLE connections DROP COLUMN project_ids"))
        for column in ("base_url", "key_expires_at", "given_from", "retry_at"):
            database.execute(text(f"ALTER TABLE connections DROP COLUMN {column}"))
        for column in ("totp_master_key_id", "totp_wrapped_key", "totp_ciphertext", "totp_last_step"):
            database.execute(text(f"ALTER TABLE logins DROP COLUMN {column}"))
        database.execute(text("ALTER TABLE audit DROP COLUMN actor"))
        database.execute(text("ALTER TABLE credentials DROP COLUMN bound_to"))
        database.execute(text("DROP TABLE connection_parts"))
        database.execute(text("ALTER TABLE connections ADD COLUMN project_ids TEXT"))
        database.execute(
            text(
                "INSERT INTO connections (user_id, provider, status, status_since, key_hint, key_version, "
                "connected_at, changed_at) VALUES ('acme', 'openai', 'active', '2026-11-01 00:00:00', 'x', "
                "1, '2026-11-01 00:00:00', '2026-11-01 00:00:00')"
            )
        )
        database.execute(text(f"DROP TABLE {migrations.VERSION_TABLE}"))
    test_revisions_create_the_tables_the_program_declares(url)
    with open_database(url).connect() as database:
        assert database.scalar(text("SELECT project_ids FROM connections")) == "[]"
        columns = {one["name"]: one for one in inspect(database).get_columns("connections")}
        assert not columns["project_ids"]["nullable"]


def test_dagsters_revisions_in_the_same_database_stay(url: str):
    with open_database(url).begin() as database:
        database.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)"))
        database.execute(text("INSERT INTO alembic_version VALUES ('dagster')"))
        database.execute(text(f"DROP TABLE {migrations.VERSION_TABLE}"))
        database.execute(text("DROP TABLE connection_parts"))
        for table, column in (
            ("connections", "base_url"), ("connections", "key_expires_at"), ("connections", "given_from"),
            ("connections", "retry_at"),
            ("credentials", "bound_to"), ("audit", "actor"), ("logins", "totp_master_key_id"),
            ("logins", "totp_wrapped_key"), ("logins", "totp_ciphertext"), ("logins", "totp_last_step"),
        ):  # fmt: skip
            database.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
    with open_database(url).connect() as database:
        assert database.scalar(text("SELECT version_num FROM alembic_version")) == "dagster"
        assert migrations.revision_of(database) == migrations.HEAD


def test_accounts_of_a_newer_version_are_refused_with_a_sentence(url: str):
    with open_database(url).begin() as database:
        database.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(migrations.NewerAccounts, match="newer version of finora"):
        open_database(url)
