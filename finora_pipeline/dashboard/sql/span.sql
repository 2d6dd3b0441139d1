-- One row: the first known UTC day of a user and the last complete one, NULL without any; when today ($today) was
-- read, NULL if it was not; and all known days, NULL if there are no unknown ones between the first and the last.
SELECT
    min(date) AS known_since,
    max(date) FILTER (is_complete AND date < $today::DATE) AS through_date,
    max(known_until) FILTER (date = $today::DATE) AS today_known_until,
    max(date) AS last_known,
    CASE WHEN count(*) <= max(date) - min(date) THEN list(date) END AS dates
FROM pipeline.known_days
WHERE user_id = $user_id;
