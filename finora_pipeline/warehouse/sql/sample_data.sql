-- Sample rows of daily_costs and daily_usage for users without real rows: the last {sample_days} days of an
-- imaginary organization, marked `is_sample`. The first real rows of a user replace them.

-- [refresh]
-- Reads: sample_users, every user, and sample_models, their usage and prices (Arrow tables); $today.
-- Leaves: sample rows in daily_costs and daily_usage, their days stale, their months unpublished; without_data,
-- outdated, missing, sample_use.
CREATE OR REPLACE TEMP TABLE without_data AS
SELECT user_id FROM sample_users
-- Real rows have reached daily_model_costs, or their days are stale.
WHERE user_id NOT IN (SELECT user_id FROM daily_model_costs WHERE NOT is_sample)
  AND user_id NOT IN (
    SELECT user_id FROM daily_costs SEMI JOIN pipeline.stale_days USING (user_id, provider, date)
    WHERE NOT is_sample
  )
  AND user_id NOT IN (
    SELECT user_id FROM daily_usage SEMI JOIN pipeline.stale_days USING (user_id, provider, date)
    WHERE NOT is_sample
  );

-- Sample days that are too old, or whose user now has real rows.
CREATE OR REPLACE TEMP TABLE outdated AS
SELECT user_id, provider, date
FROM (
    SELECT user_id, provider, date FROM daily_costs WHERE is_sample
    UNION
    SELECT user_id, provider, date FROM daily_usage WHERE is_sample
)
WHERE user_id NOT IN (FROM without_data) OR date <= $today::DATE - {sample_days};

DELETE FROM daily_costs AS old USING outdated
WHERE old.is_sample AND old.user_id = outdated.user_id AND old.date = outdated.date;
DELETE FROM daily_usage AS old USING outdated
WHERE old.is_sample AND old.user_id = outdated.user_id AND old.date = outdated.date;

CREATE OR REPLACE TEMP TABLE missing AS
SELECT user_id, ($today::DATE - i::INTEGER)::DATE AS date
FROM without_data CROSS JOIN range({sample_days}) AS days(i)
WHERE NOT EXISTS (
    FROM daily_costs AS old
    WHERE old.is_sample AND old.user_id = without_data.user_id
      AND old.date = ($today::DATE - i::INTEGER)::DATE
);

CREATE OR REPLACE TEMP TABLE sample_use AS
SELECT
    missing.user_id,
    missing.date,
    models.*,
    (models.tokens_a_day * (CASE WHEN dayofweek(missing.date) IN (0, 6) THEN 3 ELSE 10 END)
        * (90 + hash(missing.date, models.model) % 21)::BIGINT) // 1000 AS input_tokens
FROM missing CROSS JOIN sample_models AS models;

INSERT INTO daily_costs
SELECT
    user_id, '{provider}', date, 'proj_sample', 'Sample project', model || ', ' || direction,
    tokens * price / 1000000, tokens, 'tokens', model, direction, NULL, NULL, false, true, NULL, now(),
    'sample', true, NULL, 'model_tokens', 'usage', model
FROM (
    SELECT
        user_id, date, model, 'input' AS direction, input_tokens AS tokens,
        input_price_per_million::DECIMAL(9, 4) AS price
    FROM sample_use
    UNION ALL
    SELECT user_id, date, model, 'output', input_tokens // 4, output_price_per_million::DECIMAL(9, 4)
    FROM sample_use
);

INSERT INTO daily_usage BY NAME
SELECT
    user_id,
    '{provider}' AS provider,
    date,
    'completions' AS service,
    'proj_sample' AS project_id,
    model,
    input_tokens // 900 + 1 AS requests,
    input_tokens,
    0 AS input_cached_tokens,
    input_tokens AS input_uncached_tokens,
    input_tokens // 4 AS output_tokens,
    now() AS fetched_at,
    'sample' AS raw_file,
    true AS is_sample
FROM sample_use;

INSERT INTO pipeline.stale_days
SELECT user_id, '{provider}', date FROM missing
UNION
SELECT user_id, provider, date FROM outdated
EXCEPT
FROM pipeline.stale_days;

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT table_name, date_trunc('month', date)::DATE
FROM (SELECT date FROM missing UNION SELECT date FROM outdated)
CROSS JOIN (VALUES ('daily_costs'), ('daily_usage')) AS tables(table_name)
EXCEPT
FROM pipeline.unpublished_months;
