-- One row: the first and last known UTC day of a user, NULL without any.
SELECT min(date) AS first_date, max(date) AS last_date
FROM pipeline.loaded_days
WHERE user_id = $user_id AND endpoint = 'costs';
