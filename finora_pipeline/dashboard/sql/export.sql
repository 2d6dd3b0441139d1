-- Grain: date, project_id and model. The rows of the CSV file: amount_usd of each UTC day.
SELECT
    date,
    costs.project_id,
    coalesce(projects.name, costs.project_name) AS project_name,
    cost_model AS model,
    sum(amount_usd) AS amount_usd
FROM daily_costs AS costs
LEFT JOIN projects USING (user_id, provider, project_id)
WHERE user_id = $user_id
  AND date BETWEEN $first AND $last
  AND ($model IS NULL OR cost_model = $model)
  AND ($project_id IS NULL OR costs.project_id = $project_id)
GROUP BY ALL
ORDER BY ALL;
