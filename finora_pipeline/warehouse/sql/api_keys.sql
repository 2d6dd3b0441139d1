-- api_keys: API keys of the projects and whose they are.
--
-- Grain: user, provider, api_key_id.
-- Rules
--   1. A row stays when OpenAI lists it no more: its costs stay, too. `is_listed` tells which is which.
--   2. Names are those of the newest list that has the id.
--   3. A moment that no calendar has is NULL.

-- [create]
CREATE TABLE api_keys (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    api_key_id      VARCHAR NOT NULL,
    name            VARCHAR,
    redacted_value  VARCHAR,
    project_id      VARCHAR,
    owner_type      VARCHAR,
    owner_id        VARCHAR,
    owner_name      VARCHAR,
    owner_email     VARCHAR,
    created_at      TIMESTAMPTZ,
    last_used_at    TIMESTAMPTZ,
    is_listed       BOOLEAN NOT NULL,
    first_seen_at   TIMESTAMPTZ NOT NULL,
    last_seen_at    TIMESTAMPTZ NOT NULL
);

-- [define]
COMMENT ON TABLE api_keys IS 'API keys of the projects with their owners, deleted ones included.';
COMMENT ON COLUMN api_keys.user_id IS 'Our user';
COMMENT ON COLUMN api_keys.provider IS 'openai';
COMMENT ON COLUMN api_keys.api_key_id IS 'OpenAI API key';
COMMENT ON COLUMN api_keys.name IS 'Its name';
COMMENT ON COLUMN api_keys.redacted_value IS 'As OpenAI shows it';
COMMENT ON COLUMN api_keys.project_id IS 'OpenAI project';
COMMENT ON COLUMN api_keys.owner_type IS 'user or service_account';
COMMENT ON COLUMN api_keys.owner_id IS 'Member or service account';
COMMENT ON COLUMN api_keys.owner_name IS 'Name of the owner';
COMMENT ON COLUMN api_keys.owner_email IS 'E-mail address of the owner, if a member';
COMMENT ON COLUMN api_keys.created_at IS 'When it was created (UTC)';
COMMENT ON COLUMN api_keys.last_used_at IS 'When it was last used, as of last_seen_at (UTC)';
COMMENT ON COLUMN api_keys.is_listed IS 'Whether OpenAI still lists it';
COMMENT ON COLUMN api_keys.first_seen_at IS 'When it was first listed to us (UTC)';
COMMENT ON COLUMN api_keys.last_seen_at IS 'When it was last listed to us (UTC)';

-- [load]
-- What the lists in the raw files say, one a project; directory.sql puts it into the table.
CREATE OR REPLACE TEMP TABLE lists AS
SELECT user_id, provider, grouping AS scope, max(fetched_at) AS newest_at
FROM read_parquet(getvariable('raw_files'))
WHERE endpoint = 'api_keys'
GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE listed AS
WITH pages AS (
    SELECT
        user_id,
        provider,
        grouping,
        fetched_at,
        unnest(from_json(coalesce(canonical, body), '{"data": [{"id": "VARCHAR", "name": "VARCHAR", "redacted_value": "VARCHAR",
            "created_at": "BIGINT", "last_used_at": "BIGINT", "owner": {"type": "VARCHAR",
            "user": {"id": "VARCHAR", "name": "VARCHAR", "email": "VARCHAR"},
            "service_account": {"id": "VARCHAR", "name": "VARCHAR"}}}]}').data) AS item
    FROM read_parquet(getvariable('raw_files'))
    WHERE endpoint = 'api_keys'
)
SELECT
    user_id,
    provider,
    grouping AS scope,
    item.id AS api_key_id,
    item.name AS name,
    item.redacted_value AS redacted_value,
    grouping AS project_id,
    item.owner.type AS owner_type,
    coalesce(item.owner.user.id, item.owner.service_account.id) AS owner_id,
    coalesce(item.owner.user.name, item.owner.service_account.name) AS owner_name,
    item.owner.user.email AS owner_email,
    try(to_timestamp(item.created_at)) AS created_at,
    try(to_timestamp(item.last_used_at)) AS last_used_at,
    fetched_at
FROM pages;
