-- daily_member_costs and daily_key_costs: costs by member and by API key, per day, project and model.
--
-- A file for both tables, which stand for {table}; {id} is member_id or api_key_id (warehouse/tables.py).
-- Grain: user, provider, date, project_id, {id}, model.
-- Columns: amount_usd and charges_usd in USD, exact.
-- Rules
--   1. The rows are sums of daily_attributed_costs, which says how amounts are split.
--   2. The rows add up to daily_costs for every user, day and project, to the last digit.
--   3. `principal_type` is that of the member, or of the API key's costs: member if a member has any of them, else
--      service_account if one has. Without {id}, or with no known principal, it reads none, and `unattributed_reason`
--      is that of the largest part without a member.

-- [create]
CREATE TABLE {table} (
    user_id              VARCHAR NOT NULL,
    provider             VARCHAR NOT NULL,
    date                 DATE NOT NULL,
    project_id           VARCHAR,
    {id}  VARCHAR,
    model                VARCHAR NOT NULL,
    amount_usd           DECIMAL(38, 18) NOT NULL,
    method               VARCHAR NOT NULL,
    is_sample            BOOLEAN NOT NULL,
    charges_usd          DECIMAL(38, 18),
    principal_type       VARCHAR,
    unattributed_reason  VARCHAR
);

-- [define]
COMMENT ON TABLE {table} IS 'Cost by {owner}: one row per user, UTC day, project, {owner} and model. Sums of daily_attributed_costs; its rows add up to daily_costs.';
COMMENT ON COLUMN {table}.user_id IS 'User (tenant)';
COMMENT ON COLUMN {table}.provider IS 'Provider: openai';
COMMENT ON COLUMN {table}.date IS 'UTC day';
COMMENT ON COLUMN {table}.project_id IS 'OpenAI project; NULL for charges of the whole organization';
COMMENT ON COLUMN {table}.{id} IS 'OpenAI {owner}; NULL for costs that cannot be attributed';
COMMENT ON COLUMN {table}.model IS 'Model as named in costs; the line item''s text for charges without a model';
COMMENT ON COLUMN {table}.amount_usd IS 'USD, exact';
COMMENT ON COLUMN {table}.method IS 'billed: as split by OpenAI; allocated: by share of the usage of the line item''s model and direction';
COMMENT ON COLUMN {table}.is_sample IS 'Deprecated, always false: there are no sample rows any more';
COMMENT ON COLUMN {table}.charges_usd IS 'Part of amount_usd from charges above zero (USD): without credits. Never NULL';
COMMENT ON COLUMN {table}.principal_type IS 'member, service_account, or none for costs without a known principal. Never NULL';
COMMENT ON COLUMN {table}.unattributed_reason IS 'Why the principal is unknown: no_usage, no_dimension (usage or split without {an_owner}) or remainder (of OpenAI''s split); NULL otherwise';

-- [refresh]
-- Reads: split_days, charges (attribution.sql, prepare), attributed (daily_attributed_costs.sql, split).
-- Leaves: the rows of the days in split_days.
DELETE FROM {table} AS old
USING split_days AS stale
WHERE old.user_id = stale.user_id AND old.provider = stale.provider AND old.date = stale.date;

INSERT INTO {table}
WITH sums AS (
    SELECT
        charges.day,
        charges.project_id,
        parts.{id},
        charges.cost_model,
        sum(parts.amount_usd) AS amount_usd,
        -- allocated comes before billed: one part that we allocated makes the sum allocated.
        min(parts.{method}) AS method,
        sum(parts.charges_usd) AS charges_usd,
        CASE
            WHEN parts.{id} IS NULL THEN 'none'
            WHEN bool_or(parts.principal_type = 'member') THEN 'member'
            WHEN bool_or(parts.principal_type = 'service_account') THEN 'service_account'
            ELSE 'none'
        END AS principal_type,
        max({'usd': abs(parts.amount_usd), 'reason': parts.unattributed_reason})
            FILTER (parts.unattributed_reason IS NOT NULL) AS largest
    FROM attributed AS parts
    JOIN charges ON charges.rowid = parts.charge
    GROUP BY charges.day, charges.project_id, parts.{id}, charges.cost_model
)
SELECT
    split.user_id,
    split.provider,
    split.date,
    sums.project_id,
    sums.{id},
    sums.cost_model,
    sums.amount_usd,
    sums.method,
    false,
    sums.charges_usd,
    sums.principal_type,
    CASE WHEN sums.principal_type = 'none' THEN coalesce(sums.largest.reason, 'no_dimension') END
FROM sums
JOIN split_days AS split USING (day);
