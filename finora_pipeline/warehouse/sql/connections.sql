-- connections: who is connected and how fresh the data is. No secrets.
--
-- Grain: user, provider.

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
COMMENT ON TABLE connections IS 'Who is connected, in which state, and how fresh the data is: one row a user and provider.';
COMMENT ON COLUMN connections.user_id IS 'Our user';
COMMENT ON COLUMN connections.provider IS 'openai';
COMMENT ON COLUMN connections.plan IS 'trial, growth, scale or enterprise';
COMMENT ON COLUMN connections.status IS 'active, needs attention or removed';
COMMENT ON COLUMN connections.status_reason IS 'What to do about a connection that needs attention';
COMMENT ON COLUMN connections.status_since IS 'Since when it is in this state (UTC)';
COMMENT ON COLUMN connections.organization_id IS 'OpenAI organization';
COMMENT ON COLUMN connections.connected_at IS 'When it was connected (UTC)';
COMMENT ON COLUMN connections.last_refresh_at IS 'As of when the published data is (UTC)';
COMMENT ON COLUMN connections.next_refresh_at IS 'Until when the plan promises the next refresh (UTC)';
