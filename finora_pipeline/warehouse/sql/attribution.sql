-- Attribution: every amount of daily_costs split by member and by API key.
--
-- Rules, for members; API keys likewise
--   1. billed: where OpenAI itself splits the costs of a day by member, its amounts are used. What its split lacks,
--      or has too much since it was fetched a moment later, has no member (NULL).
--   2. allocated: elsewhere an amount of a day, project and line item is split by usage. Each member who used the
--      charge's model in the project that day gets the share that they have
--        a. of the tokens of the charge's direction (uncached input, cached input, output, cache writes),
--        b. of images, seconds or characters, without a direction or such tokens,
--        c. of calls or requests, where all those are 0.
--      A charge with a service tier is split by the usage of that tier, if there is any; one without a tier by the
--      usage of tiers without a charge of their own. Cache writes kept for 30 minutes and for 12 hours are split by
--      their own counters; other cache writes, and those without such a counter, by all cache writes.
--      A charge without a model is split by the usage of the service that it names (service_names.csv).
--   3. Parts are whole 10^-18 dollars. What rounding down leaves goes, one each, to the parts with the largest
--      remainder, so that the parts add up to the amount to the last digit.
--   4. A charge without matching usage has no member (NULL): training, storage and credits, for example.
--   5. Costs and usage match by name, ignoring case: the same name; else a fine-tune's base, as costs name it; else
--      the only name that is the same but for the release date, as in daily_model_costs.
--   6. A line item with words unknown to the grammar has the model used that day which it names.

