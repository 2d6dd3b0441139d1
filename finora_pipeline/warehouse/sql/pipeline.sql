-- The pipeline's own records, in the schema `pipeline`: what is loaded, stale and unpublished. Analysts do not
-- need it.

-- [create]
CREATE SCHEMA pipeline;

-- One row: number of the last migration, hash of the comments, macros and views, and time of both.
CREATE TABLE pipeline.schema_version (
    number       INTEGER NOT NULL,
    definitions  VARCHAR NOT NULL,
    changed_at   TIMESTAMPTZ NOT NULL
);

-- The ledger: one row per raw file whose pages are in the facts, written in the transaction that loads them, so
-- that no file is loaded twice.
CREATE TABLE pipeline.loaded_files (
    raw_file     VARCHAR NOT NULL PRIMARY KEY,
    run_id       VARCHAR NOT NULL,
    kind         VARCHAR NOT NULL,
    fetched_on   DATE NOT NULL,
    loaded_at    TIMESTAMPTZ NOT NULL,
    pages        BIGINT NOT NULL,
    users        BIGINT NOT NULL
);

-- One row per known day of a user and endpoint, empty days included. `fetched_at`: fetch time of the loaded page
-- set; an older set does not replace the day. `completed_at`: first fetch at or after the end of the UTC day, NULL
-- before; what it changed is still accrual. `checked_at`: newest fetch that found the day as it is loaded.
CREATE TABLE pipeline.loaded_days (
    user_id           VARCHAR NOT NULL,
    provider          VARCHAR NOT NULL,
    endpoint          VARCHAR NOT NULL,
    date              DATE NOT NULL,
    first_fetched_at  TIMESTAMPTZ NOT NULL,
    fetched_at        TIMESTAMPTZ NOT NULL,
    raw_file          VARCHAR NOT NULL,
    completed_at      TIMESTAMPTZ,
    checked_at        TIMESTAMPTZ
);

-- Per table of revisions the moment before which its rows are folded.
CREATE TABLE pipeline.folded_revisions (table_name VARCHAR NOT NULL, observed_before TIMESTAMPTZ NOT NULL);

-- The newest page set per user and endpoint, so that an equal one is not stored again. `sha256`: content hash of
-- windows, groupings and bodies (PageSet.sha256).
CREATE TABLE pipeline.loaded_sets (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    endpoint    VARCHAR NOT NULL,
    fetched_at  TIMESTAMPTZ NOT NULL,
    sha256      VARCHAR NOT NULL
);

-- Days whose facts changed since their metrics were computed.
CREATE TABLE pipeline.stale_days (user_id VARCHAR NOT NULL, provider VARCHAR NOT NULL, date DATE NOT NULL);

-- Users whose daily_model_costs or known days changed since their user_metrics were computed.
CREATE TABLE pipeline.stale_users (user_id VARCHAR NOT NULL, provider VARCHAR NOT NULL);

-- Months of a table that changed since they were written as Parquet.
CREATE TABLE pipeline.unpublished_months (table_name VARCHAR NOT NULL, month DATE NOT NULL);

-- [define]
-- Days with known costs.
CREATE OR REPLACE VIEW pipeline.known_days AS
SELECT
    user_id,
    provider,
    date,
    completed_at IS NOT NULL AS is_complete,
    checked_at AS known_until
FROM pipeline.loaded_days
WHERE endpoint = 'costs';

-- [begin_load]
-- Reads: the raw files of the variable raw_files; $end_of_present, after which a moment is in the future.
-- Leaves: raw_pages, new_days, reread_days, an empty changed_days; the variable first_fetched_at.
--
-- The columns of each page without its text.
CREATE OR REPLACE TEMP TABLE raw_pages AS
SELECT * EXCLUDE (body, canonical, filename), parse_filename(filename) AS raw_file
FROM read_parquet(getvariable('raw_files'), filename = true);

-- The days that begin no later than now and that the pages have a bucket for, unless the warehouse holds a newer
-- fetch; a fetch time in the future counts as the oldest.
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

-- Days in new_days that were known before.
CREATE OR REPLACE TEMP TABLE reread_days AS
SELECT
    new.user_id, new.provider, new.endpoint, new.date, new.fetched_at, loaded.first_fetched_at,
    loaded.completed_at, loaded.checked_at
FROM new_days AS new
JOIN pipeline.loaded_days AS loaded USING (user_id, provider, endpoint, date);

-- Known days whose figures changed; each table's load and compare fill it.
CREATE OR REPLACE TEMP TABLE changed_days (
    user_id VARCHAR, provider VARCHAR, endpoint VARCHAR, date DATE
);

