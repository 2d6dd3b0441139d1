-- How lists of projects, members and API keys become rows: one text for the three tables, which stand for
-- {table} and {id}.
--
-- Rules
--   1. A row's names are those of the newest list that has its id, in whatever order lists are loaded.
--   2. `is_listed` holds if the newest list of the row's scope has its id. The scope is what one list covers: an
--      organization, or a project for its API keys. A scope whose list was not read keeps what it was.

-- [merge]
-- Reads `listed`, the rows of the lists in the raw files, and `lists`, the scopes that they cover; both have a
-- column `scope`, for which {scope} stands in the table.
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
        END AS is_listed
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
