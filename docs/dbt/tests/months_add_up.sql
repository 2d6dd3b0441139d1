-- Users whose months do not add up to daily_costs, to the last digit.
WITH both_sums AS (
    SELECT user_id, sum(net_usd) AS months_usd, 0::DECIMAL(38, 18) AS days_usd
    FROM {{ ref('monthly_project_costs') }}
    GROUP BY user_id
    UNION ALL
    SELECT user_id, 0, sum(amount_usd)
    FROM {{ source('finora', 'daily_costs') }}
    GROUP BY user_id
)
SELECT user_id, sum(months_usd) AS months_usd, sum(days_usd) AS days_usd
FROM both_sums
GROUP BY user_id
HAVING sum(months_usd) IS DISTINCT FROM sum(days_usd)
