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
    is_sample           BOOLEAN NOT NULL,
    charges_usd         DECIMAL(38, 18),
    cost_service        VARCHAR,
    usage_models        VARCHAR[]
);

-- [define]
COMMENT ON TABLE daily_model_costs IS 'Cost and tokens by model: one row per user, UTC day and model. Its rows add up to daily_costs.';
COMMENT ON COLUMN daily_model_costs.user_id IS 'User (tenant)';
COMMENT ON COLUMN daily_model_costs.provider IS 'Provider: openai';
COMMENT ON COLUMN daily_model_costs.date IS 'UTC day';
COMMENT ON COLUMN daily_model_costs.model IS 'Model as named in costs; the line item''s text for charges without a model';
COMMENT ON COLUMN daily_model_costs.amount_usd IS 'USD, exact';
COMMENT ON COLUMN daily_model_costs.token_priced_usd IS 'Part of amount_usd charged by the token';
COMMENT ON COLUMN daily_model_costs.requests IS 'Requests to the model; NULL without usage, or where OpenAI counts none';
COMMENT ON COLUMN daily_model_costs.input_tokens IS 'Input tokens, cached ones included; NULL without usage in tokens';
COMMENT ON COLUMN daily_model_costs.output_tokens IS 'Output tokens; NULL without usage in tokens';
COMMENT ON COLUMN daily_model_costs.cost_per_1k_tokens IS 'USD per 1,000 tokens, input and output together; NULL without tokens';
COMMENT ON COLUMN daily_model_costs.is_sample IS 'Deprecated, always false: there are no sample rows any more';
COMMENT ON COLUMN daily_model_costs.charges_usd IS 'Part of amount_usd above zero (USD): without credits. Never NULL';
COMMENT ON COLUMN daily_model_costs.cost_service IS 'Service of its charges, as in daily_costs: of the largest, if there are several; of the usage, for a model without charges. Never NULL';
COMMENT ON COLUMN daily_model_costs.usage_models IS 'Names that usage has for the model that day; NULL without usage';

CREATE OR REPLACE MACRO model_family(model) AS
    -- ft-gpt-4o-mini-2024-07-18 → gpt-4o
    regexp_replace(
        regexp_replace(base_model(regexp_replace(lower(model), '^ft[-:]([^:]*).*$', '\1')), '-\d{4}$', ''),
        '(-(mini|nano|pro|turbo|max|small|large|hd|low|medium|high|latest|preview|audio|chat|codex|realtime|'
            || 'search|api|transcribe|diarize|tts|instruct|deep|research|vision|\d+k))+$',
        ''
    );

CREATE OR REPLACE VIEW models AS
SELECT
    user_id,
    provider,
    model,
    user_id || '/' || model AS model_key,
    base_model(model) AS base_model,
    model_family(model) AS family,
    -- Line items without a model are texts with blanks.
    CASE WHEN NOT contains(model, ' ') AND cost_service NOT IN ('web_search', 'file_search', 'code_interpreter',
        'storage', 'other') THEN 'openai' END AS developer,
    cost_service,
    aliases,
    first_seen,
    last_seen
FROM (
    SELECT
        user_id,
        provider,
        model,
        -- The service of the newest day.
        arg_max(cost_service, date) AS cost_service,
        list_sort(list_distinct(flatten(list(coalesce(usage_models, []))))) AS aliases,
        min(date) AS first_seen,
        max(date) AS last_seen
    FROM daily_model_costs
    GROUP BY user_id, provider, model
);
COMMENT ON MACRO model_family IS 'Name of a model without its date, size and variant, of a fine-tune that of its base: gpt-4o-mini-2024-07-18 becomes gpt-4o';
COMMENT ON VIEW models IS 'Models of a user, as costs name them, and line items without a model: family, names in usage, first and last day.';
COMMENT ON COLUMN models.user_id IS 'User (tenant)';
COMMENT ON COLUMN models.provider IS 'Provider: openai';
COMMENT ON COLUMN models.model IS 'Model as costs name it (cost_model of daily_costs and daily_usage); the text of a line item without a model';
COMMENT ON COLUMN models.model_key IS 'user_id/model, unique across users';
COMMENT ON COLUMN models.base_model IS 'Name without the date of its release: gpt-4o';
COMMENT ON COLUMN models.family IS 'Name without its date, size and variant: gpt-4o for gpt-4o-mini and for fine-tunes of it';
COMMENT ON COLUMN models.developer IS 'openai; NULL for line items that are no model';
COMMENT ON COLUMN models.cost_service IS 'Service of its newest day, as in daily_costs';
COMMENT ON COLUMN models.aliases IS 'Names that usage has had for it, sorted';
COMMENT ON COLUMN models.first_seen IS 'First UTC day with costs or usage of it';
COMMENT ON COLUMN models.last_seen IS 'Last UTC day with costs or usage of it';

