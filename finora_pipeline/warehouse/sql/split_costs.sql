-- daily_member_costs and daily_key_costs: costs by member and by API key, per day, project and model.
--
-- A file for both tables, which stand for {table}; {id} is member_id or api_key_id (warehouse/tables.py).
-- Grain: user, provider, date, project_id, {id}, model.
-- Columns: amount_usd in USD, exact.
-- Rules
--   1. attribution.sql says how amounts are split.
--   2. The rows add up to daily_costs for every user, day and project, to the last digit.

-- [create]
CREATE TABLE {table} (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    date        DATE NOT NULL,
    project_id  VARCHAR,
    {id}  VARCHAR,
    model       VARCHAR NOT NULL,
    amount_usd  DECIMAL(38, 18) NOT NULL,
    method      VARCHAR NOT NULL,
    is_sample   BOOLEAN NOT NULL
);

-- [define]
COMMENT ON TABLE {table} IS 'Cost by {owner}: one row per user, UTC day, project, {owner} and model. Its rows add up to daily_costs.';
COMMENT ON COLUMN {table}.user_id IS 'User (tenant)';
COMMENT ON COLUMN {table}.provider IS 'Provider: openai';
COMMENT ON COLUMN {table}.date IS 'UTC day';
COMMENT ON COLUMN {table}.project_id IS 'OpenAI project';
COMMENT ON COLUMN {table}.{id} IS 'OpenAI {owner}; NULL for costs that cannot be attributed';
COMMENT ON COLUMN {table}.model IS 'Model as named in costs; the line item''s text for charges without a model';
COMMENT ON COLUMN {table}.amount_usd IS 'USD, exact';
COMMENT ON COLUMN {table}.method IS 'billed: as split by OpenAI; allocated: by share of the usage of the line item''s model and direction';
COMMENT ON COLUMN {table}.is_sample IS 'Invented row, shown until the user has real data';

-- [refresh]
-- Reads: split_days, parts (attribution.sql, prepare).
-- Leaves: the rows of the days in split_days.
DELETE FROM {table} AS old
USING split_days AS stale
WHERE old.user_id = stale.user_id AND old.provider = stale.provider AND old.date = stale.date;

INSERT INTO {table}
SELECT
    split.user_id,
    split.provider,
    split.date,
    parts.project_id,
    parts.id,
    parts.model,
    parts.amount_usd,
    parts.method,
    parts.is_sample
FROM parts
JOIN split_days AS split USING (day)
WHERE parts.dimension = '{dimension}';
