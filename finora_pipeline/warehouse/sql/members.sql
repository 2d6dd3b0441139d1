-- members: persons and service accounts that are, or were, in the organization.
--
-- Grain: user, provider, member_id.
-- Rules
--   1. A row stays when OpenAI lists it no more: its costs stay, too. `is_listed` tells which is which.
--   2. Names are those of the newest list that has the id.
--   3. A moment that no calendar has is NULL.
--   4. Service accounts are members without an e-mail address. OpenAI lists them by project only; where it refuses
--      that list they are known as owners of API keys.

-- [create]
CREATE TABLE members (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    member_id       VARCHAR NOT NULL,
    email           VARCHAR,
    name            VARCHAR,
    role            VARCHAR,
    added_at        TIMESTAMPTZ,
    is_listed       BOOLEAN NOT NULL,
    first_seen_at   TIMESTAMPTZ NOT NULL,
    last_seen_at    TIMESTAMPTZ NOT NULL
);

-- [define]
COMMENT ON TABLE members IS 'Members and service accounts of the organization, those who have left included.';
COMMENT ON COLUMN members.user_id IS 'Our user';
COMMENT ON COLUMN members.provider IS 'openai';
COMMENT ON COLUMN members.member_id IS 'OpenAI organization member or service account';
COMMENT ON COLUMN members.email IS 'E-mail address; NULL for a service account';
COMMENT ON COLUMN members.name IS 'Name';
COMMENT ON COLUMN members.role IS 'owner or reader; of a service account its role in the project: owner, member or none';
COMMENT ON COLUMN members.added_at IS 'When the member joined (UTC)';
COMMENT ON COLUMN members.is_listed IS 'Whether OpenAI still lists it';
COMMENT ON COLUMN members.first_seen_at IS 'When it was first listed to us (UTC)';
COMMENT ON COLUMN members.last_seen_at IS 'When it was last listed to us (UTC)';

-- [load]
-- What the lists in the raw files say; directory.sql puts it into the table.
CREATE OR REPLACE TEMP TABLE directory_pages AS
SELECT user_id, provider, endpoint, grouping, fetched_at, coalesce(canonical, body) AS body
FROM read_parquet(getvariable('raw_files'))
WHERE endpoint IN ('projects', 'members', 'service_accounts', 'api_keys');

-- The table does not hold a service account's project: it is missed once all active projects were listed.
CREATE OR REPLACE TEMP TABLE lists AS
WITH projects_read AS (
    SELECT
        user_id,
        provider,
        fetched_at,
        unnest(from_json(body, '{"data": [{"id": "VARCHAR", "status": "VARCHAR"}]}').data) AS project
    FROM directory_pages
    WHERE endpoint = 'projects'
),
complete AS (
    SELECT read.user_id, read.provider, read.fetched_at
    FROM projects_read AS read
    LEFT JOIN directory_pages AS page
        ON page.endpoint = 'service_accounts'
        AND page.user_id = read.user_id
        AND page.provider = read.provider
        AND page.fetched_at = read.fetched_at
        AND page.grouping = read.project.id
    WHERE read.project.status IS DISTINCT FROM 'archived'
    GROUP BY ALL
    HAVING bool_and(page.grouping IS NOT NULL)
)
SELECT user_id, provider, 'members' AS scope, max(fetched_at) AS newest_at
FROM directory_pages
WHERE endpoint = 'members'
GROUP BY ALL
UNION ALL
SELECT user_id, provider, 'service accounts', max(fetched_at) FROM complete GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE listed AS
WITH found AS (
    SELECT
        user_id, provider, fetched_at, 1 AS place, item.id, coalesce(item.email, item.user.email) AS email,
        coalesce(item.name, item.user.name) AS name, item.role,
        try(to_timestamp(item.added_at)) AS added_at
    FROM (
        SELECT *, unnest(from_json(body, '{"data": [{"id": "VARCHAR", "email": "VARCHAR", "name": "VARCHAR",
            "role": "VARCHAR", "added_at": "BIGINT", "user": {"email": "VARCHAR", "name": "VARCHAR"}}]}').data) AS item
        FROM directory_pages
        WHERE endpoint = 'members'
    )
    UNION ALL
    SELECT user_id, provider, fetched_at, 2, item.id, NULL, item.name, item.role, try(to_timestamp(item.created_at))
    FROM (
        SELECT *, unnest(from_json(body, '{"data": [{"id": "VARCHAR", "name": "VARCHAR", "role": "VARCHAR",
            "created_at": "BIGINT"}]}').data) AS item
        FROM directory_pages
        WHERE endpoint = 'service_accounts'
    )
    UNION ALL
    SELECT user_id, provider, fetched_at, 3, owner.id, NULL, owner.name, owner.role, try(to_timestamp(owner.created_at))
    FROM (
        SELECT *, unnest(from_json(body, '{"data": [{"owner": {"service_account": {"id": "VARCHAR",
            "name": "VARCHAR", "role": "VARCHAR", "created_at": "BIGINT"}}}]}').data).owner.service_account AS owner
        FROM directory_pages
        WHERE endpoint = 'api_keys'
    )
    WHERE owner.id IS NOT NULL
)
SELECT
    user_id,
    provider,
    CASE min(place) WHEN 1 THEN 'members' ELSE 'service accounts' END AS scope,
    id AS member_id,
    -- The first list that has each: the organization's own, the project's, then the keys' owners.
    arg_min(email, place) AS email,
    arg_min(name, place) AS name,
    arg_min(role, place) AS role,
    arg_min(added_at, place) AS added_at,
    fetched_at
FROM found
GROUP BY user_id, provider, id, fetched_at;
