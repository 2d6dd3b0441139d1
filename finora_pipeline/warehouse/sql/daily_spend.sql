-- daily_spend: every day of a user from the first known one to today, known or not.
--
-- Grain: user, provider, date.
-- Columns: *_usd in USD, exact; tokens and requests as in daily_model_costs.
-- Rules
--   1. A known day without charges is zero; the figures of an unknown day are NULL.
--   2. tokens and requests are also NULL where the usage of the day is unknown.
--   3. Final days and the state of a month are those of reconciliation.sql.

-- [define]
CREATE OR REPLACE VIEW daily_spend AS
WITH days AS (
    SELECT user_id, provider, unnest(generate_series(min(date), today, INTERVAL 1 DAY))::DATE AS date, today
    FROM pipeline.loaded_days
    -- UTC: current_date would be a day in the reader's time zone.
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::DATE AS today)
    WHERE endpoint = 'costs'
    GROUP BY user_id, provider, today
),
sums AS (
    SELECT
        user_id,
        provider,
        date,
        sum(charges_usd) AS charges_usd,
        sum(amount_usd) AS net_usd,
        sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0))::BIGINT AS tokens,
        sum(coalesce(requests, 0))::BIGINT AS requests
    FROM daily_model_costs
    GROUP BY user_id, provider, date
),
usage_days AS (
    SELECT user_id, provider, date FROM pipeline.loaded_days WHERE endpoint = '{usage_known_by}'
)
SELECT
    days.user_id,
    days.provider,
    days.date,
    CASE WHEN known.date IS NOT NULL THEN coalesce(sums.charges_usd, 0)::DECIMAL(38, 18) END AS charges_usd,
    CASE WHEN known.date IS NOT NULL
        THEN (coalesce(sums.net_usd, 0) - coalesce(sums.charges_usd, 0))::DECIMAL(38, 18) END AS credits_usd,
    CASE WHEN known.date IS NOT NULL THEN coalesce(sums.net_usd, 0)::DECIMAL(38, 18) END AS net_usd,
    CASE WHEN known.date IS NOT NULL AND usage_days.date IS NOT NULL THEN coalesce(sums.tokens, 0) END AS tokens,
    CASE WHEN known.date IS NOT NULL AND usage_days.date IS NOT NULL THEN coalesce(sums.requests, 0) END AS requests,
    known.date IS NOT NULL AS is_known,
    coalesce(known.is_complete, false) AS is_complete,
    coalesce(known.is_complete, false) AND is_final(days.date, days.today) AS is_final,
    month_state(days.date, days.today) AS month_state
FROM days
LEFT JOIN pipeline.known_days AS known
    ON known.user_id = days.user_id AND known.provider = days.provider AND known.date = days.date
LEFT JOIN usage_days
    ON usage_days.user_id = days.user_id AND usage_days.provider = days.provider AND usage_days.date = days.date
LEFT JOIN sums ON sums.user_id = days.user_id AND sums.provider = days.provider AND sums.date = days.date;
COMMENT ON VIEW daily_spend IS 'Spend of every UTC day from the first known one to today: zero where known, NULL where not.';
COMMENT ON COLUMN daily_spend.user_id IS 'User (tenant)';
COMMENT ON COLUMN daily_spend.provider IS 'Provider: openai';
COMMENT ON COLUMN daily_spend.date IS 'UTC day';
COMMENT ON COLUMN daily_spend.charges_usd IS 'Amounts above zero (USD); NULL for an unknown day';
COMMENT ON COLUMN daily_spend.credits_usd IS 'Amounts below zero (USD); NULL for an unknown day';
COMMENT ON COLUMN daily_spend.net_usd IS 'charges_usd + credits_usd (USD); NULL for an unknown day';
COMMENT ON COLUMN daily_spend.tokens IS 'Input and output tokens; NULL where the usage is unknown';
COMMENT ON COLUMN daily_spend.requests IS 'Requests to models; NULL where the usage is unknown';
COMMENT ON COLUMN daily_spend.is_known IS 'Whether the costs of the day were fetched, zero or not';
COMMENT ON COLUMN daily_spend.is_complete IS 'Whether they were fetched after the day ended';
COMMENT ON COLUMN daily_spend.is_final IS 'Whether the day is complete and OpenAI restates it no more, by the rule of reconciliation';
COMMENT ON COLUMN daily_spend.month_state IS 'open during the month, closing until day {closing_days} of the next, then closed';
