-- Grain: part, at and model. Sums over `days`, which is scanned once; all amounts in USD. `part` is one of
--   1. now, previous, month, month before, day: a span; `at` is its first UTC day. It has its known days and usage,
--      charges, the figures of `kpis.OVERVIEW`, and how they have changed since the span before it;
--   2. model: the amount of each model in the period, and its charges;
--   3. chart: the amount of each bar (`at` is its first day) and model. An organization may have thousands of models: those after the `named`
--      highest are one row with model NULL.
-- The spans are the lists $parts, $span_firsts, $span_lasts and $prior_parts (the span before), with how many of their
-- days are known and have known usage.
WITH spans AS (
    SELECT
        unnest($parts::VARCHAR[]) AS part,
        unnest($span_firsts::DATE[]) AS span_first,
        unnest($span_lasts::DATE[]) AS span_last,
        unnest($prior_parts::VARCHAR[]) AS prior_part,
        unnest($known_days::BIGINT[]) AS known_days,
        unnest($usage_days::BIGINT[]) AS usage_days
),
by_span AS (
    SELECT
        part,
        span_first,
        model,
        sum(amount_usd) AS amount_usd,
        sum(charges_usd) AS charges_usd,
        sum(covered_usd) AS covered_usd,
        sum(input_tokens) AS input_tokens,
        sum(output_tokens) AS output_tokens,
        sum(unit_tokens) AS unit_tokens
    FROM days
    JOIN spans ON date BETWEEN span_first AND span_last
    GROUP BY ALL
),
named AS (
    SELECT model FROM by_span WHERE part = 'now' ORDER BY amount_usd DESC, model LIMIT $named
),
sums AS (
    SELECT
        part,
        span_first,
        prior_part,
        span_last - span_first + 1 AS days,
        known_days,
        usage_days,
        coalesce(sum(amount_usd), 0) AS total,
        coalesce(sum(charges_usd), 0) AS charges,
        max(charges_usd) AS top_usd,
        min({'usd': -charges_usd, 'model': model}).model AS top_model,
        sum(covered_usd) AS covered,
        coalesce(sum(input_tokens), 0)::BIGINT AS input_tokens,
        coalesce(sum(output_tokens), 0)::BIGINT AS output_tokens,
        coalesce(sum(unit_tokens), 0)::BIGINT AS unit_tokens
    FROM spans
    LEFT JOIN by_span USING (part, span_first)
    GROUP BY part, span_first, span_last, prior_part, known_days, usage_days
),
figures AS (
    SELECT
        this.part,
        this.span_first,
        this.prior_part,
        this.days,
        this.known_days,
        this.usage_days,
        this.total,
        this.charges,
        this.top_model,
        {covered_share} AS covered_share,
        {overview_values}
    FROM sums AS this
)
SELECT
    this.part,
    this.span_first AS at,
    this.top_model AS model,
    this.total_spend AS amount_usd,
    this.charges AS charges_usd,
    this.known_days AS days,
    this.usage_days,
    this.covered_share,
    {growth} AS growth,
    {overview_columns},
    {overview_changes}
FROM figures AS this
LEFT JOIN figures AS prior ON prior.part = this.prior_part
UNION ALL
SELECT 'model', NULL, model, amount_usd, charges_usd, {overview_nulls}
FROM by_span
WHERE part = 'now'
UNION ALL
SELECT
    'chart',
    date_trunc($bucket, date)::DATE,
    CASE WHEN model IN (SELECT model FROM named) THEN model END,
    sum(amount_usd),
    NULL,
    {overview_nulls}
FROM days
WHERE date BETWEEN $first AND $last
GROUP BY ALL
