-- How lists of projects, members and API keys become rows: one text for the three tables, which stand for
-- {table} and {id}.
--
-- Rules
--   1. A row's names are those of the newest list that has its id, in whatever order lists are loaded.
--   2. It is listed if that is the newest of all lists; OpenAI no longer lists the others, whose rows stay.

-- [merge]
-- `listed` holds what the lists in the raw files say.
CREATE OR REPLACE TEMP TABLE lists AS
SELECT user_id, provider, max(fetched_at) AS newest_at
FROM read_parquet(getvariable('raw_files'))
WHERE endpoint = '{table}'
GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE merged AS
WITH seen AS (
    SELECT * EXCLUDE (fetched_at), fetched_at AS first_seen_at, fetched_at AS last_seen_at FROM listed
    UNION ALL BY NAME
    SELECT * EXCLUDE (is_listed) FROM {table} SEMI JOIN lists USING (user_id, provider)
),
newest AS (
    SELECT * REPLACE (min(first_seen_at) OVER (PARTITION BY user_id, provider, {id}) AS first_seen_at)
    FROM seen
    QUALIFY row_number() OVER (PARTITION BY user_id, provider, {id} ORDER BY last_seen_at DESC) = 1
)
SELECT
    newest.*,
    last_seen_at = greatest(newest_at, max(last_seen_at) OVER (PARTITION BY user_id, provider)) AS is_listed
FROM newest
JOIN lists USING (user_id, provider);

DELETE FROM {table} AS old
USING lists
WHERE old.user_id = lists.user_id AND old.provider = lists.provider;

INSERT INTO {table} BY NAME FROM merged;
