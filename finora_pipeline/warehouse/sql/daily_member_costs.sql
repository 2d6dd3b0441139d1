-- daily_member_costs: what each member cost, by day, project and model.
--
-- Grain: user, provider, date, project_id, member_id, model. How amounts are split: attribution.sql.
-- Its rows add up to daily_costs for every user, day and project, to the last digit.

-- [create]
CREATE TABLE daily_member_costs (
    user_id     VARCHAR NOT NULL,
    provider    VARCHAR NOT NULL,
    date        DATE NOT NULL,
    project_id  VARCHAR,
    member_id   VARCHAR,
    model       VARCHAR NOT NULL,
    amount_usd  DECIMAL(38, 18) NOT NULL,
    method      VARCHAR NOT NULL,
    is_sample   BOOLEAN NOT NULL
);
COMMENT ON TABLE daily_member_costs IS 'Cost by member: one row a user, UTC day, project, member and model. Its rows add up to daily_costs.';
COMMENT ON COLUMN daily_member_costs.user_id IS 'Our user';
COMMENT ON COLUMN daily_member_costs.provider IS 'Who charged: openai';
COMMENT ON COLUMN daily_member_costs.date IS 'UTC day';
COMMENT ON COLUMN daily_member_costs.project_id IS 'OpenAI project';
COMMENT ON COLUMN daily_member_costs.member_id IS 'OpenAI organization member; NULL for what cannot be attributed';
COMMENT ON COLUMN daily_member_costs.model IS 'Model as the costs name it; the line item''s text for charges without a model';
COMMENT ON COLUMN daily_member_costs.amount_usd IS 'USD, exact';
COMMENT ON COLUMN daily_member_costs.method IS 'billed: as OpenAI splits the costs; allocated: by share of the use of the line''s model and direction';
COMMENT ON COLUMN daily_member_costs.is_sample IS 'Made-up row of a user without real data';

-- [shared_use]
-- Days that OpenAI splits itself, and the use that the charges of the others are split by.
CREATE OR REPLACE TEMP TABLE billed_days AS
SELECT user_id, provider, date
FROM pipeline.loaded_days
SEMI JOIN split_days USING (user_id, provider, date)
WHERE endpoint = 'costs_by_member';

CREATE OR REPLACE TEMP VIEW split_used AS
SELECT pools.rowid AS pool, used.* EXCLUDE (used_model), used.member_id AS id
FROM pools
JOIN used
    ON used.user_id = pools.user_id
    AND used.provider = pools.provider
    AND used.date = pools.date
    AND used.project_id IS NOT DISTINCT FROM pools.project_id
    AND used.used_model IS NOT DISTINCT FROM pools.used_model
WHERE pools.has_members;

-- [refresh]
-- In three steps, whose rows never meet: within a project and day a model's charges all share one use.
DELETE FROM daily_member_costs AS old
USING split_days AS stale
WHERE old.user_id = stale.user_id AND old.provider = stale.provider AND old.date = stale.date;

-- Charges whose use is one member's, or nobody's.
INSERT INTO daily_member_costs
SELECT
    costs.user_id,
    costs.provider,
    costs.date,
    costs.project_id,
    pools.only_member,
    coalesce(costs.model, costs.line_item, 'not attributed'),
    sum(costs.amount_usd),
    'allocated',
    bool_or(costs.is_sample)
FROM daily_costs AS costs
SEMI JOIN split_days USING (user_id, provider, date)
ANTI JOIN billed_days USING (user_id, provider, date)
LEFT JOIN charge_pools ON charge_pools.charge = costs.rowid
LEFT JOIN pools ON pools.rowid = charge_pools.pool
WHERE costs.amount_usd IS NOT NULL AND pools.has_members IS NOT true
GROUP BY ALL;

-- Charges whose use several share.
INSERT INTO daily_member_costs
SELECT
    costs.user_id,
    costs.provider,
    costs.date,
    costs.project_id,
    attributed.id,
    coalesce(costs.model, costs.line_item, 'not attributed'),
    sum(attributed.amount_usd),
    'allocated',
    bool_or(costs.is_sample)
FROM attributed
JOIN daily_costs AS costs ON costs.rowid = attributed.charge
ANTI JOIN billed_days USING (user_id, provider, date)
GROUP BY ALL;

-- Charges that OpenAI splits itself, and what its split lacks.
INSERT INTO daily_member_costs
WITH charges AS (
    SELECT *, rowid AS charge FROM daily_costs
    SEMI JOIN billed_days USING (user_id, provider, date)
    WHERE amount_usd IS NOT NULL
),
told AS (
    SELECT charges.charge, billed.member_id AS id, billed.amount_usd
    FROM charges
    JOIN pipeline.billed_costs AS billed
        ON billed.reading = 'costs_by_member'
        AND billed.user_id = charges.user_id
        AND billed.provider = charges.provider
        AND billed.date = charges.date
        AND billed.project_id IS NOT DISTINCT FROM charges.project_id
        AND billed.line_item IS NOT DISTINCT FROM charges.line_item
    WHERE billed.amount_usd IS NOT NULL
),
split AS (
    FROM told
    UNION ALL
    SELECT charges.charge, NULL, charges.amount_usd - coalesce(sum(told.amount_usd), 0) AS rest
    FROM charges
    LEFT JOIN told USING (charge)
    GROUP BY charges.charge, charges.amount_usd
    HAVING rest <> 0
)
SELECT
    charges.user_id,
    charges.provider,
    charges.date,
    charges.project_id,
    split.id,
    coalesce(charges.model, charges.line_item, 'not attributed'),
    sum(split.amount_usd),
    'billed',
    bool_or(charges.is_sample)
FROM split
JOIN charges USING (charge)
GROUP BY ALL;

INSERT INTO pipeline.unpublished_months
SELECT DISTINCT 'daily_member_costs', date_trunc('month', date)::DATE FROM split_days
EXCEPT
FROM pipeline.unpublished_months;
