-- members: people and service accounts that are, or were, in the organization.
--
-- Grain: user, provider, member_id.
-- Rules: those of directory.sql, and
--   1. Service accounts are members without an email address. OpenAI lists them by project only; where it refuses
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
    last_seen_at    TIMESTAMPTZ NOT NULL,
    member_key      VARCHAR
);

-- [define]
-- The other columns have the comments of directory.sql.
COMMENT ON TABLE members IS 'Members and service accounts of the organization, former ones included.';
COMMENT ON COLUMN members.member_id IS 'OpenAI organization member or service account';
COMMENT ON COLUMN members.email IS 'Email address; NULL for a service account';
COMMENT ON COLUMN members.name IS 'Newest name; NULL if OpenAI gave none';
COMMENT ON COLUMN members.role IS 'owner or reader; for a service account its role in the project: owner, member or none. NULL if OpenAI gave none';
COMMENT ON COLUMN members.added_at IS 'Time of joining (UTC); NULL if OpenAI gave none';

-- [load]
-- Reads: directory_pages, newest_lists, listed_items (directory.sql, pages), daily_attributed_costs.
-- Leaves: lists, listed, for directory.sql to merge; days stale on which a member turns out to be a service account.
--
-- Held rows do not know a service account's project: their list is complete once it has all active projects.
CREATE OR REPLACE TEMP TABLE lists AS
WITH complete AS (
    SELECT project.user_id, project.provider, project.fetched_at
    FROM listed_items('projects', '{"id": "VARCHAR", "status": "VARCHAR"}') AS project
    LEFT JOIN directory_pages AS page
        ON page.endpoint = 'service_accounts'
        AND page.user_id = project.user_id
        AND page.provider = project.provider
        AND page.fetched_at = project.fetched_at
        AND page.grouping = project.item.id
    WHERE project.item.status IS DISTINCT FROM 'archived'
    GROUP BY ALL
    HAVING bool_and(page.grouping IS NOT NULL)
)
SELECT * REPLACE ('members' AS scope) FROM newest_lists('members')
UNION ALL
SELECT user_id, provider, 'service accounts', max(fetched_at) FROM complete GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE listed AS
WITH found AS (
    SELECT
        user_id, provider, fetched_at, 1 AS place, item.id, coalesce(item.email, item.user.email) AS email,
        coalesce(item.name, item.user.name) AS name, item.role,
        try(to_timestamp(item.added_at)) AS added_at
    FROM listed_items('members', '{"id": "VARCHAR", "email": "VARCHAR", "name": "VARCHAR",
        "role": "VARCHAR", "added_at": "BIGINT", "user": {"email": "VARCHAR", "name": "VARCHAR"}}')
    UNION ALL
    SELECT user_id, provider, fetched_at, 2, item.id, NULL, item.name, item.role, try(to_timestamp(item.created_at))
    FROM listed_items('service_accounts', '{"id": "VARCHAR", "name": "VARCHAR", "role": "VARCHAR",
        "created_at": "BIGINT"}')
    UNION ALL
    SELECT user_id, provider, fetched_at, 3, owner.id, NULL, owner.name, owner.role, try(to_timestamp(owner.created_at))
    FROM (
        SELECT * EXCLUDE (item), item.owner.service_account AS owner
        FROM listed_items('api_keys', '{"owner": {"service_account": {"id": "VARCHAR",
            "name": "VARCHAR", "role": "VARCHAR", "created_at": "BIGINT"}}}')
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

INSERT INTO pipeline.stale_days
SELECT DISTINCT parts.user_id, parts.provider, parts.date
FROM daily_attributed_costs AS parts
JOIN (
    SELECT listed.user_id, listed.provider, listed.member_id
    FROM listed
    LEFT JOIN members AS held USING (user_id, provider, member_id)
    WHERE listed.email IS NULL AND (held.member_id IS NULL OR held.email IS NOT NULL)
) AS changed
    ON changed.user_id = parts.user_id
    AND changed.provider = parts.provider
    AND changed.member_id = parts.member_id
WHERE parts.principal_type = 'member'
EXCEPT
FROM pipeline.stale_days;