-- [portion]
-- Reads: pipeline.stale_days, daily_costs, daily_usage; $rows_at_once.
-- Leaves: portioned_days, the stale days in portions of about so many rows of costs and usage, by user.
CREATE OR REPLACE TEMP TABLE portioned_days AS
WITH rows_of AS (
    SELECT user_id, provider, date, count(*) AS rows
    FROM (
        SELECT user_id, provider, date FROM daily_costs
        UNION ALL
        SELECT user_id, provider, date FROM daily_usage
    )
    SEMI JOIN pipeline.stale_days USING (user_id, provider, date)
    GROUP BY ALL
)
SELECT
    user_id,
    provider,
    date,
    (sum(coalesce(rows, 0)) OVER (ORDER BY user_id, provider, date) // $rows_at_once)::INTEGER AS portion
FROM pipeline.stale_days
LEFT JOIN rows_of USING (user_id, provider, date);

-- [halve]
-- Reads: portioned_days; $portion, $later.
-- Leaves: the later half of the portion's days as the portion $later.
UPDATE portioned_days
SET portion = $later
WHERE rowid IN (
    SELECT row_id
    FROM (
        SELECT rowid AS row_id, row_number() OVER (ORDER BY user_id, provider, date) AS place, count(*) OVER () AS days
        FROM portioned_days
        WHERE portion = $portion
    )
    WHERE place > days // 2
);

-- [macros]
-- Leaves: same_case, same_tier, first_phrase.
--
-- A name in the spelling in which costs and usage are compared.
CREATE OR REPLACE TEMP MACRO same_case(name) AS replace(lower(name), ' ', '-');

-- A tier in the spelling in which costs and usage are compared; OpenAI renames priority to fast.
CREATE OR REPLACE TEMP MACRO same_tier(tier) AS CASE lower(tier) WHEN 'priority' THEN 'fast' ELSE lower(tier) END;

-- A line item's first phrase without its tier, in the spelling of service_names.
CREATE OR REPLACE TEMP MACRO first_phrase(line_item) AS trim(regexp_replace(
    replace(lower(split_part(regexp_extract(line_item, '[^|]*$'), ',', 1)), '_', ' '), '\s+', ' ', 'g'
));

-- [mark_services_stale]
-- Reads: service_names (an Arrow table), daily_costs, daily_usage.
-- Leaves: days stale whose charges match usage by service, cache write counter or fine-tune.
INSERT INTO pipeline.stale_days
SELECT user_id, provider, date
FROM daily_costs
WHERE model IS NULL AND line_item IS NOT NULL OR direction = 'cache_write' OR model LIKE 'ft-%'
UNION
SELECT user_id, provider, date
FROM daily_usage
WHERE model ILIKE 'ft:%' OR service IN (SELECT service FROM service_names)
EXCEPT
FROM pipeline.stale_days;

-- [prepare]
-- Reads: portioned_days, service_names, the macros, daily_costs, daily_usage, pipeline.billed_costs; $portion.
-- Leaves: split_days, used, use_names, pools, charge_sums, billed_days, the view parts; models_by_use, split_sums,
-- charges, charged_tiers, attributed, which only this section reads; models of unparsed charges in daily_costs.
--
-- The days of the portion, numbered so that later joins do not compare texts.
CREATE OR REPLACE TEMP TABLE split_days AS
SELECT row_number() OVER () AS day, user_id, provider, date FROM portioned_days WHERE portion = $portion;

-- Unparsed line items, with the model used that day that each names: the longest such name.
CREATE OR REPLACE TEMP TABLE models_by_use AS
WITH unparsed AS (
    SELECT
        *,
        same_case(model) AS own_model,
        ' ' || regexp_replace(body, '[^a-z0-9.:_/-]+', ' ', 'g') || ' ' AS words,
        same_case(body) || ',' AS spelled
    FROM (
        SELECT DISTINCT split.day, line_item, costs.model, trim(lower(regexp_extract(line_item, '[^|]*$'))) AS body
        FROM daily_costs AS costs
        JOIN split_days AS split USING (user_id, provider, date)
        WHERE NOT is_parsed
          AND line_item IS NOT NULL
          AND first_phrase(line_item) NOT IN (SELECT line_item FROM service_names)
    )
),
in_use AS (
    SELECT day, unnest([name, base_model(name)]) AS name
    FROM (
        SELECT DISTINCT split.day, lower(model) AS name
        FROM daily_usage
        JOIN split_days AS split USING (user_id, provider, date)
        WHERE model IS NOT NULL AND service <> 'web_search_calls'
    )
    WHERE day IN (SELECT day FROM unparsed)
),
-- Models that the text names exactly, anywhere; or with blanks for hyphens, at its start.
named AS (
    SELECT day, line_item, max_by(name, length(name)) AS name
    FROM unparsed
    JOIN in_use USING (day)
    WHERE contains(words, ' ' || name || ' ')
       OR starts_with(spelled, name)
        AND substr(spelled, length(name) + 1, 1) IN (',', '-')
        AND (model IS NULL OR contains(model, ' ') OR length(name) > length(model))
    GROUP BY day, line_item
)
-- A model of the text that is itself in use stays.
SELECT named.day, named.line_item, named.name AS model
FROM named
JOIN unparsed USING (day, line_item)
ANTI JOIN in_use ON in_use.day = unparsed.day AND base_model(in_use.name) = base_model(unparsed.own_model);

UPDATE daily_costs AS costs
SET model = by_use.model, cost_model = by_use.model
FROM models_by_use AS by_use
JOIN split_days AS split USING (day)
WHERE costs.user_id = split.user_id
  AND costs.provider = split.provider
  AND costs.date = split.date
  AND costs.line_item = by_use.line_item
  AND NOT costs.is_parsed;

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT 'daily_costs', date_trunc('month', date)::DATE
FROM models_by_use
JOIN split_days USING (day);

-- The usage on these days, in the measures that charges are priced by.
CREATE OR REPLACE TEMP TABLE used AS
SELECT
    split.day,
    service,
    model,
    project_id,
    member_id,
    api_key_id,
    -- Completions already count the model request of a web search.
    CASE WHEN service <> 'web_search_calls' THEN requests END AS requests,
    input_tokens,
    output_tokens,
    -- More cached tokens than input would make a negative weight, and parts that do not add up.
    greatest(
        coalesce(
            input_uncached_tokens,
            input_tokens - coalesce(input_cached_tokens, 0) - coalesce(input_cache_write_tokens, 0)
        ),
        0
    ) AS input,
    greatest(input_cached_tokens, 0) AS cached_input,
    greatest(output_tokens, 0) AS output,
    greatest(
        coalesce(
            input_cache_write_tokens,
            coalesce(input_cache_write_30m_tokens, 0) + coalesce(input_cache_write_12h_tokens, 0)
        ),
        0
    ) AS cache_writes,
    greatest(
        coalesce(
            input_cache_write_30m_tokens,
            input_cache_write_tokens - coalesce(input_cache_write_12h_tokens, 0)
        ),
        0
    ) AS cache_writes_30m,
    greatest(
        coalesce(input_cache_write_12h_tokens, input_cache_write_tokens - input_cache_write_30m_tokens), 0
    ) AS cache_writes_12h,
    greatest(images, 0) + greatest(seconds, 0) + greatest(characters, 0) AS other,
    greatest(coalesce(calls, requests), 0) AS requests_or_calls,
    CASE WHEN batch THEN 'batch' ELSE same_tier(service_tier) END AS tier,
    is_sample
FROM daily_usage
JOIN split_days AS split USING (user_id, provider, date);

-- Names that costs may have for a service's model, by rank: its own, its base, its service.
CREATE OR REPLACE TEMP TABLE use_names AS
SELECT service, model, unnest(names) AS name, generate_subscripts(names, 1) AS rank
FROM (
    SELECT
        service,
        model,
        list_distinct([
            -- A search has the model of the request that called it.
            CASE WHEN service <> 'web_search_calls' THEN same_case(model) END,
            CASE WHEN service <> 'web_search_calls' AND model ILIKE 'ft:%'
                THEN 'ft-' || same_case(split_part(model, ':', 2)) END,
            CASE WHEN service IN (SELECT service FROM service_names WHERE usage_model IS NULL) THEN service END
        ]) AS names
    FROM (SELECT DISTINCT service, model FROM used)
);

-- The usage of a name in a project on a day, and its member and key, if it has a single one.
CREATE OR REPLACE TEMP TABLE pools AS
SELECT
    day,
    project_id,
    name,
    min(coalesce(member_id, '')) <> max(coalesce(member_id, '')) AS has_members,
    min(coalesce(api_key_id, '')) <> max(coalesce(api_key_id, '')) AS has_keys,
    any_value(member_id) AS only_member,
    any_value(api_key_id) AS only_key
FROM used
JOIN use_names ON use_names.service = used.service AND use_names.model IS NOT DISTINCT FROM used.model
GROUP BY ALL;

-- The sums of a model's charges in a project on a day, with the pool of usage that they share. Training has none:
-- usage counts a model's answers.
CREATE OR REPLACE TEMP TABLE charge_sums AS
WITH sums AS (
    SELECT
        split.day,
        project_id,
        any_value(costs.model) AS line_model,
        any_value(quantity_unit) AS quantity_unit,
        coalesce(costs.model, line_item, 'not attributed') AS model,
        has_use,
        sum(amount_usd) AS amount_usd,
        sum(amount_usd) FILTER (amount_usd > 0) AS charges_usd,
        -- The service of the largest charge; of equal ones, the last by name.
        max_by(cost_service, {'usd': abs(amount_usd), 'service': cost_service}) AS cost_service,
        sum(amount_usd) FILTER (has_use AND unit IN ('tokens', '1000_tokens')) AS token_priced_usd,
        sum(quantity) FILTER (has_use AND unit = 'tokens') AS tokens,
        sum(quantity) FILTER (has_use AND unit = '1000_tokens') * 1000 AS tokens_in_thousands,
        count(*) FILTER (amount_usd IS NULL) AS lines_without_amount,
        bool_or(is_sample) AS is_sample
    FROM (
        SELECT
            *,
            -- Without a unit, a charge with a direction counts tokens.
            coalesce(
                quantity_unit,
                CASE WHEN direction IN ('input', 'cached_input', 'output', 'cache_write', 'cache_write_12h')
                    OR direction ILIKE 'cache write%' THEN 'tokens' END
            ) AS unit,
            direction IS DISTINCT FROM 'training' AS has_use
        FROM daily_costs
    ) AS costs
    JOIN split_days AS split USING (user_id, provider, date)
    GROUP BY ALL
),
named AS (
    SELECT
        sums.*,
        CASE
            WHEN NOT has_use THEN NULL
            WHEN line_model IS NOT NULL THEN same_case(line_model)
            ELSE coalesce(by_unit.usage_model, by_unit.service, by_name.usage_model, by_name.service)
        END AS use_name
    FROM sums
    LEFT JOIN service_names AS by_unit
        ON by_unit.line_item = first_phrase(sums.model) AND by_unit.quantity_unit = sums.quantity_unit
    LEFT JOIN service_names AS by_name
        ON by_name.line_item = first_phrase(sums.model) AND by_name.quantity_unit IS NULL
)
SELECT
    named.*,
    coalesce(tokens + tokens_in_thousands, tokens, tokens_in_thousands) AS billed_tokens,
    pools.rowid AS pool
FROM named
LEFT JOIN pools
    ON pools.day = named.day
    AND pools.project_id IS NOT DISTINCT FROM named.project_id
    AND pools.name = named.use_name;

UPDATE charge_sums
SET pool = only_one.pool
FROM (
    SELECT sums.rowid AS sum, min(pools.rowid) AS pool
    FROM charge_sums AS sums
    JOIN pools
        ON pools.day = sums.day
        AND pools.project_id IS NOT DISTINCT FROM sums.project_id
        AND base_model(pools.name) = base_model(sums.use_name)
        AND base_model(pools.name) IN (pools.name, sums.use_name)
    WHERE sums.pool IS NULL
    GROUP BY sums.rowid
    HAVING count(*) = 1
) AS only_one
WHERE charge_sums.rowid = only_one.sum;

-- Days that OpenAI itself splits. A split with none of the day's projects belongs to another organization; costs
-- without a project, which any organization may have, count only if the split has no others.
CREATE OR REPLACE TEMP TABLE billed_days AS
SELECT split.day, CASE reading WHEN 'costs_by_member' THEN 'member' ELSE 'key' END AS dimension
FROM pipeline.billed_costs AS billed
JOIN split_days AS split USING (user_id, provider, date)
LEFT JOIN charge_sums AS sums
    ON sums.day = split.day AND sums.project_id IS NOT DISTINCT FROM billed.project_id
WHERE reading IN ('costs_by_member', 'costs_by_key')
GROUP BY ALL
HAVING count(sums.project_id) > 0 OR count(billed.project_id) = 0 AND count(sums.day) > 0;

-- Sums whose usage several members or keys share, or that OpenAI itself splits; then their single charges.
CREATE OR REPLACE TEMP TABLE split_sums AS
SELECT split_days.*, sums.project_id, sums.model, sums.has_use, sums.pool, sums.is_sample
FROM charge_sums AS sums
JOIN split_days ON split_days.day = sums.day
LEFT JOIN pools ON pools.rowid = sums.pool
WHERE pools.has_members OR pools.has_keys OR sums.day IN (SELECT day FROM billed_days);

CREATE OR REPLACE TEMP TABLE charges AS
SELECT
    sums.day,
    sums.project_id,
    costs.line_item,
    sums.model,
    CASE
        WHEN costs.direction ILIKE 'cache write%' OR costs.line_item ILIKE '%input_cache_write_tokens%'
            THEN 'cache_writes'
        WHEN costs.direction = 'cache_write' THEN 'cache_writes_30m'
        WHEN costs.direction = 'cache_write_12h' THEN 'cache_writes_12h'
        ELSE costs.direction
    END AS counter,
    same_tier(costs.tier) AS tier,
    costs.amount_usd,
    sums.pool,
    sums.is_sample
FROM split_sums AS sums
JOIN daily_costs AS costs
    ON costs.user_id = sums.user_id
    AND costs.provider = sums.provider
    AND costs.date = sums.date
    AND costs.project_id IS NOT DISTINCT FROM sums.project_id
    AND coalesce(costs.model, costs.line_item, 'not attributed') = sums.model
    AND (costs.direction IS DISTINCT FROM 'training') = sums.has_use
WHERE costs.amount_usd IS NOT NULL;

CREATE OR REPLACE TEMP TABLE charged_tiers AS SELECT DISTINCT pool, tier FROM charges WHERE tier IS NOT NULL;

-- The parts of charges whose usage several members or keys share, on days that OpenAI does not split.
CREATE OR REPLACE TEMP TABLE attributed AS
WITH split_used AS (
    SELECT
        dimension,
        pools.rowid AS pool,
        CASE dimension WHEN 'member' THEN used.member_id ELSE used.api_key_id END AS id,
        charged_tiers.tier IS NOT NULL AS has_own_line,
        used.*
    FROM pools
    CROSS JOIN (VALUES ('member'), ('key')) AS dimensions(dimension)
    JOIN use_names USING (name)
    JOIN used
        ON used.day = pools.day
        AND used.project_id IS NOT DISTINCT FROM pools.project_id
        AND used.service = use_names.service
        AND used.model IS NOT DISTINCT FROM use_names.model
    LEFT JOIN charged_tiers ON charged_tiers.pool = pools.rowid AND charged_tiers.tier = used.tier
    WHERE CASE dimension WHEN 'member' THEN pools.has_members ELSE pools.has_keys END
),
counted AS (
    SELECT
        split_used.dimension,
        charges.rowid AS charge,
        split_used.id,
        charges.amount_usd,
        CASE WHEN charges.tier IS NULL THEN NOT has_own_line ELSE split_used.tier = charges.tier END AS is_of_tier,
        CASE charges.counter
            WHEN 'input' THEN split_used.input
            WHEN 'cached_input' THEN split_used.cached_input
            WHEN 'output' THEN split_used.output
            WHEN 'cache_writes' THEN split_used.cache_writes
            WHEN 'cache_writes_30m' THEN split_used.cache_writes_30m
            WHEN 'cache_writes_12h' THEN split_used.cache_writes_12h
            ELSE split_used.other
        END AS measure,
        CASE WHEN charges.counter LIKE 'cache_writes%' THEN split_used.cache_writes ELSE split_used.other END
            AS second_measure,
        split_used.requests_or_calls AS requests
    FROM split_used
    ANTI JOIN billed_days USING (day, dimension)
    JOIN charges USING (pool)
),
weights AS MATERIALIZED (
    SELECT
        dimension,
        charge,
        id,
        any_value(amount_usd) AS amount_usd,
        coalesce(sum(measure) FILTER (is_of_tier), 0) AS measure_of_tier,
        sum(measure) AS measure,
        sum(second_measure) AS second_measure,
        coalesce(sum(requests) FILTER (is_of_tier), 0) AS requests_of_tier,
        sum(requests) AS requests
    FROM counted
    GROUP BY ALL
),
-- Grouped and joined: window sums over the same rows take twice as long.
totals AS (
    SELECT
        dimension,
        charge,
        sum(measure_of_tier) AS all_of_tier,
        sum(measure) AS all_measured,
        sum(second_measure) AS all_second,
        sum(requests_of_tier) AS all_requests_of_tier,
        sum(requests) AS all_requests
    FROM weights
    GROUP BY ALL
),
shares AS (
    SELECT
        dimension,
        charge,
        id,
        abs(to_units(amount_usd)) AS units,
        amount_usd < 0 AS is_credit,
        CASE
            WHEN all_of_tier > 0 THEN measure_of_tier
            WHEN all_measured > 0 THEN measure
            WHEN all_second > 0 THEN second_measure
            WHEN all_requests_of_tier > 0 THEN requests_of_tier
            ELSE requests
        END::HUGEINT AS weight,
        CASE
            WHEN all_of_tier > 0 THEN all_of_tier
            WHEN all_measured > 0 THEN all_measured
            WHEN all_second > 0 THEN all_second
            WHEN all_requests_of_tier > 0 THEN all_requests_of_tier
            ELSE all_requests
        END::HUGEINT AS whole
    FROM weights
    JOIN totals USING (dimension, charge)
),
rounded AS (
    -- units × weight ÷ whole, without a product that may overflow.
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
        row_number() OVER (PARTITION BY dimension, charge ORDER BY remainder DESC, id) AS place,
        units - sum(part) OVER (PARTITION BY dimension, charge) AS missing
    FROM rounded
)
SELECT
    dimension,
    charge,
    -- No usage measure: cannot be split.
    CASE WHEN whole > 0 THEN id END AS id,
    from_units((CASE WHEN whole > 0 THEN part + (place <= missing)::HUGEINT
                     WHEN place = 1 THEN units
                     ELSE 0 END)::HUGEINT)
        * CASE WHEN is_credit THEN -1 ELSE 1 END::DECIMAL(1, 0) AS amount_usd
FROM ranked;

-- The parts of all charges by member and by key, summed: several may have no member or key.
CREATE OR REPLACE TEMP VIEW parts AS
SELECT dimension, day, project_id, id, model, sum(amount_usd) AS amount_usd, method, bool_or(is_sample) AS is_sample
FROM (
    -- Charges whose usage has a single member or key, or that have no usage.
    SELECT
        dimension,
        charge_sums.day,
        charge_sums.project_id,
        CASE dimension WHEN 'member' THEN pools.only_member ELSE pools.only_key END AS id,
        charge_sums.model,
        charge_sums.amount_usd,
        'allocated' AS method,
        charge_sums.is_sample
    FROM charge_sums
    CROSS JOIN (VALUES ('member'), ('key')) AS dimensions(dimension)
    ANTI JOIN billed_days USING (day, dimension)
    LEFT JOIN pools ON pools.rowid = charge_sums.pool
    WHERE charge_sums.amount_usd IS NOT NULL
      AND CASE dimension WHEN 'member' THEN pools.has_members ELSE pools.has_keys END IS NOT true
    UNION ALL
    -- Charges whose usage several share.
    SELECT dimension, day, project_id, id, model, attributed.amount_usd, 'allocated', is_sample
    FROM attributed
    JOIN charges ON charges.rowid = attributed.charge
)
GROUP BY ALL
UNION ALL
-- Charges that OpenAI itself splits, and what its split lacks.
SELECT dimension, day, project_id, id, model, sum(amount_usd), 'billed', bool_or(is_sample)
FROM (
    WITH billed AS (
        SELECT charges.rowid AS charge, billed_days.dimension, charges.*
        FROM charges
        JOIN billed_days USING (day)
    ),
    billed_parts AS (
        SELECT
            billed.* EXCLUDE (amount_usd),
            CASE dimension WHEN 'member' THEN split.member_id ELSE split.api_key_id END AS id,
            split.amount_usd
        FROM billed
        JOIN split_days USING (day)
        JOIN pipeline.billed_costs AS split
            ON split.reading = CASE dimension WHEN 'member' THEN 'costs_by_member' ELSE 'costs_by_key' END
            AND split.user_id = split_days.user_id
            AND split.provider = split_days.provider
            AND split.date = split_days.date
            AND split.project_id IS NOT DISTINCT FROM billed.project_id
            AND split.line_item IS NOT DISTINCT FROM billed.line_item
        WHERE split.amount_usd IS NOT NULL
    )
    SELECT dimension, day, project_id, id, model, amount_usd, is_sample FROM billed_parts
    UNION ALL
    SELECT dimension, day, project_id, NULL, model, rest, is_sample
    FROM (
        SELECT billed.*, billed.amount_usd - coalesce(split.amount_usd, 0) AS rest
        FROM billed
        LEFT JOIN (
            SELECT dimension, charge, sum(amount_usd) AS amount_usd FROM billed_parts GROUP BY ALL
        ) AS split USING (dimension, charge)
    )
    WHERE rest <> 0
)
GROUP BY ALL;

-- [check]
-- Reads: split_days, daily_costs, daily_model_costs, daily_member_costs, daily_key_costs.
-- Leaves: unequal_days, on which costs by model, member or key do not add up to daily_costs (expected none).
CREATE OR REPLACE TEMP TABLE unequal_days AS
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
SELECT user_id, provider, date
FROM (
    SELECT
        user_id,
        provider,
        date,
        coalesce(any_value(amount_usd) FILTER (split = 'bill'), 0) AS bill,
        coalesce(any_value(amount_usd) FILTER (split = 'model'), 0) AS model,
        coalesce(any_value(amount_usd) FILTER (split = 'member'), 0) AS member,
        coalesce(any_value(amount_usd) FILTER (split = 'key'), 0) AS key
    FROM sums
    GROUP BY user_id, provider, date
)
WHERE bill <> model OR bill <> member OR bill <> key;

-- [finish]
-- Reads: split_days, unequal_days.
-- Leaves: the computed months unpublished, their users stale; days no longer stale, but for unequal days, which the
-- next run computes and checks again.
INSERT INTO pipeline.unpublished_months
SELECT DISTINCT table_name, date_trunc('month', date)::DATE
FROM split_days
CROSS JOIN (VALUES ('daily_model_costs'), ('daily_member_costs'), ('daily_key_costs')) AS split(table_name);

INSERT INTO pipeline.stale_users SELECT DISTINCT user_id, provider FROM split_days;

DELETE FROM pipeline.stale_days AS done
USING split_days AS split
WHERE done.user_id = split.user_id AND done.provider = split.provider AND done.date = split.date
  AND NOT EXISTS (
    FROM unequal_days AS unequal
    WHERE unequal.user_id = done.user_id AND unequal.provider = done.provider AND unequal.date = done.date
);
