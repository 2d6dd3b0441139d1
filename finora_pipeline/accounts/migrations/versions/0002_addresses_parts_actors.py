"""Bound addresses of keys, outcomes of optional parts, audit actors and a second factor for logins."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for column in (
        sa.Column("base_url", sa.Text),
        sa.Column("key_expires_at", sa.DateTime),
        sa.Column("given_from", sa.Date),
        sa.Column("retry_at", sa.DateTime),
    ):
        op.add_column("connections", column)
    op.add_column("credentials", sa.Column("bound_to", sa.Text))
    op.create_table(
        "connection_parts",
        sa.Column("user_id", sa.String(100), primary_key=True),
        sa.Column("provider", sa.String(20), primary_key=True),
        sa.Column("part", sa.String(200), primary_key=True),
        sa.Column("reason", sa.String(40), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("since", sa.DateTime, nullable=False),
        sa.Column("last_attempt_at", sa.DateTime, nullable=False),
        sa.Column("retry_at", sa.DateTime, nullable=False),
    )
    op.add_column("audit", sa.Column("actor", sa.String(200)))
    for column in (
        sa.Column("totp_master_key_id", sa.String(20)),
        sa.Column("totp_wrapped_key", sa.LargeBinary),
        sa.Column("totp_ciphertext", sa.LargeBinary),
        sa.Column("totp_last_step", sa.BigInteger),
    ):
        op.add_column("logins", column)
