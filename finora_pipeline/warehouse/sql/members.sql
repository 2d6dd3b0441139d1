-- members: who is, or was, in the organization.
--
-- Grain: user, provider, member_id.
-- Rules
--   1. A row stays when OpenAI lists it no more: its costs stay, too. `is_listed` tells which is which.
--   2. Names are those of the newest list that had them.

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
COMMENT ON TABLE members IS 'Members of the organization, those who have left included.';
COMMENT ON COLUMN members.user_id IS 'Our user';
COMMENT ON COLUMN members.provider IS 'openai';
COMMENT ON COLUMN members.member_id IS 'OpenAI organization member';
COMMENT ON COLUMN members.email IS 'E-mail address';
COMMENT ON COLUMN members.name IS 'Name';
COMMENT ON COLUMN members.role IS 'owner or reader';
COMMENT ON COLUMN members.added_at IS 'When the member joined (UTC)';
COMMENT ON COLUMN members.is_listed IS 'Whether OpenAI still lists it';
COMMENT ON COLUMN members.first_seen_at IS 'When it was first listed to us (UTC)';
COMMENT ON COLUMN members.last_seen_at IS 'When it was last listed to us (UTC)';

-- [load]
-- The newest list of each user in the raw files, unless the table holds a newer one.
CREATE OR REPLACE TEMP TABLE listed AS
WITH pages AS (
    SELECT
        user_id,
        provider,
        grouping,
        fetched_at,
        unnest(from_json(body, '{"data": [{"id": "VARCHAR", "email": "VARCHAR", "name": "VARCHAR", "role": "VARCHAR",
            "added_at": "BIGINT"}]}').data) AS item
    FROM read_parquet(getvariable('raw_files'))
    WHERE endpoint = 'members'
    QUALIFY fetched_at = max(fetched_at) OVER (PARTITION BY user_id, provider)
)
SELECT DISTINCT ON (user_id, provider, item.id)
    user_id,
    provider,
    item.id AS member_id,
    item.email AS email,
    item.name AS name,
    item.role AS role,
    to_timestamp(item.added_at) AS added_at,
    fetched_at
FROM pages
WHERE NOT EXISTS (
    FROM members AS known
    WHERE known.user_id = pages.user_id
      AND known.provider = pages.provider
      AND known.last_seen_at >= pages.fetched_at
);

CREATE OR REPLACE TEMP TABLE seen_before AS
SELECT user_id, provider, member_id, first_seen_at
FROM members
SEMI JOIN listed USING (user_id, provider, member_id);

DELETE FROM members AS old
USING listed
WHERE old.user_id = listed.user_id AND old.provider = listed.provider AND old.member_id = listed.member_id;

UPDATE members AS gone
SET is_listed = false
FROM (SELECT DISTINCT user_id, provider FROM listed) AS reread
WHERE gone.user_id = reread.user_id AND gone.provider = reread.provider;

INSERT INTO members
SELECT listed.* EXCLUDE (fetched_at), true, coalesce(first_seen_at, fetched_at), fetched_at
FROM listed
LEFT JOIN seen_before USING (user_id, provider, member_id);
