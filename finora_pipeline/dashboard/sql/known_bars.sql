-- Grain: at (first UTC day of a bar). How many days of each bar have known costs; a bar without any has no row.
SELECT date_trunc($bucket, date)::DATE AS at, count(*) AS days
FROM pipeline.known_days
WHERE user_id = $user_id AND date BETWEEN $first AND $last
GROUP BY ALL;
