-- pipeline.billed_costs: the same costs as OpenAI splits and adds them up otherwise.
--
-- Grain: user, provider, reading, date, project_id, line_item, member_id, api_key_id.
-- Rules
--   1. `reading` is cost_totals (one row a day, no dimension), costs_by_member or costs_by_key. The last two
--      exist only for organizations whose API takes that grouping.
--   2. A day of a reading is replaced whole by its newest complete page set.
--   3. They are read a moment after daily_costs: what was booked in between is in them and not there.

-- [create]
CREATE TABLE pipeline.billed_costs (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    reading     VARCHAR NOT NULL,
    date        DATE NOT NULL,
    project_id  VARCHAR,
    line_item   VARCHAR,
    member_id   VARCHAR,
    api_key_id  VARCHAR,
    amount_usd  DECIMAL(38, 18),
    fetched_at  TIMESTAMPTZ NOT NULL,
    raw_file    VARCHAR NOT NULL
);

-- [load]
CREATE OR REPLACE TEMP TABLE old_billed AS
SELECT billed.* EXCLUDE (fetched_at, raw_file)
FROM pipeline.billed_costs AS billed
SEMI JOIN reread_days AS reread
    ON reread.user_id = billed.user_id
    AND reread.provider = billed.provider
    AND reread.endpoint = billed.reading
    AND reread.date = billed.date;

DELETE FROM pipeline.billed_costs AS old
USING new_days AS new
WHERE old.reading = new.endpoint
  AND old.user_id = new.user_id
  AND old.provider = new.provider
  AND old.date = new.date;

INSERT INTO pipeline.billed_costs
WITH pages AS (
    SELECT
        user_id,
        provider,
        endpoint,
        fetched_at,
        parse_filename(filename) AS raw_file,
        unnest(from_json(coalesce(canonical, body), '{"data": [{"start_time": "BIGINT", "results": [{
            "amount": {"value": "VARCHAR"}, "project_id": "VARCHAR", "line_item": "VARCHAR",
            "user_id": "VARCHAR", "api_key_id": "VARCHAR"}]}]}').data) AS bucket
    FROM read_parquet(getvariable('text_files'), filename = true)
),
buckets AS (
    SELECT pages.* EXCLUDE (bucket), new.date, unnest(bucket.results) AS result
    FROM pages
    JOIN new_days AS new
        ON new.user_id = pages.user_id
        AND new.provider = pages.provider
        AND new.endpoint = pages.endpoint
        AND new.date = DATE '1970-01-01' + (bucket.start_time // 86400)::INTEGER
        AND new.fetched_at = pages.fetched_at
        AND new.raw_file = pages.raw_file
)
SELECT
    user_id,
    provider,
    endpoint,
    date,
    result.project_id,
    result.line_item,
    result.user_id,
    result.api_key_id,
    exact_decimal(result.amount.value),
    fetched_at,
    raw_file
FROM buckets;

-- [compare]
INSERT INTO changed_days
WITH reread_billed AS (
    SELECT billed.* EXCLUDE (fetched_at, raw_file)
    FROM pipeline.billed_costs AS billed
    SEMI JOIN reread_days AS reread
        ON reread.user_id = billed.user_id
        AND reread.provider = billed.provider
        AND reread.endpoint = billed.reading
        AND reread.date = billed.date
)
SELECT DISTINCT user_id, provider, reading, date
FROM (
    (FROM reread_billed EXCEPT FROM old_billed)
    UNION ALL
    (FROM old_billed EXCEPT FROM reread_billed)
);
