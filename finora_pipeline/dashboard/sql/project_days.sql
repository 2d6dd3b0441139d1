-- Grain: date and model. `days` of a single project: amount_usd. Costs and usage are matched over all projects of a day
-- together, so a project has no covered costs and no tokens here.
SELECT
    date,
    model,
    amount_usd,
    NULL::DECIMAL(38, 18) AS covered_usd,
    NULL::BIGINT AS input_tokens,
    NULL::BIGINT AS output_tokens
FROM daily_member_costs
WHERE user_id = $user_id
  AND date BETWEEN $from AND $until
  AND project_id = $project_id
  AND ($model IS NULL OR model = $model)
