-- One row: the first known UTC day of a user and the last complete one, NULL without any; and when today ($today) was
-- read, NULL if it was not.
SELECT
    min(date) AS known_since,
    max(date) FILTER (is_complete AND date < $today::DATE) AS through_date,
    max(known_until) FILTER (date = $today::DATE) AS today_known_until
FROM pipeline.known_days
WHERE user_id = $user_id;
