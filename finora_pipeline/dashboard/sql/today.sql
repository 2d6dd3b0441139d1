-- One row: the spend of today ($today) so far in USD, of a model or project if given.
SELECT coalesce(sum(amount_usd), 0)::DECIMAL(38, 18) AS amount_usd
FROM daily_costs
WHERE user_id = $user_id
  AND date = $today
  AND ($model IS NULL OR cost_model = $model)
  AND ($project_id IS NULL OR project_id = $project_id);
