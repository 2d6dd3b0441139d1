-- projects: the organization's projects, archived ones included.
--
-- Grain: user, provider, project_id.
-- Rules
--   1. A row stays when OpenAI lists it no more: its costs stay, too. `is_listed` tells which is which.
--   2. Names are those of the newest list that had them.

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
-- The newest list of each user in the raw files, unless the table holds a newer one.
CREATE OR REPLACE TEMP TABLE listed AS
WITH pages AS (
    SELECT
        user_id,
        provider,
        grouping,
        fetched_at,
        unnest(from_json(body, '{"data": [{"id": "VARCHAR", "name": "VARCHAR", "status": "VARCHAR", "created_at": "BIGINT",
            "archived_at": "BIGINT"}]}').data) AS item
    FROM read_parquet(getvariable('raw_files'))
    WHERE endpoint = 'projects'
    QUALIFY fetched_at = max(fetched_at) OVER (PARTITION BY user_id, provider)
)
SELECT DISTINCT ON (user_id, provider, item.id)
    user_id,
    provider,
    item.id AS project_id,
    item.name AS name,
    item.status AS status,
    to_timestamp(item.created_at) AS created_at,
    to_timestamp(item.archived_at) AS archived_at,
    fetched_at
FROM pages
WHERE NOT EXISTS (
    FROM projects AS known
    WHERE known.user_id = pages.user_id
      AND known.provider = pages.provider
      AND known.last_seen_at >= pages.fetched_at
);

CREATE OR REPLACE TEMP TABLE seen_before AS
SELECT user_id, provider, project_id, first_seen_at
FROM projects
SEMI JOIN listed USING (user_id, provider, project_id);

DELETE FROM projects AS old
USING listed
WHERE old.user_id = listed.user_id AND old.provider = listed.provider AND old.project_id = listed.project_id;

UPDATE projects AS gone
SET is_listed = false
FROM (SELECT DISTINCT user_id, provider FROM listed) AS reread
WHERE gone.user_id = reread.user_id AND gone.provider = reread.provider;

INSERT INTO projects
SELECT listed.* EXCLUDE (fetched_at), true, coalesce(first_seen_at, fetched_at), fetched_at
FROM listed
LEFT JOIN seen_before USING (user_id, provider, project_id);
