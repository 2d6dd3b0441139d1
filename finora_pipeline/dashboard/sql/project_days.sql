-- Grain: date and model. `days` of a single project, with the columns of model_days.sql. Costs and usage of a project
-- share the names of cost_model.
WITH costs AS (
    SELECT
        date,
        cost_model AS model,
        sum(amount_usd) AS amount_usd,
        sum(amount_usd) FILTER (amount_usd > 0) AS charges_usd,
        sum(amount_usd) FILTER (is_priced_by_token(direction, quantity_unit)) AS token_priced_usd
    FROM daily_costs
    WHERE user_id = $user_id
      AND date BETWEEN $from AND $until
      AND project_id = $project_id
      AND ($model IS NULL OR cost_model = $model)
    GROUP BY ALL
),
usage AS (
    SELECT
        date,
        cost_model AS model,
        sum(input_tokens)::BIGINT AS input_tokens,
        sum(output_tokens)::BIGINT AS output_tokens,
        bool_and(service = 'moderations') AS is_free
    FROM daily_usage
    WHERE user_id = $user_id
      AND date BETWEEN $from AND $until
      AND project_id = $project_id
      AND ($model IS NULL OR cost_model = $model)
    GROUP BY ALL
),
joined AS (
    SELECT
        *,
        coalesce(input_tokens, 0) + coalesce(output_tokens, 0) AS tokens,
        is_free IS DISTINCT FROM true AS is_billable
    FROM costs
    FULL JOIN usage USING (date, model)
)
SELECT
    date,
    model,
    coalesce(amount_usd, 0) AS amount_usd,
    coalesce(charges_usd, 0) AS charges_usd,
    CASE WHEN is_billable AND tokens > 0 THEN token_priced_usd END AS covered_usd,
    input_tokens,
    output_tokens,
    CASE WHEN is_billable THEN tokens ELSE 0 END AS unit_tokens
FROM joined
