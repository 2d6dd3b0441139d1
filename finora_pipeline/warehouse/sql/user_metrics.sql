-- user_metrics: a user's key figures, each with the previous period and a sparkline.
--
-- Grain: user, provider, metric, period.
-- Columns: value and previous_value in `unit`; change in `change_unit`; covered_share as a ratio.
-- The figures and periods are defined in `kpis.py`, which the dashboard uses, too; docs/kpis.md has examples.
-- Rules
--   1. A day is known once its costs were fetched, and complete if that was after it ended (pipeline.known_days).
--      Periods are UTC days that end with the user's last complete day, `through_date`: 7, 30 or 90 days, or its
--      calendar month. The previous period is the equally long span before; for the month, the same days of the month
--      before (fewer where that month is shorter).
--   2. Averages divide by known days, `known_days`; a known day without charges is a day of zero. Without a known day a
--      value is NULL.
--   3. charges and credits are the sums of amounts above and below zero; total_spend is both. Shares are of charges:
--      top_model_share (the model is named in `detail`; of equal ones, the first by name) and provider_share.
--   4. cost_per_1k_tokens = cost charged by the token, of models with tokens, ÷ (input + output tokens) × 1000.
--      cost_per_request = total_spend ÷ requests; a request that searched the web counts once. Neither counts the
--      tokens and requests of moderation, which is free. `covered_share` is the share of the charges that is of such
--      models.
--   5. tokens_per_hour = (input + output tokens) ÷ (24 × days with known usage).
--   6. month_over_month, of the period `month` alone, is the growth of total_spend since the same days of the month
--      before. It has no previous value and no change.
--   7. `previous_value` is NULL unless every day of the previous period is known. `change` is (value − previous_value)
--      ÷ |previous_value|, for shares value − previous_value; NULL for sums unless every day of this period is known,
--      else unless half of them are.
--   8. today_so_far, of the period `today`, is the spend of today, as known at `known_until`; NULL until it is read.
--   9. Without a denominator a value is NULL, never 0 or infinity; also where a ratio is too large to be computed:
--      one user's numbers must not fail the computation of all users.
--  10. `sparkline` has the figure of each of the {sparkline_days} days up to through_date; NULL for an unknown day.
--  11. Money and tokens are exact; shares and changes are rounded to 12 decimals.

-- [create]
CREATE TABLE user_metrics (
    user_id         VARCHAR NOT NULL,
    provider        VARCHAR NOT NULL,
    metric          VARCHAR NOT NULL,
    period          VARCHAR NOT NULL,
    period_start    DATE NOT NULL,
    period_end      DATE NOT NULL,
    unit            VARCHAR NOT NULL,
    value           DECIMAL(38, 18),
    previous_value  DECIMAL(38, 18),
    change          DECIMAL(38, 18),
    covered_share   DECIMAL(38, 18),
    detail          VARCHAR,
    sparkline       DECIMAL(38, 18)[],
    is_sample       BOOLEAN NOT NULL,
    through_date    DATE,
    known_days      INTEGER,
    known_until     TIMESTAMPTZ,
    change_unit     VARCHAR
);

-- [define]
COMMENT ON TABLE user_metrics IS 'A user''s key figures for 7, 30 and 90 days and the month up to the last complete day, and of today so far.';
COMMENT ON COLUMN user_metrics.user_id IS 'User (tenant)';
COMMENT ON COLUMN user_metrics.provider IS 'Provider: openai';
COMMENT ON COLUMN user_metrics.metric IS 'total_spend, charges, credits, average_daily_cost, cost_per_1k_tokens, cost_per_request, top_model_share, provider_share, tokens_per_hour, month_over_month (period month), today_so_far (period today); input_tokens, output_tokens, tokens, requests';
COMMENT ON COLUMN user_metrics.period IS '7d, 30d, 90d or month, each up to through_date; today';
COMMENT ON COLUMN user_metrics.period_start IS 'First UTC day of the period';
COMMENT ON COLUMN user_metrics.period_end IS 'Last UTC day of the period: through_date, or today';
COMMENT ON COLUMN user_metrics.unit IS 'usd, usd_per_1k_tokens, usd_per_request, tokens, tokens_per_hour, requests or ratio';
COMMENT ON COLUMN user_metrics.value IS 'Figure; NULL if unknown, or without a denominator';
COMMENT ON COLUMN user_metrics.previous_value IS 'Figure of the previous period; NULL unless all its days are known';
COMMENT ON COLUMN user_metrics.change IS 'Change since the previous period, in change_unit; NULL where the two cannot be compared';
COMMENT ON COLUMN user_metrics.covered_share IS 'cost_per_1k_tokens, cost_per_request: share of the charges that is of models with such tokens or requests; NULL for other figures and without charges';
COMMENT ON COLUMN user_metrics.detail IS 'top_model_share: the model; NULL for other figures';
COMMENT ON COLUMN user_metrics.sparkline IS 'Figure of each of the {sparkline_days} UTC days up to through_date, oldest first; NULL for an unknown day';
COMMENT ON COLUMN user_metrics.is_sample IS 'Deprecated, always false: there are no sample rows any more';
COMMENT ON COLUMN user_metrics.through_date IS 'Last complete UTC day, with which the period ends; NULL for today';
COMMENT ON COLUMN user_metrics.known_days IS 'Days of the period whose costs are known: what averages divide by. Never NULL';
COMMENT ON COLUMN user_metrics.known_until IS 'today_so_far: time of the fetch (UTC); NULL for other figures and until today is fetched';
COMMENT ON COLUMN user_metrics.change_unit IS 'relative (0.1 = 10% more) or points (0.1 = ten points of a share); NULL without a change';

