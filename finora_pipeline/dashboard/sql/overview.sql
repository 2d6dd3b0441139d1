-- From `days`, read once: what the chart stacks, the sums of the spans that are compared, and the last 14 days.
-- `part` says which; `at` is the first day of a bar or the day.
SELECT
    'chart' AS part,
    date_trunc($bucket, date)::DATE AS at,
    model,
    sum(amount_usd) AS amount_usd,
    sum(covered_usd) AS covered_usd,
    sum(input_tokens)::BIGINT AS input_tokens,
    sum(output_tokens)::BIGINT AS output_tokens
FROM days
WHERE date BETWEEN $first AND $last
GROUP BY ALL
UNION ALL
SELECT span, NULL, model, sum(amount_usd), sum(covered_usd), sum(input_tokens)::BIGINT, sum(output_tokens)::BIGINT
FROM days
JOIN (
    VALUES
        ('previous', $previous_first::DATE, $previous_last::DATE),
        ('month', $month_first::DATE, $today::DATE),
        ('month before', $month_before_first::DATE, $month_before_last::DATE)
) AS spans(span, span_first, span_last) ON date BETWEEN span_first AND span_last
GROUP BY ALL
UNION ALL
SELECT 'day', date, model, sum(amount_usd), sum(covered_usd), sum(input_tokens)::BIGINT, sum(output_tokens)::BIGINT
FROM days
WHERE date > $last::DATE - 14 AND date <= $last
GROUP BY ALL
ORDER BY ALL;
