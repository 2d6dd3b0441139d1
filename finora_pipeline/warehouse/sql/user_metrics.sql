-- user_metrics: a user's key figures, each with the previous period and a sparkline.
--
-- Grain: user, provider, metric, period.
-- Columns: value and previous_value in `unit`; change and covered_share as ratios.
-- The figures and periods are defined in `kpis.py`, which the dashboard uses, too.
-- Rules
--   1. Periods are UTC days up to and including today ($today): the last 7, 30 or 90 days, or the month so
--      far. The previous period is the equally long span before; for the month, the same days of the month
--      before (fewer where that month is shorter).
--   2. total_spend = Σ amount_usd. average_daily_cost = total_spend ÷ days of the period.
--   3. cost_per_1k_tokens = cost charged by the token, of models with tokens, ÷ (input + output tokens) × 1000;
--      `covered_share` is that cost's share of the charges, which are the spend without models whose credits exceed it.
--   4. top_model_share = spend of the most expensive model (named in `detail`; of equally expensive ones, the first
--      by name) ÷ the charges.
--   5. tokens_per_hour = (input + output tokens) ÷ (24 × days of the period); today counts as a whole day.
--   6. cost_per_request = total_spend ÷ requests to models; a request that searched the web counts once.
--   7. provider_share = total_spend ÷ the user's total_spend over all providers.
--   8. month_over_month = (total_spend − total_spend of the previous period) ÷ the latter, in every period.
--   9. Without a denominator a value is NULL, never 0 or infinity; also where a ratio is too large to be computed:
--      one user's numbers must not fail the computation of all users. `previous_value` is NULL unless the user is
--      known since the start of the previous period (month_over_month: of the one before that);
--      `change` = (value − previous_value) ÷ previous_value.
--  10. `sparkline` has the figure of each of the last {sparkline_days} days, each a period of its own.
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
    is_sample       BOOLEAN NOT NULL
);

-- [define]
COMMENT ON TABLE user_metrics IS 'A user''s key figures for the last 7, 30 and 90 days and the month, with the previous period and {sparkline_days} days of history.';
COMMENT ON COLUMN user_metrics.user_id IS 'User (tenant)';
COMMENT ON COLUMN user_metrics.provider IS 'Provider: openai';
COMMENT ON COLUMN user_metrics.metric IS 'total_spend, average_daily_cost, cost_per_1k_tokens, top_model_share, tokens_per_hour, cost_per_request, provider_share, month_over_month; and input_tokens, output_tokens, tokens, requests';
COMMENT ON COLUMN user_metrics.period IS '7d, 30d, 90d or month (so far)';
COMMENT ON COLUMN user_metrics.period_start IS 'First UTC day of the period';
COMMENT ON COLUMN user_metrics.period_end IS 'Last UTC day of the period: today, which is partial';
COMMENT ON COLUMN user_metrics.unit IS 'usd, usd_per_1k_tokens, usd_per_request, tokens, tokens_per_hour, requests or ratio';
COMMENT ON COLUMN user_metrics.value IS 'Figure; NULL without a denominator';
COMMENT ON COLUMN user_metrics.previous_value IS 'Figure of the previous period; NULL unless the user is known since its start';
COMMENT ON COLUMN user_metrics.change IS '(value - previous_value) / previous_value';
COMMENT ON COLUMN user_metrics.covered_share IS 'cost_per_1k_tokens: share of the charges that the figure covers';
COMMENT ON COLUMN user_metrics.detail IS 'top_model_share: the model';
COMMENT ON COLUMN user_metrics.sparkline IS 'Figure of each of the last {sparkline_days} UTC days, oldest first';
COMMENT ON COLUMN user_metrics.is_sample IS 'Computed from invented rows';

-- [macros]
-- Leaves: figure(metric, unit, …), a metric of a period (this), of the previous one (before) and of single days.
CREATE OR REPLACE TEMP MACRO figure(metric, unit, this, before, days) AS {
    'metric': metric,
    'unit': unit,
    'value': struct_extract(this, metric),
    'previous_value': struct_extract(before, metric),
    'sparkline': [struct_extract(day, metric) FOR day IN days]
};

-- [outdated]
-- Reads: pipeline.stale_users, user_metrics; $today.
-- Leaves: nothing; returns the users whose costs changed or whose figures are of another day.
SELECT user_id FROM pipeline.stale_users
UNION
SELECT user_id FROM user_metrics WHERE period_end <> $today::DATE
ORDER BY user_id;

-- [refresh]
-- Reads: users_to_compute (an Arrow table of some outdated users), metric_periods (an Arrow table: `kpis.Period` by
-- name), figure (macros), daily_model_costs; $today.
-- Leaves: the users' rows, who are stale no longer; computed_users, user_spans, metric_spans,
-- span_sums, span_values.
-- Users with data; user_spans numbers them, so that later joins do not compare texts.
CREATE OR REPLACE TEMP TABLE computed_users AS
SELECT user_id, provider
FROM (FROM pipeline.stale_users UNION SELECT user_id, provider FROM user_metrics)
SEMI JOIN users_to_compute USING (user_id);

CREATE OR REPLACE TEMP TABLE user_spans AS
SELECT
    row_number() OVER () AS row,
    dense_rank() OVER (ORDER BY user_id) AS person,
    user_id,
    provider,
    min(date) AS first_date,
    bool_or(is_sample) AS is_sample
FROM daily_model_costs
SEMI JOIN computed_users USING (user_id, provider)
GROUP BY user_id, provider;

