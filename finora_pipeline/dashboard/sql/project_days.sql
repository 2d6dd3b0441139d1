-- Each day and model of one of a user's projects. Costs and usage name models differently, and they are matched
-- over whole days of the organization: a project's tokens are not set against its costs.
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