-- [match]
-- Reads: charge_sums, used, use_names (attribution.sql, prepare).
-- Leaves: cost_models, for each name in usage on a day the model as costs name it; daily_usage.cost_model.
CREATE OR REPLACE TEMP TABLE cost_models AS
WITH charge_names AS (
    SELECT day, use_name, min(model) AS model FROM charge_sums WHERE use_name IS NOT NULL GROUP BY ALL
),
only_of_base AS (
    SELECT day, base_model(use_name) AS base, min(use_name) AS use_name, min(model) AS model
    FROM charge_names
    GROUP BY ALL
    HAVING count(*) = 1
),
used_models AS (SELECT DISTINCT day, service, model FROM used),
-- Charged models that match the usage, with the rank of each match: names of models before those of services.
matches AS (
    SELECT
        used.day,
        used.service,
        used.model,
        coalesce(
            exact.model,
            -- Not in the join: with this condition it would compare every name with every charge.
            CASE WHEN only_of_base.base IN (only_of_base.use_name, names.name) THEN only_of_base.model END
        ) AS charged_model,
        CASE WHEN names.name = used.service THEN 20 WHEN exact.model IS NULL THEN 10 ELSE 0 END + names.rank AS place
    FROM used_models AS used
    JOIN use_names AS names ON names.service = used.service AND names.model IS NOT DISTINCT FROM used.model
    LEFT JOIN charge_names AS exact ON exact.day = used.day AND exact.use_name = names.name
    LEFT JOIN only_of_base ON only_of_base.day = used.day AND only_of_base.base = base_model(names.name)
    WHERE charged_model IS NOT NULL
)
SELECT used.day, used.service, used.model, coalesce(best.model, used.model, used.service) AS cost_model
FROM used_models AS used
LEFT JOIN (
    SELECT day, service, model AS used_model, min_by(charged_model, place) AS model FROM matches GROUP BY ALL
) AS best
    ON best.day = used.day
    AND best.service = used.service
    AND best.used_model IS NOT DISTINCT FROM used.model;

UPDATE daily_usage AS usage
SET cost_model = names.cost_model
FROM cost_models AS names
JOIN split_days AS split USING (day)
WHERE usage.user_id = split.user_id
  AND usage.provider = split.provider
  AND usage.date = split.date
  AND usage.service = names.service
  AND usage.model IS NOT DISTINCT FROM names.model
  AND usage.cost_model IS DISTINCT FROM names.cost_model;

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT 'daily_usage', date_trunc('month', date)::DATE FROM split_days;

-- [refresh]
-- Reads: split_days, charge_sums, used (attribution.sql, prepare), cost_models (match).
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
        coalesce(sum(charges_usd), 0) AS charges_usd,
        coalesce(sum(token_priced_usd), 0) AS token_priced_usd,
        max_by(cost_service, {'usd': coalesce(abs(amount_usd), 0), 'service': cost_service}) AS cost_service
    FROM charge_sums
    GROUP BY ALL
),
usage AS (
    SELECT
        used.day,
        names.cost_model AS model,
        sum(requests)::BIGINT AS requests,
        sum(input_tokens)::BIGINT AS input_tokens,
        sum(output_tokens)::BIGINT AS output_tokens,
        max({service_of_usage}) AS cost_service,
        list_sort(list(DISTINCT used.model) FILTER (used.model IS NOT NULL)) AS usage_models
    FROM used
    JOIN cost_models AS names
        ON names.day = used.day AND names.service = used.service AND names.model IS NOT DISTINCT FROM used.model
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
        false AS is_sample,
        coalesce(costs.charges_usd, 0) AS charges_usd,
        coalesce(costs.cost_service, usage.cost_service) AS cost_service,
        usage.usage_models
    FROM costs
    FULL JOIN usage USING (day, model)
    -- Stored bytes and sessions that nothing is charged for are no row of their own.
    WHERE costs.model IS NOT NULL OR coalesce(requests, input_tokens, output_tokens) IS NOT NULL
)
SELECT split.user_id, split.provider, split.date, models.* EXCLUDE (day)
FROM models
JOIN split_days AS split USING (day);