-- [through]
-- Reads: pipeline.known_days; $today.
-- Leaves: user_through, for each user with a known day the last complete one (without any: yesterday), and when today
-- was read.
CREATE OR REPLACE TEMP TABLE user_through AS
SELECT
    user_id,
    provider,
    coalesce(max(date) FILTER (is_complete AND date < $today::DATE), $today::DATE - 1) AS through_date,
    max(known_until) FILTER (date = $today::DATE) AS today_known_until
FROM pipeline.known_days
GROUP BY user_id, provider;

-- [outdated]
-- Reads: user_through (through), pipeline.stale_users, user_metrics.
-- Leaves: nothing; returns the users whose costs changed, whose figures end with another day, or who have none.
SELECT user_id, provider FROM pipeline.stale_users
UNION
SELECT coalesce(of_user.user_id, held.user_id), coalesce(of_user.provider, held.provider)
FROM user_through AS of_user
FULL JOIN (SELECT DISTINCT user_id, provider, through_date FROM user_metrics WHERE period = '7d') AS held
    USING (user_id, provider)
WHERE of_user.through_date IS DISTINCT FROM held.through_date
ORDER BY ALL;

-- [refresh]
-- Reads: users_to_compute (an Arrow table of some outdated users), metric_periods (an Arrow table: `kpis.Period` by
-- through_date and name), user_through (through), pipeline.known_days, daily_model_costs; $today.
-- Leaves: the users' rows in user_metrics and today's in daily_user_metrics; they are stale no longer; computed_users,
-- user_spans, metric_spans, model_days, day_sums, span_sums, span_values.
CREATE OR REPLACE TEMP TABLE computed_users AS
SELECT user_id, provider
FROM (
    SELECT user_id, provider FROM pipeline.stale_users
    UNION
    SELECT user_id, provider FROM user_metrics
    UNION
    SELECT user_id, provider FROM user_through
)
SEMI JOIN users_to_compute USING (user_id);

-- Users with a known day, numbered, so that later joins do not compare texts.
CREATE OR REPLACE TEMP TABLE user_spans AS
SELECT
    row_number() OVER (ORDER BY user_id, provider) AS row,
    dense_rank() OVER (ORDER BY user_id) AS person,
    user_id,
    provider,
    through_date
FROM user_through
SEMI JOIN computed_users USING (user_id, provider);

-- The spans to sum up, by the day with which they end: each period (side 1) and the previous one (0).
CREATE OR REPLACE TEMP TABLE metric_spans AS
SELECT through_date, period, 1 AS side, period_start AS span_start, through_date AS span_end FROM metric_periods
UNION ALL
SELECT through_date, period, 0, previous_start, previous_end FROM metric_periods;

CREATE OR REPLACE TEMP TABLE model_days AS
SELECT
    user.row,
    cost.date,
    cost.model,
    cost.amount_usd,
    cost.charges_usd,
    CASE WHEN is_billable AND coalesce(cost.input_tokens, 0) + coalesce(cost.output_tokens, 0) > 0
        THEN cost.token_priced_usd END AS covered_usd,
    CASE WHEN is_billable AND cost.requests > 0 THEN cost.charges_usd END AS requested_usd,
    coalesce(cost.input_tokens, 0) AS input_tokens,
    coalesce(cost.output_tokens, 0) AS output_tokens,
    coalesce(cost.requests, 0) AS requests,
    is_billable
