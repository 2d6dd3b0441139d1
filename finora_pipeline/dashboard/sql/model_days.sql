-- Grain: date and model, as the costs name it. `days` of a user: amount_usd, the part of it above zero (charges_usd),
-- covered_usd (billed by token, with known tokens), all tokens, and unit_tokens without those of moderation.
SELECT
    date,
    model,
    amount_usd,
    charges_usd,
    CASE WHEN is_billable AND tokens > 0 THEN token_priced_usd END AS covered_usd,
    input_tokens,
    output_tokens,
    CASE WHEN is_billable THEN tokens ELSE 0 END AS unit_tokens
FROM (
    SELECT
        *,
        coalesce(input_tokens, 0) + coalesce(output_tokens, 0) AS tokens,
        cost_service IS DISTINCT FROM 'moderation' AS is_billable
    FROM daily_model_costs
)
WHERE user_id = $user_id
  AND date BETWEEN $from AND $until
  AND ($model IS NULL OR model = $model)
  AND $project_id IS NULL
