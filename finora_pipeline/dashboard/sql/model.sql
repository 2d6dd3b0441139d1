-- Grain: at (first UTC day of a bar) and direction. One model's amount_usd, the tokens it was charged for (NULL for
-- charges that are not by token), and priced_usd, the part with known tokens. Unknown directions are `other`.
SELECT
    date_trunc($bucket, date)::DATE AS at,
    CASE WHEN list_contains($directions, direction) THEN direction ELSE 'other' END AS direction,
    sum(amount_usd) AS amount_usd,
    sum(quantity) FILTER (quantity_unit = 'tokens' AND daily_costs.direction IS NOT NULL) AS tokens,
    sum(amount_usd) FILTER (quantity_unit = 'tokens' AND daily_costs.direction IS NOT NULL AND quantity > 0) AS priced_usd
FROM daily_costs
WHERE user_id = $user_id
  AND date BETWEEN $first AND $last
  AND ($project_id IS NULL OR project_id = $project_id)
  AND cost_model = $model
GROUP BY ALL
ORDER BY ALL;