FROM (
    -- Moderation is free. No span starts earlier: two periods of 90 days, or two months.
    SELECT *, cost_service IS DISTINCT FROM 'moderation' AS is_billable
    FROM daily_model_costs
) AS cost
JOIN user_spans AS user
    ON user.user_id = cost.user_id
    AND user.provider = cost.provider
    AND cost.date BETWEEN user.through_date - 180 AND user.through_date;

CREATE OR REPLACE TEMP TABLE day_sums AS
WITH usage_days AS (
    SELECT user_id, provider, date FROM pipeline.loaded_days WHERE endpoint = '{usage_known_by}'
),
known AS (
    SELECT user.row, days.date, usage_days.date IS NOT NULL AS is_usage_known
    FROM pipeline.known_days AS days
    JOIN user_spans AS user
        ON user.user_id = days.user_id
        AND user.provider = days.provider
        AND days.date BETWEEN user.through_date - 180 AND user.through_date
    LEFT JOIN usage_days
        ON usage_days.user_id = days.user_id
        AND usage_days.provider = days.provider
        AND usage_days.date = days.date
),
sums AS (
    SELECT
        row,
        date,
        sum(amount_usd) AS total,
        sum(charges_usd) AS charges,
        sum(covered_usd) AS covered,
        sum(requested_usd) AS requested,
        max(charges_usd) AS top_usd,
        sum(input_tokens)::BIGINT AS input_tokens,
        sum(output_tokens)::BIGINT AS output_tokens,
        sum(requests)::BIGINT AS requests,
        coalesce(sum(input_tokens + output_tokens) FILTER (is_billable), 0)::BIGINT AS unit_tokens,
        coalesce(sum(requests) FILTER (is_billable), 0)::BIGINT AS unit_requests
    FROM model_days
    GROUP BY ALL
)
SELECT
    row,
    date,
    known.row IS NOT NULL AS is_known,
    coalesce(is_usage_known, false) AS is_usage_known,
    sums.* EXCLUDE (row, date)
FROM known
-- A day with usage alone is not known, but its tokens count.
FULL JOIN sums USING (row, date);

CREATE OR REPLACE TEMP TABLE span_sums AS
WITH tops AS (
    SELECT row, period, side, max(usd) AS top_usd, min({'usd': -usd, 'model': model}).model AS top_model
    FROM (
        SELECT cost.row, span.period, span.side, cost.model, sum(cost.charges_usd) AS usd
        FROM model_days AS cost
        JOIN user_spans AS user USING (row)
        JOIN metric_spans AS span
            ON span.through_date = user.through_date AND cost.date BETWEEN span.span_start AND span.span_end
        GROUP BY ALL
    )
    GROUP BY ALL
),
spans AS (
    SELECT user.row, user.person, span.period, span.side, span.span_start, span.span_end
    FROM user_spans AS user
    JOIN metric_spans AS span USING (through_date)
    UNION ALL
    -- The days of the sparkline, each a span of its own (side 2).
    SELECT user.row, user.person, 'day', 2, day, day
    FROM (
        SELECT row, person, unnest([through_date - i::INTEGER FOR i IN range({sparkline_days})]) AS day FROM user_spans
    ) AS user
),
sums AS (
    SELECT
        span.row,
        span.person,
        span.period,
        span.side,
        span.span_start,
        span.span_end - span.span_start + 1 AS days,
        count(*) FILTER (day.is_known) AS known_days,
        count(*) FILTER (day.is_usage_known) AS usage_days,
        coalesce(sum(day.total), 0) AS total,
        coalesce(sum(day.charges), 0) AS charges,
        coalesce(sum(day.total), 0) - coalesce(sum(day.charges), 0) AS credits,
        sum(day.covered) AS covered,
        sum(day.requested) AS requested,
        max(day.top_usd) AS top_usd,
        coalesce(sum(day.input_tokens), 0)::BIGINT AS input_tokens,
        coalesce(sum(day.output_tokens), 0)::BIGINT AS output_tokens,
        coalesce(sum(day.requests), 0)::BIGINT AS requests,
        coalesce(sum(day.unit_tokens), 0)::BIGINT AS unit_tokens,
        coalesce(sum(day.unit_requests), 0)::BIGINT AS unit_requests
    FROM spans AS span
    LEFT JOIN day_sums AS day ON day.row = span.row AND day.date BETWEEN span.span_start AND span.span_end
    GROUP BY ALL
)
-- The top of a day is that of day_sums.
SELECT sums.* REPLACE (CASE side WHEN 2 THEN sums.top_usd ELSE tops.top_usd END AS top_usd), tops.top_model
FROM sums
LEFT JOIN tops USING (row, period, side);

