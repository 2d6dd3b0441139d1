-- api_keys: API keys of the organization's projects, with their owners.
--
-- Grain: user, provider, api_key_id.
-- Rules: directory.sql.

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
    last_seen_at    TIMESTAMPTZ NOT NULL,
    api_key_key     VARCHAR
);

-- [define]
-- The other columns have the comments of directory.sql.
COMMENT ON TABLE api_keys IS 'API keys of the projects with their owners, deleted ones included.';
COMMENT ON COLUMN api_keys.api_key_id IS 'OpenAI API key';
COMMENT ON COLUMN api_keys.name IS 'Newest name; NULL if the key has none';
COMMENT ON COLUMN api_keys.redacted_value IS 'Key as OpenAI shows it, redacted; NULL if OpenAI gave none';
COMMENT ON COLUMN api_keys.project_id IS 'OpenAI project of the key. Never NULL';
COMMENT ON COLUMN api_keys.owner_type IS 'user or service_account; NULL if OpenAI gave no owner';
COMMENT ON COLUMN api_keys.owner_id IS 'Member or service account, as in members; NULL if OpenAI gave none';
COMMENT ON COLUMN api_keys.owner_name IS 'Name of the owner; NULL if OpenAI gave none';
COMMENT ON COLUMN api_keys.owner_email IS 'Email address of the owner; NULL for a service account';
COMMENT ON COLUMN api_keys.created_at IS 'Creation time (UTC); NULL if OpenAI gave none';
COMMENT ON COLUMN api_keys.last_used_at IS 'Time of last use as of last_seen_at (UTC); NULL for a key that was never used';

-- [load]
-- Reads: newest_lists, listed_items (directory.sql, pages), daily_attributed_costs.
-- Leaves: lists (one per project), listed, for directory.sql to merge; days stale on which a key's part gets an owner.
CREATE OR REPLACE TEMP TABLE lists AS FROM newest_lists('api_keys');

CREATE OR REPLACE TEMP TABLE listed AS
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
FROM listed_items('api_keys', '{"id": "VARCHAR", "name": "VARCHAR", "redacted_value": "VARCHAR",
    "created_at": "BIGINT", "last_used_at": "BIGINT", "owner": {"type": "VARCHAR",
    "user": {"id": "VARCHAR", "name": "VARCHAR", "email": "VARCHAR"},
    "service_account": {"id": "VARCHAR", "name": "VARCHAR"}}}');

-- Usage names the members of keys, so that only parts without one depend on the list.
INSERT INTO pipeline.stale_days
SELECT DISTINCT parts.user_id, parts.provider, parts.date
FROM daily_attributed_costs AS parts
JOIN (
    SELECT listed.user_id, listed.provider, listed.api_key_id, listed.owner_id
    FROM listed
    LEFT JOIN api_keys AS held USING (user_id, provider, api_key_id)
    WHERE listed.owner_id IS NOT NULL
      AND (listed.owner_type, listed.owner_id) IS DISTINCT FROM (held.owner_type, held.owner_id)
) AS changed
    ON changed.user_id = parts.user_id
    AND changed.provider = parts.provider
    AND changed.api_key_id = parts.api_key_id
WHERE parts.principal_type <> 'member' AND parts.member_id IS DISTINCT FROM changed.owner_id
EXCEPT
FROM pipeline.stale_days;
