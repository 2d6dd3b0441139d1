-- Cost of each project by calendar month, with the change from the month before.
--
-- Grain: user_id, provider, month, project_id.
-- Rules
--   1. A project without charges in a known month cost zero.
--   2. A change compares two whole months: every day of both was read. It is NULL otherwise, and from a month of zero.

WITH months AS (
    SELECT
        user_id,
        provider,
        date_trunc('month', date)::DATE AS month,
        count(*) = day(last_day(any_value(date))) AND any_value(month_state) <> 'open' AS is_whole
    FROM {{ source('finora', 'reconciliation') }}
    GROUP BY ALL
),
costs AS (
    SELECT user_id, provider, date_trunc('month', date)::DATE AS month, project_id, sum(amount_usd) AS net_usd
    FROM {{ source('finora', 'daily_costs') }}
    GROUP BY ALL
),
every AS (
    SELECT
        months.*,
        projects.project_id,
        coalesce(costs.net_usd, 0)::DECIMAL(38, 18) AS net_usd
    FROM months
    JOIN (SELECT DISTINCT user_id, provider, project_id FROM costs) AS projects USING (user_id, provider)
    LEFT JOIN costs
        ON costs.user_id = months.user_id AND costs.provider = months.provider AND costs.month = months.month
        AND costs.project_id IS NOT DISTINCT FROM projects.project_id
),
compared AS (
    SELECT
        *,
        CASE
            WHEN is_whole AND lag(is_whole) OVER by_month AND lag(month) OVER by_month = month - INTERVAL 1 MONTH
                THEN lag(net_usd) OVER by_month
        END AS previous_usd
    FROM every
    WINDOW by_month AS (PARTITION BY user_id, provider, project_id ORDER BY month)
)
SELECT
    compared.user_id,
    compared.provider,
    compared.month,
    compared.project_id,
    projects.name AS project_name,
    compared.net_usd,
    compared.previous_usd,
    (compared.net_usd - compared.previous_usd) / nullif(abs(compared.previous_usd), 0) AS change,
    compared.is_whole
FROM compared
LEFT JOIN {{ source('finora', 'projects') }} AS projects
    ON projects.user_id = compared.user_id AND projects.provider = compared.provider
    AND projects.project_id = compared.project_id
