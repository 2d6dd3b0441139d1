-- One row: the first and last UTC day with data of a user, NULL without any. Sample rows count only if $sample.
SELECT min(date) AS first_date, max(date) AS last_date
FROM daily_model_costs
WHERE user_id = $user_id AND (NOT is_sample OR $sample);
