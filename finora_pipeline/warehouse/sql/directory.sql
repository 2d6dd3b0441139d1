-- projects, members and api_keys: how OpenAI's lists become rows.
--
-- One text for the three tables, which stand for {table}; {id} is the column of their ids (warehouse/tables.py).
-- Rules
--   1. A row stays when OpenAI no longer lists it, since its costs stay; `is_listed` is then false.
--   2. Names are those of the newest list with the id, in whatever order lists are loaded.
--   3. `is_listed` is true if the newest list of the row's scope has its id. The scope is what one list covers:
--      an organization, or a project for its API keys. Rows of a scope that was not fetched keep their value.
--   4. A moment that no calendar has is NULL.
--   5. `{key}` is user_id/{id}: BI tools join by one column, and an id alone may be of several users.

-- [define]
COMMENT ON COLUMN {table}.user_id IS 'User (tenant)';
COMMENT ON COLUMN {table}.provider IS 'Provider: openai';
COMMENT ON COLUMN {table}.is_listed IS 'Whether OpenAI still lists it';
COMMENT ON COLUMN {table}.first_seen_at IS 'First seen in the API (UTC)';
COMMENT ON COLUMN {table}.last_seen_at IS 'Last seen in the API (UTC)';
COMMENT ON COLUMN {table}.{key} IS 'user_id/{id}, unique across users: joins with the views named_…. Never NULL';

-- [pages]
-- Reads: the raw files of the variable raw_files.
-- Leaves: directory_pages; newest_lists(kind), the scopes of an endpoint's lists with their newest fetch time;
-- listed_items(kind, structure), each item of an endpoint's lists, decoded by a JSON structure.
CREATE OR REPLACE TEMP TABLE directory_pages AS
SELECT user_id, provider, endpoint, grouping, fetched_at, coalesce(canonical, body) AS body
FROM read_parquet(getvariable('raw_files'))
WHERE endpoint IN ('projects', 'members', 'service_accounts', 'api_keys');

CREATE OR REPLACE TEMP MACRO newest_lists(kind) AS TABLE
SELECT user_id, provider, grouping AS scope, max(fetched_at) AS newest_at
FROM directory_pages
WHERE endpoint = kind
GROUP BY ALL;

CREATE OR REPLACE TEMP MACRO listed_items(kind, structure) AS TABLE
SELECT
    user_id,
    provider,
    grouping,
    fetched_at,
    unnest(from_json(body, '{"data": [' || structure || ']}').data) AS item
FROM directory_pages
WHERE endpoint = kind;

-- [merge]
-- Reads: listed, the items of the lists in the raw files, and lists, the scopes that they cover (the table's load);
-- both have a column scope, which is {scope} in the table.
-- Leaves: merged, the new rows of every user in them, and these rows in the table.
CREATE OR REPLACE TEMP TABLE merged AS
WITH touched AS (SELECT DISTINCT user_id, provider FROM (FROM listed UNION ALL BY NAME FROM lists)),
seen AS (
    SELECT * EXCLUDE (fetched_at), NULL AS is_listed, fetched_at AS first_seen_at, fetched_at AS last_seen_at
    FROM listed
    UNION ALL BY NAME
    SELECT *, {scope} AS scope FROM {table} SEMI JOIN touched USING (user_id, provider)
),
newest AS (
    SELECT * REPLACE (min(first_seen_at) OVER (PARTITION BY user_id, provider, {id}) AS first_seen_at)
    FROM seen
    QUALIFY row_number() OVER (PARTITION BY user_id, provider, {id} ORDER BY last_seen_at DESC, is_listed NULLS FIRST) = 1
)
SELECT
    newest.* REPLACE (
        CASE
            WHEN lists.newest_at IS NULL THEN coalesce(is_listed, true)
            ELSE last_seen_at = greatest(
                lists.newest_at, max(last_seen_at) OVER (PARTITION BY newest.user_id, newest.provider, newest.scope)
            )
        END AS is_listed,
        newest.user_id || '/' || newest.{id} AS {key}
    )
FROM newest
LEFT JOIN lists
    ON lists.user_id = newest.user_id
    AND lists.provider = newest.provider
    AND lists.scope IS NOT DISTINCT FROM newest.scope;

DELETE FROM {table} AS old
USING merged
WHERE old.user_id = merged.user_id AND old.provider = merged.provider AND old.{id} = merged.{id};

INSERT INTO {table} BY NAME SELECT * EXCLUDE (scope) FROM merged;