-- The spans to sum up: each period (side 1), the previous one (0) and the one before that (-1), and each day of the
-- sparklines (2), with the day before the first; each with its prior span.
CREATE OR REPLACE TEMP TABLE metric_spans AS
WITH spans AS (
    SELECT period, 1 AS side, period_start AS span_start, $today::DATE AS span_end, 0 AS prior_side,
        previous_start AS prior_start
    FROM metric_periods
    UNION ALL
    SELECT period, 0, previous_start, previous_end, -1, before_start FROM metric_periods
    UNION ALL
    SELECT period, -1, before_start, before_end, NULL, NULL FROM metric_periods
    UNION ALL
    SELECT 'day', 2, day, day, 2, day - 1
    FROM (SELECT ($today::DATE - i::INTEGER)::DATE AS day FROM range({sparkline_days} + 1) AS r(i))
),
numbered AS (
    SELECT row_number() OVER (ORDER BY side, period, span_start) AS span, * FROM spans
)
SELECT this.* EXCLUDE (prior_side, prior_start), prior.span AS prior_span
FROM numbered AS this
LEFT JOIN numbered AS prior
    ON prior.period = this.period AND prior.side = this.prior_side AND prior.span_start = this.prior_start;

CREATE OR REPLACE TEMP TABLE span_sums AS
WITH model_sums AS (
    SELECT
        user.row,
        span.span,
        cost.model,
        sum(cost.amount_usd) AS amount_usd,
        sum(cost.token_priced_usd) FILTER (coalesce(cost.input_tokens, 0) + coalesce(cost.output_tokens, 0) > 0)
            AS covered_usd,
        sum(cost.input_tokens)::BIGINT AS input_tokens,
        sum(cost.output_tokens)::BIGINT AS output_tokens,
        sum(cost.requests)::BIGINT AS requests
    FROM daily_model_costs AS cost
    JOIN user_spans AS user USING (user_id, provider)
    JOIN metric_spans AS span ON cost.date BETWEEN span.span_start AND span.span_end
    -- No span starts earlier: three periods of 90 days.
    WHERE cost.date >= $today::DATE - 270
    GROUP BY ALL
)
SELECT
    user.row,
    user.person,
    span.span,
    span.prior_span,
    span.period,
    span.side,
    span.span_start,
    span.span_end - span.span_start + 1 AS days,
    coalesce(sum(model.amount_usd), 0) AS total,
    sum(model.amount_usd) FILTER (model.amount_usd > 0) AS charges,
    sum(model.covered_usd) AS covered,
    max(model.amount_usd) AS top_usd,
    min({'usd': -model.amount_usd, 'model': model.model}).model AS top_model,
    coalesce(sum(model.input_tokens), 0)::BIGINT AS input_tokens,
    coalesce(sum(model.output_tokens), 0)::BIGINT AS output_tokens,
    coalesce(sum(model.requests), 0)::BIGINT AS requests
FROM user_spans AS user
CROSS JOIN metric_spans AS span
LEFT JOIN model_sums AS model USING (row, span)
GROUP BY ALL;

CREATE OR REPLACE TEMP TABLE span_values AS
SELECT
    this.row,
    this.period,
    this.side,
    this.span_start,
    CASE this.side WHEN 1 THEN {covered_share} END AS covered_share,
    this.top_model,
    {kpi_values}
FROM span_sums AS this
JOIN (SELECT person, span, sum(total) AS total FROM span_sums GROUP BY ALL) AS everywhere USING (person, span)
LEFT JOIN span_sums AS prior ON prior.row = this.row AND prior.span = this.prior_span
WHERE this.side >= 0;

DELETE FROM user_metrics AS old USING computed_users AS computed
WHERE old.user_id = computed.user_id AND old.provider = computed.provider;

INSERT INTO user_metrics
WITH sparks AS (
    -- Sorted as a list by its first field, span_start: a sorted aggregate takes six times as long.
    SELECT row, list_sort(list(day)) AS days
    FROM (
        SELECT span_start, * EXCLUDE (span_start) FROM span_values
        WHERE side = 2 AND span_start > $today::DATE - {sparkline_days}
    ) AS day
    GROUP BY row
),
figures AS (
    SELECT
        user.user_id,
        user.provider,
        this.period,
        periods.period_start,
        user.is_sample,
        user.first_date <= periods.previous_start AS is_previous_known,
        user.first_date <= periods.before_start AS is_before_known,
        unnest([
            {kpi_figures}
        ]) AS figure,
        this.covered_share,
        this.top_model
    FROM user_spans AS user
    JOIN span_values AS this ON this.row = user.row AND this.side = 1
    JOIN span_values AS before ON before.row = user.row AND before.side = 0 AND before.period = this.period
    JOIN metric_periods AS periods ON periods.period = this.period
    JOIN sparks ON sparks.row = user.row
),
known AS (
    -- month_over_month needs a period more than the other figures.
    SELECT
        * EXCLUDE (figure, is_previous_known, is_before_known),
        figure.metric,
        figure.unit,
        figure.sparkline,
        CASE WHEN figure.metric <> 'month_over_month' OR is_previous_known THEN figure.value END AS value,
        CASE WHEN is_before_known OR figure.metric <> 'month_over_month' AND is_previous_known
            THEN figure.previous_value END AS previous_value
    FROM figures
)
SELECT
    user_id,
    provider,
    metric,
    period,
    period_start,
    $today::DATE,
    unit,
    value,
    previous_value,
    share_of(value - previous_value, previous_value),
    CASE metric WHEN 'cost_per_1k_tokens' THEN covered_share END,
    CASE WHEN metric = 'top_model_share' AND value IS NOT NULL THEN top_model END,
    sparkline,
    is_sample
FROM known;

DELETE FROM pipeline.stale_users AS done USING computed_users AS computed
WHERE done.user_id = computed.user_id AND done.provider = computed.provider;
