-- One row: the last complete UTC day of a user, NULL without any; when today ($today) was read, NULL if it was not;
-- and the days with known costs and with known usage: the first, the last, and all of them if some between are unknown.
WITH known AS (
    SELECT
        min(date) AS first_day,
        max(date) AS last_day,
        CASE WHEN count(*) <= max(date) - min(date) THEN list(date) END AS dates,
        max(date) FILTER (is_complete AND date < $today::DATE) AS through_date,
        max(known_until) FILTER (date = $today::DATE) AS today_known_until
    FROM pipeline.known_days
    WHERE user_id = $user_id
),
used AS (
    SELECT
        min(date) AS first_day,
        max(date) AS last_day,
        CASE WHEN count(*) <= max(date) - min(date) THEN list(date) END AS dates
    FROM pipeline.loaded_days
    WHERE user_id = $user_id AND endpoint = '{usage_known_by}'
)
SELECT
    known.through_date,
    known.today_known_until,
    {'first_day': known.first_day, 'last_day': known.last_day, 'dates': known.dates} AS costs,
    {'first_day': used.first_day, 'last_day': used.last_day, 'dates': used.dates} AS usage
FROM known, used;
