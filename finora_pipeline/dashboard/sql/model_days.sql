-- Grain: date and model, as the costs name it. `days` of a user: amount_usd, covered_usd (billed by token, with known
-- tokens) and tokens.
SELECT
    date,
    model,
    amount_usd,
    CASE WHEN coalesce(input_tokens, 0) + coalesce(output_tokens, 0) > 0 THEN token_priced_usd END AS covered_usd,
    input_tokens,
    output_tokens
FROM daily_model_costs
WHERE user_id = $user_id
  AND date BETWEEN $from AND $until
  AND ($model IS NULL OR model = $model)
  AND $project_id IS NULL
