-- Grain: part (project, member or api_key) and id. A period's costs by project, by member and by API key, in USD,
-- and the part of them before credits, with their newest names. Each part adds up to the costs of the period; id is NULL for unattributed costs.
WITH by_member AS (
    SELECT project_id, member_id, method, sum(amount_usd) AS amount_usd, sum(charges_usd) AS charges_usd
    FROM daily_member_costs
    WHERE user_id = $user_id
      AND date BETWEEN $first AND $last
      AND ($model IS NULL OR model = $model)
      AND ($project_id IS NULL OR project_id = $project_id)
    GROUP BY ALL
),
by_key AS (
    SELECT api_key_id, method, sum(amount_usd) AS amount_usd, sum(charges_usd) AS charges_usd
    FROM daily_key_costs
    WHERE user_id = $user_id
      AND date BETWEEN $first AND $last
      AND ($model IS NULL OR model = $model)
      AND ($project_id IS NULL OR project_id = $project_id)
    GROUP BY ALL
),
parts AS (
    SELECT
        'project' AS part, project_id AS id, false AS is_allocated, sum(amount_usd) AS amount_usd,
        coalesce(sum(charges_usd), 0) AS charges_usd
    FROM by_member
    GROUP BY ALL
    UNION ALL
    SELECT 'member', member_id, bool_or(method = 'allocated'), sum(amount_usd), coalesce(sum(charges_usd), 0)
    FROM by_member
    GROUP BY member_id
    UNION ALL
    SELECT 'api_key', api_key_id, bool_or(method = 'allocated'), sum(amount_usd), coalesce(sum(charges_usd), 0)
    FROM by_key
    GROUP BY api_key_id
)
SELECT parts.part, parts.id, coalesce(nullif(trim(names.name), ''), parts.id) AS name, parts.is_allocated, parts.amount_usd,
    parts.charges_usd
FROM parts
LEFT JOIN (
    SELECT 'project' AS part, project_id AS id, name FROM projects WHERE user_id = $user_id
    UNION ALL
    SELECT 'member', member_id, coalesce(nullif(trim(name), ''), email) FROM members WHERE user_id = $user_id
    UNION ALL
    SELECT 'api_key', api_key_id, name FROM api_keys WHERE user_id = $user_id
) AS names USING (part, id)
ORDER BY parts.part, parts.amount_usd DESC, parts.id;
