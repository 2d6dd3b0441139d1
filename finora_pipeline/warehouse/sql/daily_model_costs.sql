-- daily_model_costs: cost and tokens of a model on a day, side by side.
--
-- Grain: user, provider, date, model.
-- Columns: *_usd in USD, *_tokens in tokens, cost_per_1k_tokens in USD per 1,000 tokens.
-- Rules
--   1. `model` is the charge's model; a charge without one has its line item's text, so that the rows of a day
--      always add up to the day's cost.
--   2. Costs and usage name some models differently. Usage goes to the first of: the charged model of the same
--      name, ignoring case; a fine-tune's base, as costs name it; the only charged model of the day with the same
--      name but for the release date, where one of the two names has none; the charge of its service
--      (service_names.csv). Otherwise it keeps its own row, if it has requests or tokens.
--   3. `token_priced_usd` is charged by the token: the quantity is in tokens, or has no unit and the line item
--      names a direction.
--   4. `cost_per_1k_tokens` = token_priced_usd ÷ (input_tokens + output_tokens) × 1000; cached input is part of
--      the input and not added again. NULL without tokens, and where the result is too large: one user's numbers
--      must not fail the computation of all users.

-- [create]
CREATE TABLE daily_model_costs (
    user_id             VARCHAR NOT NULL,
    provider            VARCHAR NOT NULL,
    date                DATE NOT NULL,
    model               VARCHAR NOT NULL,
    amount_usd          DECIMAL(38, 18) NOT NULL,
    token_priced_usd    DECIMAL(38, 18) NOT NULL,
    requests            BIGINT,
    input_tokens        BIGINT,
    output_tokens       BIGINT,
    cost_per_1k_tokens  DECIMAL(38, 18),
    is_sample           BOOLEAN NOT NULL
);

-- [define]
COMMENT ON TABLE daily_model_costs IS 'Cost and tokens by model: one row per user, UTC day and model. Its rows add up to daily_costs.';
COMMENT ON COLUMN daily_model_costs.user_id IS 'User (tenant)';
COMMENT ON COLUMN daily_model_costs.provider IS 'Provider: openai';
COMMENT ON COLUMN daily_model_costs.date IS 'UTC day';
COMMENT ON COLUMN daily_model_costs.model IS 'Model as named in costs; the line item''s text for charges without a model';
COMMENT ON COLUMN daily_model_costs.amount_usd IS 'USD, exact';
COMMENT ON COLUMN daily_model_costs.token_priced_usd IS 'Part of amount_usd charged by the token';
COMMENT ON COLUMN daily_model_costs.requests IS 'Requests to the model';
COMMENT ON COLUMN daily_model_costs.input_tokens IS 'Input tokens, cached ones included';
COMMENT ON COLUMN daily_model_costs.output_tokens IS 'Output tokens';
COMMENT ON COLUMN daily_model_costs.cost_per_1k_tokens IS 'USD per 1,000 tokens, input and output together; NULL without tokens';
COMMENT ON COLUMN daily_model_costs.is_sample IS 'Invented row, shown until the user has real data';

-- [refresh]
-- Reads: split_days, charge_sums, used, use_names (attribution.sql, prepare).
-- Leaves: the rows of the days in split_days.
DELETE FROM daily_model_costs AS old
USING split_days AS stale
WHERE old.user_id = stale.user_id AND old.provider = stale.provider AND old.date = stale.date;

INSERT INTO daily_model_costs
WITH costs AS (
    SELECT
        day,
        model,
        coalesce(sum(amount_usd), 0) AS amount_usd,
        coalesce(sum(token_priced_usd), 0) AS token_priced_usd,
        bool_or(is_sample) AS is_sample
    FROM charge_sums
    GROUP BY ALL
),
charge_names AS (
    SELECT day, use_name, min(model) AS model FROM charge_sums WHERE use_name IS NOT NULL GROUP BY ALL
),
only_of_base AS (
    SELECT day, base_model(use_name) AS base, min(use_name) AS use_name, min(model) AS model
    FROM charge_names
    GROUP BY ALL
    HAVING count(*) = 1
),
used_models AS (
    SELECT
        day,
        service,
        model,
        sum(requests)::BIGINT AS requests,
        sum(input_tokens)::BIGINT AS input_tokens,
        sum(output_tokens)::BIGINT AS output_tokens,
        bool_or(is_sample) AS is_sample
    FROM used
    GROUP BY ALL
    HAVING coalesce(sum(requests), sum(input_tokens), sum(output_tokens)) IS NOT NULL
),
-- Charged models that match the usage, with the rank of each match: names of models before those of services.
matches AS (
    SELECT
        used.day,
        used.service,
        used.model,
        coalesce(exact.model, only_of_base.model) AS charged_model,
        CASE WHEN names.name = used.service THEN 20 WHEN exact.model IS NULL THEN 10 ELSE 0 END + names.rank AS place
    FROM used_models AS used
    JOIN use_names AS names ON names.service = used.service AND names.model IS NOT DISTINCT FROM used.model
    LEFT JOIN charge_names AS exact ON exact.day = used.day AND exact.use_name = names.name
    LEFT JOIN only_of_base
        ON only_of_base.day = used.day
        AND only_of_base.base = base_model(names.name)
        AND only_of_base.base IN (only_of_base.use_name, names.name)
    WHERE exact.model IS NOT NULL OR only_of_base.model IS NOT NULL
),
usage AS (
    SELECT
        used.day,
        coalesce(best.model, used.model, 'not attributed') AS model,
        sum(requests)::BIGINT AS requests,
        sum(input_tokens)::BIGINT AS input_tokens,
        sum(output_tokens)::BIGINT AS output_tokens,
        bool_or(is_sample) AS is_sample
    FROM used_models AS used
    LEFT JOIN (
        SELECT day, service, model AS used_model, min_by(charged_model, place) AS model FROM matches GROUP BY ALL
    ) AS best
        ON best.day = used.day
        AND best.service = used.service
        AND best.used_model IS NOT DISTINCT FROM used.model
    GROUP BY ALL
),
models AS (
    SELECT
        day,
        model,
        coalesce(costs.amount_usd, 0) AS amount_usd,
        coalesce(costs.token_priced_usd, 0) AS token_priced_usd,
        usage.requests,
        usage.input_tokens,
        usage.output_tokens,
        try(exact_ratio(
            costs.token_priced_usd,
            coalesce(usage.input_tokens, 0) + coalesce(usage.output_tokens, 0),
            per := 1000
        )) AS cost_per_1k_tokens,
        coalesce(costs.is_sample, usage.is_sample) AS is_sample
    FROM costs
    FULL JOIN usage USING (day, model)
)
SELECT split.user_id, split.provider, split.date, models.* EXCLUDE (day)
FROM models
JOIN split_days AS split USING (day);
