-- The pipeline's own bookkeeping, in its own schema. Analysts do not need it.

-- [create]
CREATE SCHEMA pipeline;

-- One row: the number of the last migration, a hash of the comments, macros and views, and when both were set.
CREATE TABLE pipeline.schema_version (
    number       INTEGER NOT NULL,
    definitions  VARCHAR NOT NULL,
    changed_at   TIMESTAMPTZ NOT NULL
);

-- One row a raw file whose pages are in the facts; written in the transaction that loads them, so that no
-- file is ever loaded twice.
CREATE TABLE pipeline.loaded_files (
    raw_file     VARCHAR NOT NULL PRIMARY KEY,
    run_id       VARCHAR NOT NULL,
    kind         VARCHAR NOT NULL,
    fetched_on   DATE NOT NULL,
    loaded_at    TIMESTAMPTZ NOT NULL,
    pages        BIGINT NOT NULL,
    users        BIGINT NOT NULL
);

-- One row a day of an organization that has been read, empty days included, with the moment of the read
-- that counts: a page set that is older than this does not replace the day.
CREATE TABLE pipeline.loaded_days (
    user_id           VARCHAR NOT NULL,
    provider          VARCHAR NOT NULL,
    endpoint          VARCHAR NOT NULL,
    date              DATE NOT NULL,
    first_fetched_at  TIMESTAMPTZ NOT NULL,
    fetched_at        TIMESTAMPTZ NOT NULL,
    raw_file          VARCHAR NOT NULL
);

-- The newest page set of each reading: the same answer once more need not be stored. `sha256` is that of
-- its pages' windows, groupings and bodies (PageSet.sha256).
CREATE TABLE pipeline.loaded_sets (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    endpoint    VARCHAR NOT NULL,
    fetched_at  TIMESTAMPTZ NOT NULL,
    sha256      VARCHAR NOT NULL
);

-- Days whose facts changed since the metrics were computed.
CREATE TABLE pipeline.stale_days (user_id VARCHAR NOT NULL, provider VARCHAR NOT NULL, date DATE NOT NULL);

-- Users whose daily_model_costs changed since user_metrics were computed.
CREATE TABLE pipeline.stale_users (user_id VARCHAR NOT NULL, provider VARCHAR NOT NULL);

-- Months of a table that changed since they were last written as Parquet.
CREATE TABLE pipeline.unpublished_months (table_name VARCHAR NOT NULL, month DATE NOT NULL);

-- [begin_load]
-- What the raw files say of each page, without its text.
CREATE OR REPLACE TEMP TABLE raw_pages AS
SELECT * EXCLUDE (body, canonical, filename), parse_filename(filename) AS raw_file
FROM read_parquet(getvariable('raw_files'), filename = true);

-- The days that the pages in the raw files have a bucket of, empty ones included. A day counts only if the
-- warehouse does not hold a newer read of it, a moment of the future being older than all, and if it has begun.
CREATE OR REPLACE TEMP TABLE new_days AS
WITH page_days AS (
    SELECT user_id, provider, endpoint, fetched_at, raw_file, unnest(days) AS date,
        if(fetched_at > $end_of_present, 'epoch'::TIMESTAMPTZ, fetched_at) AS counts_as
    FROM raw_pages
)
SELECT
    user_id,
    provider,
    endpoint,
    date,
    arg_max(fetched_at, counts_as) AS fetched_at,
    arg_max(raw_file, counts_as) AS raw_file
FROM page_days
WHERE date <= ($end_of_present AT TIME ZONE 'UTC')::DATE AND NOT EXISTS (
    FROM pipeline.loaded_days AS loaded
    WHERE loaded.endpoint = page_days.endpoint
      AND loaded.user_id = page_days.user_id
      AND loaded.provider = page_days.provider
      AND loaded.date = page_days.date
      AND if(loaded.fetched_at > $end_of_present, 'epoch'::TIMESTAMPTZ, loaded.fetched_at) >= page_days.counts_as
)
GROUP BY user_id, provider, endpoint, date;

SET VARIABLE first_fetched_at = (SELECT min(fetched_at) FROM new_days);

-- Those of them that had been read before.
CREATE OR REPLACE TEMP TABLE reread_days AS
SELECT new.user_id, new.provider, new.endpoint, new.date, new.fetched_at, loaded.first_fetched_at
FROM new_days AS new
JOIN pipeline.loaded_days AS loaded USING (user_id, provider, endpoint, date);

-- Filled by each table's load: the days read before whose figures are not as they were.
CREATE OR REPLACE TEMP TABLE changed_days (
    user_id VARCHAR, provider VARCHAR, endpoint VARCHAR, date DATE
);

-- [end_load]
CREATE OR REPLACE TEMP TABLE new_sets AS
WITH sets AS (
    SELECT
        user_id,
        provider,
        endpoint,
        fetched_at,
        sha256(string_agg(
            concat_ws(' ', window_start, window_end, grouping, sha256), chr(10) ORDER BY window_start, page_number
        )) AS sha256
    FROM raw_pages
    WHERE len(days) > 0
    GROUP BY user_id, provider, endpoint, fetched_at
)
SELECT user_id, provider, endpoint, max(fetched_at) AS fetched_at, arg_max(sha256, fetched_at) AS sha256
FROM sets
WHERE NOT EXISTS (
    FROM pipeline.loaded_sets AS loaded
    WHERE loaded.user_id = sets.user_id
      AND loaded.provider = sets.provider
      AND loaded.endpoint = sets.endpoint
      AND loaded.fetched_at >= sets.fetched_at
)
GROUP BY user_id, provider, endpoint;

DELETE FROM pipeline.loaded_sets AS loaded
USING new_sets AS new
WHERE loaded.user_id = new.user_id AND loaded.provider = new.provider AND loaded.endpoint = new.endpoint;

INSERT INTO pipeline.loaded_sets FROM new_sets;

DELETE FROM pipeline.loaded_days AS loaded
USING new_days AS new
WHERE loaded.endpoint = new.endpoint
  AND loaded.user_id = new.user_id
  AND loaded.provider = new.provider
  AND loaded.date = new.date;

INSERT INTO pipeline.loaded_days
SELECT user_id, provider, endpoint, date, coalesce(first_fetched_at, new.fetched_at), new.fetched_at, raw_file
FROM new_days AS new
LEFT JOIN reread_days USING (user_id, provider, endpoint, date);

INSERT INTO pipeline.stale_days
SELECT DISTINCT user_id, provider, date
FROM (
    FROM changed_days
    UNION ALL
    SELECT user_id, provider, endpoint, date FROM new_days
    ANTI JOIN reread_days USING (user_id, provider, endpoint, date)
) AS new
WHERE NOT EXISTS (
    FROM pipeline.stale_days AS stale
    WHERE stale.user_id = new.user_id AND stale.provider = new.provider AND stale.date = new.date
);

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT $table_name, date_trunc('month', date)::DATE AS month FROM new_days WHERE $is_monthly
EXCEPT
FROM pipeline.unpublished_months;

INSERT INTO pipeline.loaded_files
SELECT
    raw_file, any_value(run_id), $kind, max(fetched_at)::DATE, now(), count(*), count(DISTINCT user_id)
FROM raw_pages
GROUP BY raw_file;
