-- Who caused each charge: every amount of daily_costs split by member and by API key.
--
-- Rules
--   1. billed: where OpenAI splits the costs of a day by member (or key) itself, its amounts are taken. What
--      its split lacks, or has too much since it was read a moment later, stands under no member (NULL).
--   2. allocated: elsewhere an amount of a day, project and line item is split by use: of the members who used
--      the line's model in that project on that day, each bears the part of the amount that is their part of
--      the tokens of the line's direction (uncached input, cached input, output, cache writes), of its images,
--      seconds or characters where the line names no direction, or of the requests where all those are 0.
--      A line without a model is split by the calls of the service that it names.
--   3. The parts are whole 10^-18 dollars; what is left after rounding down goes, one each, to the parts with
--      the largest remainder. So they add up to the amount, to the last digit.
--   4. What nobody's use matches stands under no member (NULL).
--   5. Usage names some models without their date of release: as in daily_model_costs.

-- [create]
-- An amount in whole 10^-18 dollars and back.
CREATE MACRO to_units(amount) AS replace(amount::DECIMAL(38, 18)::VARCHAR, '.', '')::HUGEINT;
CREATE MACRO from_units(units) AS
    (units // 1000000000000000000)::DECIMAL(38, 18)
    + (units % 1000000000000000000)::DECIMAL(18, 0) * 0.000000000000000001::DECIMAL(18, 18);

-- [prepare]
-- Some of the days whose facts changed: memory holds so many at once.
CREATE OR REPLACE TEMP TABLE split_days AS
FROM pipeline.stale_days ORDER BY user_id, provider, date LIMIT $days;

-- Use by member and key on these days, in the measures that lines are priced by.
CREATE OR REPLACE TEMP TABLE used AS
SELECT
    user_id,
    provider,
    date,
    project_id,
    CASE service
        WHEN 'web_search_calls' THEN 'web search tool calls'
        WHEN 'file_search_calls' THEN 'file search'
        ELSE model
    END AS used_model,
    member_id,
    api_key_id,
    sum(coalesce(
        input_uncached_tokens,
        input_tokens - coalesce(input_cached_tokens, 0) - coalesce(input_cache_write_tokens, 0),
        0
    ))::BIGINT AS input,
    sum(coalesce(input_cached_tokens, 0))::BIGINT AS cached_input,
    sum(coalesce(output_tokens, 0))::BIGINT AS output,
    sum(coalesce(input_cache_write_tokens, 0))::BIGINT AS cache_write,
    sum(coalesce(images, 0) + coalesce(seconds, 0) + coalesce(characters, 0))::BIGINT AS other,
    sum(coalesce(requests, calls, 0))::BIGINT AS requests
FROM daily_usage
SEMI JOIN split_days USING (user_id, provider, date)
GROUP BY ALL;

-- What was used of one model in one project on one day, and by whom if by one alone.
CREATE OR REPLACE TEMP TABLE pools AS
SELECT
    user_id,
    provider,
    date,
    project_id,
    used_model,
    min(coalesce(member_id, '')) <> max(coalesce(member_id, '')) AS has_members,
    min(coalesce(api_key_id, '')) <> max(coalesce(api_key_id, '')) AS has_keys,
    any_value(member_id) AS only_member,
    any_value(api_key_id) AS only_key
FROM used
GROUP BY ALL;

-- Each charge (a row of daily_costs) with the use that it is split by.
CREATE OR REPLACE TEMP TABLE charge_pools AS
SELECT costs.rowid AS charge, pools.rowid AS pool
FROM daily_costs AS costs
SEMI JOIN split_days USING (user_id, provider, date)
JOIN pools
    ON pools.user_id = costs.user_id
    AND pools.provider = costs.provider
    AND pools.date = costs.date
    AND pools.project_id IS NOT DISTINCT FROM costs.project_id
    AND pools.used_model = coalesce(costs.model, costs.line_item);

INSERT INTO charge_pools
SELECT costs.rowid, min(pools.rowid)
FROM daily_costs AS costs
SEMI JOIN split_days USING (user_id, provider, date)
JOIN pools
    ON pools.user_id = costs.user_id
    AND pools.provider = costs.provider
    AND pools.date = costs.date
    AND pools.project_id IS NOT DISTINCT FROM costs.project_id
    AND base_model(pools.used_model) = base_model(costs.model)
WHERE costs.rowid NOT IN (SELECT charge FROM charge_pools)
GROUP BY costs.rowid
HAVING count(*) = 1;

-- [shared]
-- Whether several members, or several keys, share some use.
SELECT coalesce(bool_or(has_members), false), coalesce(bool_or(has_keys), false) FROM pools;

-- [none_shared]
CREATE OR REPLACE TEMP TABLE attributed (charge BIGINT, id VARCHAR, amount_usd DECIMAL(38, 18));

-- [split]
-- The charges whose use several share, by the column `id` of `split_used`, on days that OpenAI does not split
-- itself: `attributed`.
CREATE OR REPLACE TEMP TABLE attributed AS
WITH weights AS (
    SELECT
        charge_pools.charge,
        split.id,
        any_value(costs.amount_usd) AS amount_usd,
        sum(
            CASE costs.direction
                WHEN 'input' THEN input
                WHEN 'cached_input' THEN cached_input
                WHEN 'output' THEN output
                WHEN 'cache_write' THEN cache_write
                ELSE other
            END
        ) AS measure,
        sum(requests) AS requests
    FROM split_used AS split
    JOIN charge_pools USING (pool)
    JOIN daily_costs AS costs ON costs.rowid = charge_pools.charge
    WHERE costs.amount_usd IS NOT NULL
      AND NOT EXISTS (
        FROM billed_days AS billed
        WHERE billed.user_id = costs.user_id
          AND billed.provider = costs.provider
          AND billed.date = costs.date
      )
    GROUP BY charge_pools.charge, split.id
),
chosen AS (
    SELECT
        charge,
        id,
        abs(to_units(amount_usd)) AS units,
        amount_usd < 0 AS is_credit,
        CASE WHEN sum(measure) OVER each > 0 THEN measure ELSE requests END::HUGEINT AS weight
    FROM weights
    WINDOW each AS (PARTITION BY charge)
),
shares AS (
    SELECT *, sum(weight) OVER (PARTITION BY charge)::HUGEINT AS whole FROM chosen
),
rounded AS (
    -- units × weight ÷ whole, without the product that might not fit.
    SELECT
        *,
        CASE WHEN whole > 0 THEN (units // whole) * weight + ((units % whole) * weight) // whole ELSE 0 END
            AS part,
        CASE WHEN whole > 0 THEN ((units % whole) * weight) % whole ELSE 0 END AS remainder
    FROM shares
),
ranked AS (
    SELECT
        *,
        row_number() OVER (PARTITION BY charge ORDER BY remainder DESC, id) AS place,
        units - sum(part) OVER (PARTITION BY charge) AS missing
    FROM rounded
)
SELECT
    charge,
    -- Use without any measure tells nobody's part.
    CASE WHEN whole > 0 THEN id END AS id,
    from_units((CASE WHEN whole > 0 THEN part + (place <= missing)::HUGEINT
                     WHEN place = 1 THEN units
                     ELSE 0 END)::HUGEINT)
        * CASE WHEN is_credit THEN -1 ELSE 1 END::DECIMAL(1, 0) AS amount_usd
FROM ranked;

-- [check]
-- Days on which the rows by model, member or key do not add up to the bill. There are none.
WITH sums AS (
    SELECT 'bill' AS split, user_id, provider, date, coalesce(sum(amount_usd), 0) AS amount_usd
    FROM daily_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
    UNION ALL
    SELECT 'model', user_id, provider, date, sum(amount_usd)
    FROM daily_model_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
    UNION ALL
    SELECT 'member', user_id, provider, date, sum(amount_usd)
    FROM daily_member_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
    UNION ALL
    SELECT 'key', user_id, provider, date, sum(amount_usd)
    FROM daily_key_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
)
SELECT user_id, date
FROM (
    SELECT
        user_id,
        date,
        coalesce(any_value(amount_usd) FILTER (split = 'bill'), 0) AS bill,
        coalesce(any_value(amount_usd) FILTER (split = 'model'), 0) AS model,
        coalesce(any_value(amount_usd) FILTER (split = 'member'), 0) AS member,
        coalesce(any_value(amount_usd) FILTER (split = 'key'), 0) AS key
    FROM sums
    GROUP BY user_id, provider, date
)
WHERE bill <> model OR bill <> member OR bill <> key;