CREATE OR REPLACE TEMP TABLE span_values AS
SELECT
    this.row,
    this.period,
    this.side,
    this.span_start,
    this.days,
    this.known_days,
    this.top_model,
    {covered_shares},
    {kpi_values}
FROM span_sums AS this
JOIN (SELECT person, period, side, span_start, sum(charges) AS charges FROM span_sums GROUP BY ALL) AS everywhere
    USING (person, period, side, span_start)
LEFT JOIN (SELECT * REPLACE (side + 1 AS side) FROM span_sums WHERE side = 0) AS prior
    ON prior.row = this.row AND prior.period = this.period AND prior.side = this.side;

DELETE FROM user_metrics AS old USING computed_users AS computed
WHERE old.user_id = computed.user_id AND old.provider = computed.provider AND old.metric <> '{today_so_far}';

INSERT INTO user_metrics
WITH sparks AS (
    -- Sorted as a list by its first field, span_start: a sorted aggregate takes six times as long.
    SELECT row, list_sort(list(day)) AS days
    FROM (SELECT span_start, * EXCLUDE (span_start) FROM span_values WHERE side = 2) AS day
    GROUP BY row
),
figures AS (
    SELECT
        user.user_id,
        user.provider,
        user.through_date,
        this.period,
        this.span_start,
        this.known_days,
        this.top_model,
        unnest([
            {kpi_figures}
        ]) AS figure
    FROM user_spans AS user
    JOIN span_values AS this ON this.row = user.row AND this.side = 1
    JOIN span_values AS prior ON prior.row = user.row AND prior.side = 0 AND prior.period = this.period
    JOIN sparks ON sparks.row = user.row
)
SELECT
    user_id,
    provider,
    figure.metric,
    period,
    span_start,
    through_date,
    figure.unit,
    figure.value,
    figure.previous_value,
    figure.change,
    figure.covered_share,
    CASE WHEN figure.metric = 'top_model_share' AND figure.value IS NOT NULL THEN top_model END,
    figure.sparkline,
    false,
    through_date,
    known_days,
    NULL,
    figure.change_unit
FROM figures
WHERE figure.metric <> 'month_over_month' OR period = 'month';

DELETE FROM daily_user_metrics AS old USING computed_users AS computed
WHERE old.user_id = computed.user_id AND old.provider = computed.provider AND old.as_of_date = $today::DATE;

INSERT INTO daily_user_metrics
SELECT user_id, provider, $today::DATE, metric, period, through_date, known_days, unit, value
FROM user_metrics
SEMI JOIN computed_users USING (user_id, provider)
WHERE metric <> '{today_so_far}';

INSERT INTO pipeline.unpublished_months
SELECT 'daily_user_metrics', date_trunc('month', $today::DATE)::DATE
EXCEPT
FROM pipeline.unpublished_months;

DELETE FROM pipeline.stale_users AS done USING computed_users AS computed
WHERE done.user_id = computed.user_id AND done.provider = computed.provider;

-- [today]
-- Reads: user_through (through), daily_model_costs; $today.
-- Leaves: a row of today_so_far for each user with a known day, written again only where it changed; today_rows.
CREATE OR REPLACE TEMP TABLE today_rows AS
SELECT
    user_id,
    provider,
    today_known_until AS known_until,
    CASE WHEN today_known_until IS NOT NULL THEN coalesce(total, 0) END AS value
FROM user_through
LEFT JOIN (
    SELECT user_id, provider, sum(amount_usd) AS total
    FROM daily_model_costs
    WHERE date = $today::DATE
    GROUP BY user_id, provider
) USING (user_id, provider);

DELETE FROM user_metrics AS old
WHERE metric = '{today_so_far}' AND NOT EXISTS (
    FROM today_rows AS new
    WHERE new.user_id = old.user_id
      AND new.provider = old.provider
      AND old.period_end = $today::DATE
      AND new.known_until IS NOT DISTINCT FROM old.known_until
      AND new.value IS NOT DISTINCT FROM old.value
);

INSERT INTO user_metrics BY NAME
SELECT
    user_id,
    provider,
    '{today_so_far}' AS metric,
    'today' AS period,
    $today::DATE AS period_start,
    $today::DATE AS period_end,
    'usd' AS unit,
    value,
    false AS is_sample,
    (known_until IS NOT NULL)::INTEGER AS known_days,
    known_until
FROM today_rows
WHERE NOT EXISTS (
    FROM user_metrics AS old
    WHERE old.metric = '{today_so_far}' AND old.user_id = today_rows.user_id AND old.provider = today_rows.provider
);