-- [read_pages]
-- Reads: new_days; when it is called, the raw files of the variable text_files.
-- Leaves: new_results(structure), each result of the buckets of new_days, decoded by a JSON structure.
--
-- `canonical` replaces a body that SQL would read otherwise than its check did: 10.0, NULs, duplicate keys.
CREATE OR REPLACE TEMP MACRO new_results(structure) AS TABLE
WITH pages AS (
    SELECT
        user_id,
        provider,
        endpoint,
        fetched_at,
        parse_filename(filename) AS raw_file,
        unnest(from_json(
            coalesce(canonical, body), '{"data": [{"start_time": "BIGINT", "results": [' || structure || ']}]}'
        ).data) AS bucket
    FROM read_parquet(getvariable('text_files'), filename = true)
)
SELECT pages.* EXCLUDE (bucket), new.date, unnest(bucket.results) AS result
FROM pages
JOIN new_days AS new
    ON new.user_id = pages.user_id
    AND new.provider = pages.provider
    AND new.endpoint = pages.endpoint
    AND new.date = DATE '1970-01-01' + (bucket.start_time // 86400)::INTEGER
    AND new.fetched_at = pages.fetched_at
    AND new.raw_file = pages.raw_file;

-- [end_load]
-- Reads: raw_pages, new_days, reread_days, changed_days; $kind, $table_name and $is_monthly of the table.
-- Leaves: loaded_files, loaded_sets and loaded_days with the new files; new and changed days stale, and users with a
-- newly known day; their months unpublished; new_sets.
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
SELECT
    user_id,
    provider,
    endpoint,
    date,
    coalesce(first_fetched_at, new.fetched_at),
    new.fetched_at,
    raw_file,
    coalesce(completed_at, CASE WHEN new.fetched_at >= day_end(date) THEN new.fetched_at END),
    greatest(checked_at, new.fetched_at)
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

-- Also those who spent nothing: no day of theirs has rows.
INSERT INTO pipeline.stale_users
SELECT DISTINCT user_id, provider
FROM new_days
ANTI JOIN reread_days USING (user_id, provider, endpoint, date)
WHERE endpoint = 'costs'
EXCEPT
FROM pipeline.stale_users;

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT $table_name, date_trunc('month', date)::DATE AS month FROM new_days WHERE $is_monthly
EXCEPT
FROM pipeline.unpublished_months;

INSERT INTO pipeline.loaded_files
SELECT
    raw_file, any_value(run_id), $kind, max(fetched_at)::DATE, now(), count(*), count(DISTINCT user_id)
FROM raw_pages
GROUP BY raw_file;

-- [check_days]
-- Reads: unchanged_sets, page sets equal to the loaded ones (an Arrow table: user_id, endpoint, days, fetched_at,
-- sha256).
-- Leaves: the later moments of their days in loaded_days, unless another page set has been loaded since.
UPDATE pipeline.loaded_days AS loaded
SET checked_at = greatest(loaded.checked_at, checked.last_fetched_at),
    completed_at = coalesce(loaded.completed_at, checked.completed_at)
FROM (
    SELECT
        user_id,
        provider,
        endpoint,
        date,
        max(fetched_at) AS last_fetched_at,
        min(fetched_at) FILTER (fetched_at >= day_end(date)) AS completed_at
    FROM (
        SELECT user_id, provider, endpoint, new.fetched_at, unnest(new.days) AS date
        FROM unchanged_sets AS new
        JOIN pipeline.loaded_sets USING (user_id, endpoint, sha256)
    )
    GROUP BY user_id, provider, endpoint, date
) AS checked
WHERE loaded.user_id = checked.user_id
  AND loaded.provider = checked.provider
  AND loaded.endpoint = checked.endpoint
  AND loaded.date = checked.date;

-- [infer_moments]
-- Reads: loaded_days, cost_revisions.
-- Leaves: completed_at and checked_at of the days that lack them, as far as the other moments show.
--
-- A fetch after the end of a day has completed it: the first of all, the one that found a revision, or the newest.
UPDATE pipeline.loaded_days
SET checked_at = coalesce(checked_at, fetched_at),
    completed_at = CASE
        WHEN first_fetched_at >= day_end(date) THEN first_fetched_at
        WHEN fetched_at >= day_end(date) THEN fetched_at
    END
WHERE completed_at IS NULL;

UPDATE pipeline.loaded_days AS loaded
SET completed_at = revised.observed_at
FROM (
    SELECT user_id, provider, date, min(observed_at) AS observed_at
    FROM cost_revisions
    WHERE observed_at >= day_end(date)
    GROUP BY user_id, provider, date
) AS revised
WHERE loaded.endpoint = 'costs'
  AND loaded.user_id = revised.user_id
  AND loaded.provider = revised.provider
  AND loaded.date = revised.date
  AND loaded.completed_at > revised.observed_at;
