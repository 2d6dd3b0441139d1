-- The days of which a user has real figures, and whether there are any.
SELECT min(date) AS first_date, max(date) AS last_date
FROM daily_model_costs
WHERE user_id = $user_id AND (NOT is_sample OR $sample);
