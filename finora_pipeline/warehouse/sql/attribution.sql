-- Attribution: which usage explains each charge of daily_costs, and the check of all splits.
--
-- daily_attributed_costs.sql splits the charges by that usage, or as OpenAI does.
--
-- Rules
--   1. A charge with a service tier is split by the usage of that tier, if there is any; one without a tier by the
--      usage of tiers without a charge of their own. Cache writes kept for 30 minutes and for 12 hours are split by
--      their own counters; other cache writes, and those without such a counter, by all cache writes.
--   2. A charge without a model is split by the usage of the service that it names (service_names.csv).
--   3. Costs and usage match by name, ignoring case: the same name; else a fine-tune's base, as costs name it; else
--      the only name that is the same but for the release date, as in daily_model_costs.
--   4. A line item with words unknown to the grammar has the model used that day which it names.
--   5. Usage without a member has the service account that owns its API key, if the directory knows it.

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
-- Reads: portioned_days, service_names, the macros, daily_costs, daily_usage, pipeline.billed_costs, api_keys,
-- members; $portion.
-- Leaves: split_days, used, use_names, charge_sums; for daily_attributed_costs also key_owners, service_accounts,
-- used_pairs, pools and charges; models_by_use and billed_days, which only this section reads; models of unparsed
-- charges in daily_costs.
--
-- The days of the portion, numbered so that later joins do not compare texts.
CREATE OR REPLACE TEMP TABLE split_days AS
SELECT
    row_number() OVER () AS day,
    user_id,
    provider,
    date,
    dense_rank() OVER (ORDER BY user_id, provider) AS account
FROM portioned_days
WHERE portion = $portion;

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
SET model = by_use.model,
    cost_model = by_use.model,
    cost_service = CASE
        WHEN costs.cost_service = 'other' AND costs.charge_category = 'usage' THEN 'model_tokens'
        ELSE costs.cost_service
    END
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
    split.account,
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
    CASE WHEN batch THEN 'batch' ELSE same_tier(service_tier) END AS tier
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

-- Owners of API keys, and service accounts, as the directory knows them.
CREATE OR REPLACE TEMP TABLE key_owners AS
SELECT account, api_key_id, owner_id, owner_type IS NOT DISTINCT FROM 'service_account' AS is_service_account
FROM api_keys
JOIN (SELECT DISTINCT account, user_id, provider FROM split_days) USING (user_id, provider)
WHERE owner_id IS NOT NULL;

CREATE OR REPLACE TEMP TABLE service_accounts AS
SELECT account, owner_id AS member_id FROM key_owners WHERE is_service_account
UNION
SELECT account, member_id
FROM members
JOIN (SELECT DISTINCT account, user_id, provider FROM split_days) USING (user_id, provider)
WHERE email IS NULL;

-- The members and API keys of the usage, numbered in the order of their ids.
CREATE OR REPLACE TEMP TABLE used_pairs AS
SELECT
    *,
    dense_rank() OVER (ORDER BY account, member_id, api_key_id) AS pair
FROM (
    SELECT
        account,
        used.member_id AS used_member_id,
        coalesce(used.member_id, CASE WHEN is_service_account THEN owner_id END) AS member_id,
        api_key_id
    FROM (SELECT DISTINCT account, member_id, api_key_id FROM used) AS used
    LEFT JOIN key_owners USING (account, api_key_id)
);

