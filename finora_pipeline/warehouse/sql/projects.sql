-- projects: the organization's projects, archived ones included.
--
-- Grain: user, provider, project_id.
-- Rules
--   1. A row stays when OpenAI lists it no more: its costs stay, too. `is_listed` tells which is which.
--   2. Names are those of the newest list that has the id.
--   3. A moment that no calendar has is NULL.

-- [create]
CREATE TABLE projects (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    project_id      VARCHAR NOT NULL,
    name            VARCHAR,
    status          VARCHAR,
    created_at      TIMESTAMPTZ,
    archived_at     TIMESTAMPTZ,
    is_listed       BOOLEAN NOT NULL,
    first_seen_at   TIMESTAMPTZ NOT NULL,
    last_seen_at    TIMESTAMPTZ NOT NULL
);

-- [define]
COMMENT ON TABLE projects IS 'Projects of the organization, archived ones included.';
COMMENT ON COLUMN projects.user_id IS 'Our user';
COMMENT ON COLUMN projects.provider IS 'openai';
COMMENT ON COLUMN projects.project_id IS 'OpenAI project';
COMMENT ON COLUMN projects.name IS 'Its name';
COMMENT ON COLUMN projects.status IS 'active or archived';
COMMENT ON COLUMN projects.created_at IS 'When it was created (UTC)';
COMMENT ON COLUMN projects.archived_at IS 'When it was archived (UTC)';
COMMENT ON COLUMN projects.is_listed IS 'Whether OpenAI still lists it';
COMMENT ON COLUMN projects.first_seen_at IS 'When it was first listed to us (UTC)';
COMMENT ON COLUMN projects.last_seen_at IS 'When it was last listed to us (UTC)';

-- [load]
-- What the lists in the raw files say; directory.sql puts it into the table.
CREATE OR REPLACE TEMP TABLE lists AS
SELECT user_id, provider, '' AS scope, max(fetched_at) AS newest_at
FROM read_parquet(getvariable('raw_files'))
WHERE endpoint = 'projects'
GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE listed AS
WITH pages AS (
    SELECT
        user_id,
        provider,
        fetched_at,
        unnest(from_json(coalesce(canonical, body), '{"data": [{"id": "VARCHAR", "name": "VARCHAR", "status": "VARCHAR",
            "created_at": "BIGINT", "archived_at": "BIGINT"}]}').data) AS item
    FROM read_parquet(getvariable('raw_files'))
    WHERE endpoint = 'projects'
)
SELECT
    user_id,
    provider,
    '' AS scope,
    item.id AS project_id,
    item.name AS name,
    item.status AS status,
    try(to_timestamp(item.created_at)) AS created_at,
    try(to_timestamp(item.archived_at)) AS archived_at,
    fetched_at
FROM pages;
