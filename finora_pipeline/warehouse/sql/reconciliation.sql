-- reconciliation: what we hold of a day against what OpenAI says otherwise, with what is left over.
--
-- Grain: user, provider, date.
-- Rules
--   1. residual_usd = OpenAI's own total of the day, read ungrouped, − Σ daily_costs. The total is read a moment
--      later, so that a day still being booked may differ.
--   2. token_residual = tokens billed (Σ quantity of lines charged by the token) − tokens used (Σ input +
--      output of daily_usage without moderations, which are free). OpenAI counts the two apart. Above zero there
--      are costs without use (live sessions, for one), below zero use without costs (complimentary tokens): both
--      are normal. Tokens of training are in neither.
--   3. price_residual_usd = Σ |amount − quantity × price| over the lines of a final day that had a price in the
--      seven days before; a line's price is amount ÷ quantity of the last of those days on which it had one. A
--      price list that changes shows here, once.
--   4. `severity` is of residual_usd: ok (0), info (a day that is not final), warning (under a cent) or error; and
--      error where lines have come without an amount. A day is final when it is 3 days old. NULL where the total
--      has not been read.
--   5. `month_state`: open while the month goes on, closing until the 7th of the next (it is read again daily),
--      then closed.

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
    CASE WHEN date <= today - 3 THEN price_residual_usd END AS price_residual_usd,
    lines_without_amount,
    CASE
        WHEN lines_without_amount > 0 THEN 'error'
        WHEN api_total_usd IS NULL THEN NULL
        WHEN api_total_usd = facts_usd THEN 'ok'
        WHEN date > today - 3 THEN 'info'
        WHEN abs(api_total_usd - facts_usd) < 0.01 THEN 'warning'
        ELSE 'error'
    END AS severity,
    CASE
        WHEN date >= date_trunc('month', today) THEN 'open'
        WHEN date >= date_trunc('month', today) - INTERVAL 1 MONTH AND day(today) <= 7 THEN 'closing'
        ELSE 'closed'
    END AS month_state
FROM pipeline.reconciled_days
-- Days are UTC's: current_date would be the day in the time zone of whoever reads.
CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::DATE AS today);
COMMENT ON VIEW reconciliation IS 'What we hold of each day against what OpenAI says otherwise: its own total, tokens used, prices of the days before.';

-- [refresh]
-- Recomputes the days in `split_days`.
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
    WHERE NOT is_sample
    GROUP BY ALL
),
used_sums AS (
    SELECT day, sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0))::BIGINT AS used_tokens
    FROM used
    WHERE NOT is_sample AND service <> 'moderations'
    GROUP BY ALL
),
spans AS (
    SELECT user_id, provider, min(date) - 7 AS first_date, max(date) AS last_date FROM split_days GROUP BY ALL
),
-- Nothing but numbers from here on: with texts beside each line, sorting takes six times as long.
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
    WHERE amount_usd IS NOT NULL AND costs.quantity > 0 AND NOT is_sample
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
    WHERE day IS NOT NULL AND last_date >= date - 7
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
-- How many days do not reconcile, by severity.
SELECT severity, count(*), coalesce(sum(abs(residual_usd)), 0) FROM reconciliation WHERE severity <> 'ok' GROUP BY severity;

-- [token_check]
-- On how many days tokens billed and used differ, by which there are more of.
SELECT
    CASE WHEN token_residual > 0 THEN 'costs without use' ELSE 'use without costs' END AS kind,
    count(*),
    sum(abs(token_residual))::DECIMAL(38, 0)
FROM reconciliation
WHERE token_residual <> 0
GROUP BY ALL;
