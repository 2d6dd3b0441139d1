-- connections: the users' connections and how fresh their data is. No secrets.
--
-- Grain: user, provider. Each publish replaces all rows.

-- [create]
CREATE TABLE connections (
    user_id          VARCHAR NOT NULL,
    provider         VARCHAR NOT NULL,
    plan             VARCHAR NOT NULL,
    status           VARCHAR NOT NULL,
    status_reason    VARCHAR,
    status_since     TIMESTAMPTZ NOT NULL,
    organization_id  VARCHAR,
    connected_at     TIMESTAMPTZ NOT NULL,
    last_refresh_at  TIMESTAMPTZ,
    next_refresh_at  TIMESTAMPTZ
);

-- [define]
COMMENT ON TABLE connections IS 'Connections, their state, and how fresh their data is: one row per user and provider.';
COMMENT ON COLUMN connections.user_id IS 'User (tenant)';
COMMENT ON COLUMN connections.provider IS 'Provider: openai';
COMMENT ON COLUMN connections.plan IS 'trial, growth, scale or enterprise';
COMMENT ON COLUMN connections.status IS 'active, needs attention or removed';
COMMENT ON COLUMN connections.status_reason IS 'What to do about a connection that needs attention; NULL for others';
COMMENT ON COLUMN connections.status_since IS 'Start of this state (UTC)';
COMMENT ON COLUMN connections.organization_id IS 'OpenAI organization; NULL until its first costs are fetched';
COMMENT ON COLUMN connections.connected_at IS 'Time of connecting (UTC)';
COMMENT ON COLUMN connections.last_refresh_at IS 'Start of the newest published refresh (UTC): the data is as of then; NULL before the first';
COMMENT ON COLUMN connections.next_refresh_at IS 'Time by which the plan promises the next refresh (UTC); NULL for a removed connection';
