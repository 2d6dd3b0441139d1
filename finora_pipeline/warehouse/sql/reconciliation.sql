-- reconciliation: each day of daily_costs against other figures of OpenAI's, with the differences.
--
-- Grain: user, provider, date.
-- Columns: *_usd in USD, exact but for price_residual_usd; *_tokens in tokens.
-- Rules
--   1. residual_usd = OpenAI's total of the day, fetched ungrouped, − Σ daily_costs. The total is fetched a moment
--      later, so a day that OpenAI is still booking may differ.
--   2. token_residual = tokens billed (Σ quantity of charges by the token) − tokens used (Σ input + output of
--      daily_usage without moderations, which are free). OpenAI counts the two separately. Above zero: costs
--      without usage (live sessions, for one); below zero: usage without costs (complimentary tokens). Both are
--      normal. Training tokens are in neither.
--   3. price_residual_usd = Σ |amount − quantity × price| over the charges of a final day; the price is amount ÷
--      quantity of the last day, within {price_days} days before, on which the charge had one. A price list that
--      changes shows here, once.
--   4. `severity` of residual_usd: ok (0), info (a day that is not final), warning (under a cent) or error; also
--      error where charges have no amount. A day is final after {final_after_days} days. NULL where the total was
--      not fetched.
--   5. `month_state`: open during the month, closing until day {closing_days} of the next (it is fetched again
--      daily), then closed.

-- [create]
CREATE TABLE pipeline.reconciled_days (
    user_id               VARCHAR NOT NULL,
    provider              VARCHAR NOT NULL,
    date                  DATE NOT NULL,
    api_total_usd         DECIMAL(38, 18),
    facts_usd             DECIMAL(38, 18) NOT NULL,
    billed_tokens         DECIMAL(38, 18),
    used_tokens           BIGINT,
    price_residual_usd    DECIMAL(38, 18),
    lines_without_amount  BIGINT NOT NULL
);

-- [define]
CREATE OR REPLACE VIEW reconciliation AS
SELECT
    user_id,
    provider,
    date,
    api_total_usd,
    facts_usd,
    api_total_usd - facts_usd AS residual_usd,
    billed_tokens,
    used_tokens,
    (billed_tokens - used_tokens)::DECIMAL(38, 18) AS token_residual,
    CASE WHEN is_final(date, today) THEN price_residual_usd END AS price_residual_usd,
    lines_without_amount,
    CASE
        WHEN lines_without_amount > 0 THEN 'error'
        WHEN api_total_usd IS NULL THEN NULL
        WHEN api_total_usd = facts_usd THEN 'ok'
        WHEN NOT is_final(date, today) THEN 'info'
        WHEN abs(api_total_usd - facts_usd) < 0.01 THEN 'warning'
        ELSE 'error'
    END AS severity,
    month_state(date, today) AS month_state
FROM pipeline.reconciled_days
-- UTC: current_date would be a day in the reader's time zone.
CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::DATE AS today);
COMMENT ON VIEW reconciliation IS 'Each day of daily_costs against OpenAI''s total, the tokens used and the prices of the days before.';
COMMENT ON COLUMN reconciliation.user_id IS 'User (tenant)';
COMMENT ON COLUMN reconciliation.provider IS 'Provider: openai';
COMMENT ON COLUMN reconciliation.date IS 'UTC day';
COMMENT ON COLUMN reconciliation.api_total_usd IS 'OpenAI''s own total of the day (USD), fetched ungrouped a moment after the charges; NULL if it was not fetched';
COMMENT ON COLUMN reconciliation.facts_usd IS 'Sum of amount_usd of daily_costs (USD)';
COMMENT ON COLUMN reconciliation.residual_usd IS 'api_total_usd − facts_usd (USD); NULL without a total';
COMMENT ON COLUMN reconciliation.billed_tokens IS 'Tokens of charges by the token; NULL if there are none';
COMMENT ON COLUMN reconciliation.used_tokens IS 'Input and output tokens of daily_usage without moderation, which is free; NULL without usage';
COMMENT ON COLUMN reconciliation.token_residual IS 'billed_tokens − used_tokens: above zero for costs without usage, below zero for usage without costs; NULL where one of the two is';
COMMENT ON COLUMN reconciliation.price_residual_usd IS 'Sum of |amount − quantity × last price| over the charges (USD, rounded to 9 decimals): above zero where a price changed. NULL on a day that is not final, or without earlier prices';
COMMENT ON COLUMN reconciliation.lines_without_amount IS 'Number of charges without an amount';
COMMENT ON COLUMN reconciliation.severity IS 'ok, info (a difference on a day that is not final), warning (under a cent) or error (also charges without an amount); NULL without a total';
COMMENT ON COLUMN reconciliation.month_state IS 'open during the month, closing until day {closing_days} of the next, then closed';

