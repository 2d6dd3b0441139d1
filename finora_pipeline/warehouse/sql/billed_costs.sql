-- pipeline.billed_costs: the costs of daily_costs in other groupings of OpenAI's.
--
-- Grain: user, provider, reading, date, project_id, line_item, member_id, api_key_id.
-- Columns: amount_usd in USD, exact.
-- Rules
--   1. `reading` is the endpoint: cost_totals (one row per day, no dimension), costs_by_member or costs_by_key.
--      The last two exist only for organizations whose API takes that grouping.
--   2. The newest complete page set of a day and reading replaces that day.
--   3. They are fetched a moment after daily_costs: charges booked in between are here and not there.

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
-- Reads: new_days, reread_days, new_results (pipeline.sql).
-- Leaves: the rows of the days in new_days; old_billed, the rows that they replace.
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
FROM new_results('{"amount": {"value": "VARCHAR"}, "project_id": "VARCHAR", "line_item": "VARCHAR",
    "user_id": "VARCHAR", "api_key_id": "VARCHAR"}');

-- [compare]
-- Reads: reread_days (pipeline.sql), old_billed (load).
-- Leaves: the days whose rows changed, in changed_days.
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
