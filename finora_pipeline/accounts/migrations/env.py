"""Alembic's entry point: runs the revisions on the caller's connection, in its transaction."""

from alembic import context

from finora_pipeline.accounts.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    transactional_ddl=False,
    transaction_per_migration=False,
)
context.run_migrations()
