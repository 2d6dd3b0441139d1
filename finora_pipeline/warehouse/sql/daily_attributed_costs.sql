-- daily_attributed_costs: every charge of daily_costs split by member and API key together.
--
-- Grain: user, provider, date, project_id, line_item, member_id, api_key_id.
-- Columns: amount_usd and charges_usd in USD, exact.
-- Rules
--   1. billed: where OpenAI itself splits the costs of a day by member, or by API key, the sums of its members, or
--      keys, are OpenAI's. OpenAI's two splits do not say which key is whose. So a key's part of a charge goes to the
--      key's owner: the member with most of its requests that day, or else its owner in the directory. What a member
--      has besides the parts of own keys has no key (NULL), and may be below zero. A key has no member (NULL) where
--      OpenAI's split by member lacks its owner; only a service account keeps its keys' parts, since OpenAI may leave
--      service accounts out of the split by member.
--   2. allocated: elsewhere a charge is split by the usage that explains it (attribution.sql). Each pair of member
--      and API key gets the share that it has
--        a. of the tokens of the charge's direction (uncached input, cached input, output, cache writes),
--        b. of images, seconds or characters, without a direction or such tokens,
--        c. of calls or requests, where all those are 0.
--      Where OpenAI splits only by member, or only by key, the other's sums are those of these shares.
--   3. Parts are whole 10^-18 dollars. What rounding down leaves goes, one each, to the parts with the largest
--      remainder, so that the parts add up to the amount to the last digit.
--   4. What is left has neither member nor key. `unattributed_reason`, of rows without a member: no_usage (no usage
--      explains the charge: storage, training, credits), no_dimension (usage, or OpenAI's split, without a member),
--      remainder (what OpenAI's split lacks, or has too much since it was fetched a moment later); the larger part
--      of an amount decides between the last two.
--   5. Parts of zero are left out; a charge of zero has one row, one without an amount none.
--   6. `charges_usd` is amount_usd where the charge itself is above zero, else 0.
--   7. `principal_type` and service accounts are those of the directory; days are computed again when it changes
--      (api_keys.sql, members.sql).

-- [create]
CREATE TABLE daily_attributed_costs (
    user_id              VARCHAR NOT NULL,
    provider             VARCHAR NOT NULL,
    date                 DATE NOT NULL,
    project_id           VARCHAR,
    line_item            VARCHAR,
    member_id            VARCHAR,
    api_key_id           VARCHAR,
    cost_model           VARCHAR NOT NULL,
    direction            VARCHAR,
    tier                 VARCHAR,
    cost_service         VARCHAR,
    charge_category      VARCHAR,
    amount_usd           DECIMAL(38, 18) NOT NULL,
    charges_usd          DECIMAL(38, 18) NOT NULL,
    principal_type       VARCHAR NOT NULL,
    unattributed_reason  VARCHAR,
    method               VARCHAR NOT NULL,
    member_method        VARCHAR NOT NULL,
    api_key_method       VARCHAR NOT NULL
);

-- [define]
COMMENT ON TABLE daily_attributed_costs IS 'Every charge split by member and API key: one row per user, UTC day, project, line item, member and API key. The rows of a charge add up to its amount in daily_costs.';
COMMENT ON COLUMN daily_attributed_costs.user_id IS 'User (tenant)';
COMMENT ON COLUMN daily_attributed_costs.provider IS 'Provider: openai';
COMMENT ON COLUMN daily_attributed_costs.date IS 'UTC day';
COMMENT ON COLUMN daily_attributed_costs.project_id IS 'OpenAI project; NULL for a charge of the whole organization';
COMMENT ON COLUMN daily_attributed_costs.line_item IS 'OpenAI''s text of the charge; NULL if OpenAI gave none';
COMMENT ON COLUMN daily_attributed_costs.member_id IS 'OpenAI organization member or service account; NULL for costs without a known principal';
COMMENT ON COLUMN daily_attributed_costs.api_key_id IS 'OpenAI API key; NULL for costs without a known key';
COMMENT ON COLUMN daily_attributed_costs.cost_model IS 'Model as named in costs; the line item''s text for charges without a model';
COMMENT ON COLUMN daily_attributed_costs.direction IS 'Token type, as in daily_costs; NULL without one';
COMMENT ON COLUMN daily_attributed_costs.tier IS 'Service tier or calling surface, as in daily_costs; NULL without one';
COMMENT ON COLUMN daily_attributed_costs.cost_service IS 'What is charged for, as in daily_costs. Never NULL';
COMMENT ON COLUMN daily_attributed_costs.charge_category IS 'usage, credit, adjustment or tax, as in daily_costs. Never NULL';
COMMENT ON COLUMN daily_attributed_costs.amount_usd IS 'USD, exact';
COMMENT ON COLUMN daily_attributed_costs.charges_usd IS 'amount_usd if the charge itself is above zero, else 0: without credits';
COMMENT ON COLUMN daily_attributed_costs.principal_type IS 'member, service_account, or none for costs without a known principal';
COMMENT ON COLUMN daily_attributed_costs.unattributed_reason IS 'Why the principal is unknown: no_usage, no_dimension (usage or split without a member) or remainder (of OpenAI''s split); NULL with one';
COMMENT ON COLUMN daily_attributed_costs.method IS 'billed: member and API key, as far as there are any, come from OpenAI''s split of costs; else allocated, by share of usage';
COMMENT ON COLUMN daily_attributed_costs.member_method IS 'billed if the member''s sums are as split by OpenAI, else allocated';
COMMENT ON COLUMN daily_attributed_costs.api_key_method IS 'billed if the API key''s sums are as split by OpenAI, else allocated';

-- [split]
-- Reads: split_days, used, use_names, key_owners, service_accounts, used_pairs, pools, charges (attribution.sql,
-- prepare); pipeline.billed_costs.
-- Leaves: attributed, the parts of each charge by its rowid; allocated, billed_parts and owners, which only this
-- section reads.
--
-- Rule 2: the parts of charges with usage, on days that OpenAI does not split in both ways.
CREATE OR REPLACE TEMP TABLE allocated AS
WITH open_charges AS (
    SELECT charges.*, charges.rowid AS charge, pools.only_pair
    FROM charges
    JOIN pools ON pools.rowid = charges.pool
    WHERE NOT (by_member AND by_key)
),
charged_tiers AS (SELECT DISTINCT pool, used_tier FROM charges WHERE used_tier IS NOT NULL),
shared_use AS (
    SELECT
        pools.rowid AS pool,
        pairs.pair,
        charged_tiers.used_tier IS NOT NULL AS has_own_line,
        used.*
    FROM pools
    SEMI JOIN (FROM open_charges WHERE only_pair IS NULL) AS shared ON shared.pool = pools.rowid
    JOIN use_names USING (name)
    JOIN used
        ON used.day = pools.day
        AND used.project_id IS NOT DISTINCT FROM pools.project_id
        AND used.service = use_names.service
        AND used.model IS NOT DISTINCT FROM use_names.model
    JOIN used_pairs AS pairs
        ON pairs.account = used.account
        AND pairs.used_member_id IS NOT DISTINCT FROM used.member_id
        AND pairs.api_key_id IS NOT DISTINCT FROM used.api_key_id
    LEFT JOIN charged_tiers ON charged_tiers.pool = pools.rowid AND charged_tiers.used_tier = used.tier
),
counted AS (
    SELECT
        charges.charge,
        shared_use.pair,
        CASE WHEN charges.used_tier IS NULL THEN NOT has_own_line ELSE shared_use.tier = charges.used_tier END
            AS is_of_tier,
        CASE charges.counter
            WHEN 'input' THEN shared_use.input
            WHEN 'cached_input' THEN shared_use.cached_input
            WHEN 'output' THEN shared_use.output
            WHEN 'cache_writes' THEN shared_use.cache_writes
            WHEN 'cache_writes_30m' THEN shared_use.cache_writes_30m
            WHEN 'cache_writes_12h' THEN shared_use.cache_writes_12h
            ELSE shared_use.other
        END AS measure,
        CASE WHEN charges.counter LIKE 'cache_writes%' THEN shared_use.cache_writes ELSE shared_use.other END
            AS second_measure,
        shared_use.requests_or_calls AS requests
    FROM shared_use
    JOIN open_charges AS charges USING (pool)
),
weights AS MATERIALIZED (
    SELECT
        charge,
        pair,
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
        charge,
        CASE
            WHEN sum(measure_of_tier) > 0 THEN 1
            WHEN sum(measure) > 0 THEN 2
            WHEN sum(second_measure) > 0 THEN 3
            WHEN sum(requests_of_tier) > 0 THEN 4
            WHEN sum(requests) > 0 THEN 5
        END AS chosen,
        CASE chosen
            WHEN 1 THEN sum(measure_of_tier)
            WHEN 2 THEN sum(measure)
            WHEN 3 THEN sum(second_measure)
            WHEN 4 THEN sum(requests_of_tier)
            WHEN 5 THEN sum(requests)
        END::HUGEINT AS whole
    FROM weights
    GROUP BY charge
),
-- Divided once a charge: a division of such numbers takes longer than everything else.
priced AS (
    SELECT charge, chosen, whole, units // whole AS units_each, units % whole AS units_left, units
    FROM totals
    JOIN (SELECT charge, abs(to_units(amount_usd)) AS units FROM open_charges) USING (charge)
    WHERE chosen IS NOT NULL
),
shares AS (
    SELECT
        charge,
        pair,
        whole,
        units,
        units_each,
        coalesce(CASE chosen
            WHEN 1 THEN measure_of_tier
            WHEN 2 THEN measure
            WHEN 3 THEN second_measure
            WHEN 4 THEN requests_of_tier
            WHEN 5 THEN requests
        END, 0)::HUGEINT AS weight,
        units_left * weight AS product,
        product // whole AS more
    FROM weights
    JOIN priced USING (charge)
),
ranked AS (
    SELECT
        charge,
        pair,
        -- units × weight ÷ whole, without a product that may overflow.
        units_each * weight + more AS part,
        row_number() OVER (PARTITION BY charge ORDER BY product - more * whole DESC, pair) AS place,
        units - sum(part) OVER (PARTITION BY charge) AS missing
    FROM shares
),
pairs AS (SELECT DISTINCT pair, member_id, api_key_id FROM used_pairs),
-- No usage measure: cannot be split. A member, or key, of all that usage has it nevertheless.
unmeasured AS (
    SELECT
        charge,
        CASE WHEN min(coalesce(member_id, '')) = max(coalesce(member_id, '')) THEN any_value(member_id) END
            AS member_id,
        CASE WHEN min(coalesce(api_key_id, '')) = max(coalesce(api_key_id, '')) THEN any_value(api_key_id) END
            AS api_key_id
    FROM weights
    SEMI JOIN (FROM totals WHERE chosen IS NULL) USING (charge)
    JOIN pairs USING (pair)
    GROUP BY charge
)
SELECT charge, member_id, api_key_id, amount_usd
FROM open_charges
JOIN pairs ON pairs.pair = open_charges.only_pair
UNION ALL
SELECT charge, member_id, api_key_id, amount_usd
FROM unmeasured
JOIN open_charges USING (charge)
UNION ALL
SELECT
    charge,
    member_id,
    api_key_id,
    from_units((part + (place <= missing)::HUGEINT)::HUGEINT)
        * CASE WHEN amount_usd < 0 THEN -1 ELSE 1 END::DECIMAL(1, 0)
FROM ranked
JOIN pairs USING (pair)
JOIN open_charges USING (charge)
-- Of a charge of zero the first part stays.
WHERE part > 0 OR place <= missing OR place = 1 AND amount_usd = 0;

-- Rule 1: the sums of members and of keys, on days that OpenAI splits; without an id, what its split has none for.
CREATE OR REPLACE TEMP TABLE billed_parts AS
WITH split_charges AS (SELECT rowid AS charge, * FROM charges WHERE by_member OR by_key),
billed AS (
    SELECT
        charge,
        split.reading = 'costs_by_member' AS is_member,
        CASE split.reading WHEN 'costs_by_member' THEN split.member_id ELSE split.api_key_id END AS id,
        split.amount_usd
    FROM pipeline.billed_costs AS split
    JOIN split_days USING (user_id, provider, date)
    JOIN split_charges AS charges
        ON charges.day = split_days.day
        AND charges.project_id IS NOT DISTINCT FROM split.project_id
        AND charges.line_item IS NOT DISTINCT FROM split.line_item
    WHERE split.amount_usd IS NOT NULL
      AND CASE split.reading
        WHEN 'costs_by_member' THEN by_member
        WHEN 'costs_by_key' THEN by_key
        ELSE false
    END
)
SELECT charge, is_member, id, sum(amount_usd) AS amount_usd
FROM (
    FROM billed
    UNION ALL
    SELECT charge, by_key, CASE WHEN by_key THEN member_id ELSE api_key_id END, allocated.amount_usd
    FROM allocated
    JOIN split_charges USING (charge)
)
GROUP BY ALL
HAVING sum(amount_usd) <> 0;

-- The owners of the keys on days that OpenAI splits.
CREATE OR REPLACE TEMP TABLE owners AS
WITH split_keys AS (
    SELECT DISTINCT day, account, id AS api_key_id
    FROM billed_parts
    JOIN charges ON charges.rowid = charge
    WHERE NOT is_member AND id IS NOT NULL
),
uses AS (
    SELECT
        day,
        api_key_id,
        member_id,
        sum(requests_or_calls) AS requests,
        sum(coalesce(input_tokens, 0) + coalesce(output_tokens, 0)) AS tokens
    FROM used
    SEMI JOIN split_keys USING (day, api_key_id)
    WHERE member_id IS NOT NULL
    GROUP BY ALL
),
most AS (
    FROM uses
    QUALIFY row_number() OVER (PARTITION BY day, api_key_id ORDER BY requests DESC NULLS LAST, tokens DESC, member_id) = 1
)
SELECT owned.day, owned.api_key_id, owned.member_id, services.member_id IS NOT NULL AS is_service_account
FROM (
    SELECT split.day, split.account, split.api_key_id, coalesce(most.member_id, known.owner_id) AS member_id
    FROM split_keys AS split
    LEFT JOIN most USING (day, api_key_id)
    LEFT JOIN key_owners AS known USING (account, api_key_id)
) AS owned
LEFT JOIN service_accounts AS services USING (account, member_id)
WHERE owned.member_id IS NOT NULL;

CREATE OR REPLACE TEMP TABLE attributed AS
WITH key_parts AS (
    SELECT
        keys.charge,
        CASE WHEN members.charge IS NOT NULL OR owners.is_service_account THEN owners.member_id END AS member_id,
        keys.id AS api_key_id,
        keys.amount_usd,
        members.charge IS NOT NULL AS is_in_members
    FROM billed_parts AS keys
    JOIN charges ON charges.rowid = keys.charge
    LEFT JOIN owners ON owners.day = charges.day AND owners.api_key_id = keys.id
    LEFT JOIN billed_parts AS members
        ON members.is_member AND members.charge = keys.charge AND members.id = owners.member_id
    WHERE NOT keys.is_member AND keys.id IS NOT NULL
),
member_parts AS (
    SELECT members.charge, members.id AS member_id, members.amount_usd - coalesce(of_keys.amount_usd, 0) AS amount_usd
    FROM billed_parts AS members
    LEFT JOIN (
        SELECT charge, member_id, sum(amount_usd) AS amount_usd FROM key_parts WHERE is_in_members GROUP BY ALL
    ) AS of_keys ON of_keys.charge = members.charge AND of_keys.member_id = members.id
    WHERE members.is_member AND members.id IS NOT NULL
),
identified AS (
    SELECT charge, member_id, api_key_id, amount_usd, is_in_members FROM key_parts
    UNION ALL
    SELECT charge, member_id, NULL, amount_usd, true FROM member_parts WHERE amount_usd <> 0
    UNION ALL
    SELECT charge, member_id, api_key_id, allocated.amount_usd, true
    FROM allocated
    JOIN charges ON charges.rowid = allocated.charge
    WHERE NOT by_member AND NOT by_key AND (member_id IS NOT NULL OR api_key_id IS NOT NULL)
),
without_id AS (
    SELECT charge, amount_usd FROM billed_parts WHERE is_member AND id IS NULL
),
-- Rule 4: what the parts of a charge leave of it.
rests AS (
    SELECT
        charges.rowid AS charge,
        charges.amount_usd - coalesce(parts.amount_usd, 0) AS amount_usd,
        coalesce(without_id.amount_usd, 0) - coalesce(parts.besides_members_usd, 0) AS unnamed_usd,
        CASE
            WHEN charges.pool IS NULL AND parts.charge IS NULL THEN 'no_usage'
            WHEN NOT by_member AND NOT by_key THEN 'no_dimension'
            WHEN abs(unnamed_usd) < abs(charges.amount_usd - coalesce(parts.amount_usd, 0) - unnamed_usd)
                THEN 'remainder'
            ELSE 'no_dimension'
        END AS unattributed_reason
    FROM charges
    LEFT JOIN (
        SELECT
            charge,
            sum(amount_usd) AS amount_usd,
            sum(amount_usd) FILTER (NOT is_in_members) AS besides_members_usd
        FROM identified
        GROUP BY charge
    ) AS parts ON parts.charge = charges.rowid
    LEFT JOIN without_id ON without_id.charge = charges.rowid
    WHERE parts.charge IS NULL OR charges.amount_usd <> parts.amount_usd
),
cells AS (
    SELECT
        charge, member_id, api_key_id, amount_usd, is_in_members,
        CASE WHEN member_id IS NULL THEN 'no_dimension' END AS unattributed_reason
    FROM identified
    UNION ALL
    SELECT charge, NULL, NULL, amount_usd, true, unattributed_reason FROM rests
)
SELECT
    cells.charge,
    cells.member_id,
    cells.api_key_id,
    cells.amount_usd,
    CASE WHEN charges.amount_usd > 0 THEN cells.amount_usd ELSE 0 END AS charges_usd,
    CASE
        WHEN cells.member_id IS NULL THEN 'none'
        WHEN service_accounts.member_id IS NOT NULL THEN 'service_account'
        ELSE 'member'
    END AS principal_type,
    cells.unattributed_reason,
    CASE WHEN by_key THEN 'billed' ELSE 'allocated' END AS api_key_method,
    -- The sums of a service account that OpenAI's split by member lacks are those of its keys.
    CASE
        WHEN cells.member_id IS NOT NULL AND NOT is_in_members THEN api_key_method
        WHEN by_member THEN 'billed'
        ELSE 'allocated'
    END AS member_method
FROM cells
JOIN charges ON charges.rowid = cells.charge
LEFT JOIN service_accounts
    ON service_accounts.account = charges.account AND service_accounts.member_id = cells.member_id;

-- [refresh]
-- Reads: split_days, charges (attribution.sql, prepare), attributed (split).
-- Leaves: the rows of the days in split_days.
DELETE FROM daily_attributed_costs AS old
USING split_days AS stale
WHERE old.user_id = stale.user_id AND old.provider = stale.provider AND old.date = stale.date;

INSERT INTO daily_attributed_costs
SELECT
    split.user_id,
    split.provider,
    split.date,
    charges.project_id,
    charges.line_item,
    parts.member_id,
    parts.api_key_id,
    charges.cost_model,
    charges.direction,
    charges.tier,
    charges.cost_service,
    charges.charge_category,
    parts.amount_usd,
    parts.charges_usd,
    parts.principal_type,
    parts.unattributed_reason,
    CASE
        WHEN parts.member_id IS NULL AND parts.api_key_id IS NULL THEN least(member_method, api_key_method)
        WHEN parts.member_id IS NULL THEN api_key_method
        WHEN parts.api_key_id IS NULL THEN member_method
        ELSE least(member_method, api_key_method)
    END,
    parts.member_method,
    parts.api_key_method
FROM attributed AS parts
JOIN charges ON charges.rowid = parts.charge
JOIN split_days AS split USING (day);
