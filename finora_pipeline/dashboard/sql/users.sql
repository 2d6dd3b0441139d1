-- Grain: user_id. The spend of the last 30 days in USD.
SELECT user_id, sum(value) AS amount_usd
FROM user_metrics
WHERE metric = 'total_spend' AND period = '30d'
GROUP BY ALL;
