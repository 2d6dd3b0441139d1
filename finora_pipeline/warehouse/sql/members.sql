-- members: who is, or was, in the organization.
--
-- Grain: user, provider, member_id.
-- Rules
--   1. A row stays when OpenAI lists it no more: its costs stay, too. `is_listed` tells which is which.
--   2. Names are those of the newest list that has the id.
--   3. A moment that no calendar has is NULL.

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
-- What the lists in the raw files say; directory.sql puts it into the table.
CREATE OR REPLACE TEMP TABLE listed AS
WITH pages AS (
    SELECT
        user_id,
        provider,
        grouping,
        fetched_at,
        unnest(from_json(coalesce(canonical, body), '{"data": [{"id": "VARCHAR", "email": "VARCHAR", "name": "VARCHAR", "role": "VARCHAR",
            "added_at": "BIGINT"}]}').data) AS item
    FROM read_parquet(getvariable('raw_files'))
    WHERE endpoint = 'members'
)
SELECT
    user_id,
    provider,
    item.id AS member_id,
    item.email AS email,
    item.name AS name,
    item.role AS role,
    try(to_timestamp(item.added_at)) AS added_at,
    fetched_at
FROM pages;
