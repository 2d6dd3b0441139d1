-- daily_key_costs: what each API key cost, by day, project and model.
--
-- Grain: user, provider, date, project_id, api_key_id, model. How amounts are split: attribution.sql.
-- Its rows add up to daily_costs for every user, day and project, to the last digit.

-- [create]
CREATE TABLE daily_key_costs (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    date        DATE NOT NULL,
    project_id  VARCHAR,
    api_key_id  VARCHAR,
    model       VARCHAR NOT NULL,
    amount_usd  DECIMAL(38, 18) NOT NULL,
    method      VARCHAR NOT NULL,
    is_sample   BOOLEAN NOT NULL
);

-- [define]
COMMENT ON TABLE daily_key_costs IS 'Cost by API key: one row a user, UTC day, project, API key and model. Its rows add up to daily_costs.';
COMMENT ON COLUMN daily_key_costs.user_id IS 'Our user';
COMMENT ON COLUMN daily_key_costs.provider IS 'Who charged: openai';
COMMENT ON COLUMN daily_key_costs.date IS 'UTC day';
COMMENT ON COLUMN daily_key_costs.project_id IS 'OpenAI project';
COMMENT ON COLUMN daily_key_costs.api_key_id IS 'OpenAI API key; NULL for what cannot be attributed';
COMMENT ON COLUMN daily_key_costs.model IS 'Model as the costs name it; the line item''s text for charges without a model';
COMMENT ON COLUMN daily_key_costs.amount_usd IS 'USD, exact';
COMMENT ON COLUMN daily_key_costs.method IS 'billed: as OpenAI splits the costs; allocated: by share of the use of the line''s model and direction';
COMMENT ON COLUMN daily_key_costs.is_sample IS 'Made-up row of a user without real data';

-- [refresh]
-- Recomputes the days in `split_days`.
DELETE FROM daily_key_costs AS old
USING split_days AS stale
WHERE old.user_id = stale.user_id AND old.provider = stale.provider AND old.date = stale.date;

INSERT INTO daily_key_costs
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
WHERE parts.dimension = 'key';