-- The usage of a name in a project on a day, and its member and key, if it has a single pair.
CREATE OR REPLACE TEMP TABLE pools AS
SELECT day, project_id, name, CASE WHEN min(pair) = max(pair) THEN min(pair) END AS only_pair
FROM used
JOIN use_names ON use_names.service = used.service AND use_names.model IS NOT DISTINCT FROM used.model
JOIN used_pairs AS pairs
    ON pairs.account = used.account
    AND pairs.used_member_id IS NOT DISTINCT FROM used.member_id
    AND pairs.api_key_id IS NOT DISTINCT FROM used.api_key_id
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
        min(cost_service) AS cost_service,
        sum(amount_usd) FILTER (has_use AND unit IN ('tokens', '1000_tokens')) AS token_priced_usd,
        sum(quantity) FILTER (has_use AND unit = 'tokens') AS tokens,
        sum(quantity) FILTER (has_use AND unit = '1000_tokens') * 1000 AS tokens_in_thousands,
        count(*) FILTER (amount_usd IS NULL) AS lines_without_amount
    FROM (
        SELECT
            *,
            unit_of(direction, quantity_unit) AS unit,
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
SELECT day, bool_or(reading = 'costs_by_member') AS by_member, bool_or(reading = 'costs_by_key') AS by_key
FROM (
    SELECT billed.day, reading
    FROM (
        SELECT DISTINCT split.day, reading, project_id
        FROM pipeline.billed_costs
        JOIN split_days AS split USING (user_id, provider, date)
        WHERE reading IN ('costs_by_member', 'costs_by_key')
    ) AS billed
    LEFT JOIN charge_sums AS sums
        ON sums.day = billed.day AND sums.project_id IS NOT DISTINCT FROM billed.project_id
    GROUP BY ALL
    HAVING count(sums.project_id) > 0 OR count(billed.project_id) = 0 AND count(sums.day) > 0
)
GROUP BY day;

-- The single charges, with the counter and the tier that they are split by.
CREATE OR REPLACE TEMP TABLE charges AS
SELECT
    sums.day,
    split.account,
    sums.project_id,
    costs.line_item,
    sums.model AS cost_model,
    costs.direction,
    costs.tier,
    costs.cost_service,
    costs.charge_category,
    CASE
        WHEN costs.direction ILIKE 'cache write%' OR costs.line_item ILIKE '%input_cache_write_tokens%'
            THEN 'cache_writes'
        WHEN costs.direction = 'cache_write' THEN 'cache_writes_30m'
        WHEN costs.direction = 'cache_write_12h' THEN 'cache_writes_12h'
        ELSE costs.direction
    END AS counter,
    same_tier(costs.tier) AS used_tier,
    costs.amount_usd,
    sums.pool,
    coalesce(billed.by_member, false) AS by_member,
    coalesce(billed.by_key, false) AS by_key
FROM charge_sums AS sums
JOIN split_days AS split USING (day)
JOIN daily_costs AS costs
    ON costs.user_id = split.user_id
    AND costs.provider = split.provider
    AND costs.date = split.date
    AND costs.project_id IS NOT DISTINCT FROM sums.project_id
    AND coalesce(costs.model, costs.line_item, 'not attributed') = sums.model
    AND (costs.direction IS DISTINCT FROM 'training') = sums.has_use
LEFT JOIN billed_days AS billed USING (day)
WHERE costs.amount_usd IS NOT NULL;

-- [check]
-- Reads: split_days, charges, attributed (daily_attributed_costs.sql, split); daily_costs, daily_model_costs,
-- daily_attributed_costs, daily_member_costs, daily_key_costs.
-- Leaves: unequal_days, on which a charge's parts do not add up to it, or a table's rows to daily_costs (expected
-- none).
CREATE OR REPLACE TEMP TABLE unequal_days AS
WITH bill AS (
    SELECT
        user_id,
        provider,
        date,
        coalesce(sum(amount_usd), 0) AS amount_usd,
        coalesce(sum(amount_usd) FILTER (amount_usd > 0), 0) AS charges_usd
    FROM daily_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
),
sums AS (
    SELECT split, user_id, provider, date, -amount_usd AS amount_usd, -charges_usd AS charges_usd
    FROM bill CROSS JOIN (VALUES ('attributed'), ('member'), ('key')) AS splits(split)
    UNION ALL
    SELECT 'model', user_id, provider, date, -amount_usd, 0 FROM bill
    UNION ALL
    SELECT 'model', user_id, provider, date, sum(amount_usd), 0
    FROM daily_model_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
    UNION ALL
    SELECT 'attributed', user_id, provider, date, sum(amount_usd), sum(charges_usd)
    FROM daily_attributed_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
    UNION ALL
    SELECT 'member', user_id, provider, date, sum(amount_usd), sum(charges_usd)
    FROM daily_member_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
    UNION ALL
    SELECT 'key', user_id, provider, date, sum(amount_usd), sum(charges_usd)
    FROM daily_key_costs SEMI JOIN split_days USING (user_id, provider, date) GROUP BY ALL
)
SELECT user_id, provider, date
FROM sums
GROUP BY split, user_id, provider, date
HAVING sum(amount_usd) <> 0 OR sum(charges_usd) <> 0
UNION
SELECT user_id, provider, date
FROM (
    SELECT day
    FROM charges
    LEFT JOIN (SELECT charge, sum(amount_usd) AS amount_usd FROM attributed GROUP BY charge) AS parts
        ON parts.charge = charges.rowid
    WHERE parts.amount_usd IS DISTINCT FROM charges.amount_usd
)
JOIN split_days USING (day);

-- [finish]
-- Reads: split_days, unequal_days.
-- Leaves: the computed months unpublished, their users stale; days no longer stale, but for unequal days, which the
-- next run computes and checks again.
INSERT INTO pipeline.unpublished_months
SELECT DISTINCT table_name, date_trunc('month', date)::DATE
FROM split_days
CROSS JOIN (
    VALUES ('daily_model_costs'), ('daily_attributed_costs'), ('daily_member_costs'), ('daily_key_costs')
) AS split(table_name);

INSERT INTO pipeline.stale_users SELECT DISTINCT user_id, provider FROM split_days;

DELETE FROM pipeline.stale_days AS done
USING split_days AS split
WHERE done.user_id = split.user_id AND done.provider = split.provider AND done.date = split.date
  AND NOT EXISTS (
    FROM unequal_days AS unequal
    WHERE unequal.user_id = done.user_id AND unequal.provider = done.provider AND unequal.date = done.date
);
