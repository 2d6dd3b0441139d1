-- The costs as known at a moment: daily_costs with the later cost_revisions undone. Exact for every moment of the last
-- {exact_days} days; before that, where revisions are folded, for the end of every UTC day.

-- [define]
-- SELECT sum(amount_usd) FROM costs_as_of('2026-11-03 08:00:00+00') WHERE user_id = 'acme' AND date = '2026-11-01'
CREATE OR REPLACE MACRO costs_as_of(moment) AS TABLE
WITH later AS (
    -- Each charge before its first change after that moment.
    SELECT
        user_id,
        provider,
        date,
        project_id,
        line_item,
        arg_min(was_there, observed_at) AS was_there,
        first(old_amount_usd ORDER BY observed_at) AS amount_usd,
        first(old_quantity ORDER BY observed_at) AS quantity
    FROM cost_revisions
    WHERE observed_at > moment::TIMESTAMPTZ
    GROUP BY ALL
),
lines AS (
    SELECT user_id, provider, date, project_id, line_item, amount_usd, quantity, true AS was_there, 1 AS place
    FROM daily_costs
    UNION ALL
    SELECT user_id, provider, date, project_id, line_item, amount_usd, quantity, was_there, 0
    FROM later
),
known AS (
    SELECT user_id, provider, date
    FROM pipeline.loaded_days
    WHERE endpoint = 'costs' AND first_fetched_at <= moment::TIMESTAMPTZ
)
SELECT user_id, provider, date, project_id, line_item, amount_usd, quantity
FROM lines
SEMI JOIN known USING (user_id, provider, date)
QUALIFY row_number() OVER (PARTITION BY user_id, provider, date, project_id, line_item ORDER BY place) = 1
    AND was_there;
COMMENT ON MACRO TABLE costs_as_of IS 'daily_costs as we knew them at a moment. Exact for every moment of the last {exact_days} days and, before that, for the end of every UTC day.';
