-- Grain: part, at and model. Sums over `days`, which is scanned once; all amounts in USD. `part` is one of
--   1. now, previous, month, month before, day: the sums of a span; `at` is its first UTC day, top_usd its top model's;
--   2. model: the amount of each model in the period;
--   3. chart: the amount of each bar (`at` is its first day) and model. An organization may have thousands of models:
--      those after the `named` highest are one row with model NULL.
WITH spans AS (
    FROM (
        VALUES
            ('now', $first::DATE, $last::DATE),
            ('previous', $previous_first::DATE, $previous_last::DATE),
            ('month', $month_first::DATE, $today::DATE),
            ('month before', $month_before_first::DATE, $month_before_last::DATE)
    ) AS spans(part, span_first, span_last)
    UNION ALL
    SELECT 'day', day::DATE, day::DATE FROM range($sparkline_first::DATE, $last::DATE + 1, INTERVAL 1 DAY) AS days(day)
),
by_span AS (
    SELECT
        part,
        span_first,
        model,
        sum(amount_usd) AS amount_usd,
        sum(covered_usd) AS covered_usd,
        sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens
    FROM days
    JOIN spans ON date BETWEEN span_first AND span_last
    GROUP BY ALL
),
named AS (
    SELECT model FROM by_span WHERE part = 'now' ORDER BY amount_usd DESC, model LIMIT $named
)
SELECT
    part,
    span_first AS at,
    NULL AS model,
    sum(amount_usd) AS amount_usd,
    max(amount_usd) AS top_usd,
    sum(covered_usd) AS covered_usd,
    sum(input_tokens)::BIGINT AS input_tokens,
    sum(output_tokens)::BIGINT AS output_tokens,
    sum(amount_usd) FILTER (amount_usd > 0) AS charged_usd
FROM by_span
GROUP BY part, span_first
UNION ALL
SELECT 'model', NULL, model, amount_usd, amount_usd, NULL, NULL, NULL, NULL
FROM by_span
WHERE part = 'now'
UNION ALL
SELECT
    'chart',
    date_trunc($bucket, date)::DATE,
    CASE WHEN model IN (SELECT model FROM named) THEN model END,
    sum(amount_usd),
    NULL,
    NULL,
    NULL,
    NULL,
    NULL
FROM days
WHERE date BETWEEN $first AND $last
GROUP BY ALL
