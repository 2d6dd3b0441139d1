-- projects: the organization's projects, archived ones included.
--
-- Grain: user, provider, project_id.
-- Rules: directory.sql.

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
    last_seen_at    TIMESTAMPTZ NOT NULL,
    project_key     VARCHAR
);

-- [define]
-- The other columns have the comments of directory.sql.
COMMENT ON TABLE projects IS 'Projects of the organization, archived ones included.';
COMMENT ON COLUMN projects.project_id IS 'OpenAI project';
COMMENT ON COLUMN projects.name IS 'Newest name; NULL if OpenAI gave none';
COMMENT ON COLUMN projects.status IS 'active or archived; NULL if OpenAI gave none';
COMMENT ON COLUMN projects.created_at IS 'Creation time (UTC); NULL if OpenAI gave none';
COMMENT ON COLUMN projects.archived_at IS 'Archiving time (UTC); NULL for an active project';

-- [load]
-- Reads: newest_lists, listed_items (directory.sql, pages).
-- Leaves: lists, listed, for directory.sql to merge.
CREATE OR REPLACE TEMP TABLE lists AS FROM newest_lists('projects');

CREATE OR REPLACE TEMP TABLE listed AS
SELECT
    user_id,
    provider,
    grouping AS scope,
    item.id AS project_id,
    item.name AS name,
    item.status AS status,
    try(to_timestamp(item.created_at)) AS created_at,
    try(to_timestamp(item.archived_at)) AS archived_at,
    fetched_at
FROM listed_items('projects', '{"id": "VARCHAR", "name": "VARCHAR", "status": "VARCHAR",
    "created_at": "BIGINT", "archived_at": "BIGINT"}');