-- [refresh]
-- Reads: split_days, charge_sums, used (attribution.sql, prepare).
-- Leaves: the rows of the days in split_days.
DELETE FROM pipeline.reconciled_days AS old
USING split_days AS split
WHERE old.user_id = split.user_id AND old.provider = split.provider AND old.date = split.date;

INSERT INTO pipeline.reconciled_days
WITH totals AS (
    SELECT split.day, coalesce(sum(total.amount_usd), 0) AS api_total_usd
    FROM pipeline.loaded_days AS loaded
    JOIN split_days AS split USING (user_id, provider, date)
    LEFT JOIN (FROM pipeline.billed_costs WHERE reading = 'cost_totals') AS total USING (user_id, provider, date)
    WHERE loaded.endpoint = 'cost_totals'
    GROUP BY ALL
),
facts AS (
    SELECT
        day,
        coalesce(sum(amount_usd), 0) AS facts_usd,
        sum(billed_tokens) AS billed_tokens,
        sum(lines_without_amount)::BIGINT AS lines_without_amount
    FROM charge_sums
    GROUP BY ALL
),
used_sums AS (
    SELECT day, sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0))::BIGINT AS used_tokens
    FROM used
    WHERE service <> 'moderations'
    GROUP BY ALL
),
spans AS (
    SELECT user_id, provider, min(date) - {price_days} AS first_date, max(date) AS last_date FROM split_days GROUP BY ALL
),
-- Numbers only: with texts in each row, sorting takes six times as long.
lines AS MATERIALIZED (
    SELECT
        split.day,
        costs.date,
        hash(costs.user_id, costs.provider, project_id, line_item) AS line,
        amount_usd::DOUBLE AS amount,
        quantity::DOUBLE AS quantity
    FROM daily_costs AS costs
    JOIN spans
        ON spans.user_id = costs.user_id
        AND spans.provider = costs.provider
        AND costs.date BETWEEN spans.first_date AND spans.last_date
    LEFT JOIN split_days AS split
        ON split.user_id = costs.user_id AND split.provider = costs.provider AND split.date = costs.date
    WHERE amount_usd IS NOT NULL AND costs.quantity > 0
),
priced_lines AS (
    SELECT
        day, date, amount, quantity, lag(date) OVER of_line AS last_date,
        lag(amount / quantity) OVER of_line AS last_price
    FROM lines
    WINDOW of_line AS (PARTITION BY line ORDER BY date)
),
price_residuals AS (
    SELECT day, try_cast(round(sum(abs(amount - quantity * last_price)), 9) AS DECIMAL(38, 18)) AS price_residual_usd
    FROM priced_lines
    WHERE day IS NOT NULL AND last_date >= date - {price_days}
    GROUP BY ALL
)
SELECT
    split.user_id,
    split.provider,
    split.date,
    totals.api_total_usd,
    coalesce(facts.facts_usd, 0),
    facts.billed_tokens,
    used_sums.used_tokens,
    price_residuals.price_residual_usd,
    coalesce(facts.lines_without_amount, 0)
FROM split_days AS split
LEFT JOIN totals USING (day)
LEFT JOIN facts USING (day)
LEFT JOIN used_sums USING (day)
LEFT JOIN price_residuals USING (day)
WHERE totals.api_total_usd IS NOT NULL OR facts.facts_usd IS NOT NULL OR used_sums.used_tokens IS NOT NULL;

-- [check]
-- Reads: reconciliation.
-- Leaves: nothing; returns the number of days that do not reconcile and their USD, by severity.
SELECT severity, count(*), coalesce(sum(abs(residual_usd)), 0) FROM reconciliation WHERE severity <> 'ok' GROUP BY severity;

-- [token_check]
-- Reads: reconciliation.
-- Leaves: nothing; returns the number of days whose tokens billed and used differ and their tokens, by kind.
SELECT
    CASE WHEN token_residual > 0 THEN 'costs without use' ELSE 'use without costs' END AS kind,
    count(*),
    sum(abs(token_residual))::DECIMAL(38, 0)
FROM reconciliation
WHERE token_residual <> 0
GROUP BY ALL;
