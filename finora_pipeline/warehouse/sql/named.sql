-- Facts with the names of their ids. Views, so that each name is the newest that OpenAI has listed.
--
-- Grain: that of the table.
-- Rules
--   1. An id that no list has had is `unknown`: it was deleted before the first list was fetched. A row without the id
--      has no name.
--   2. Keys are user_id/id, so that one column joins a row with its project, member, API key or model, whatever other
--      users have. They are NULL without the id. A row whose id no list has had finds no row of the directory.
--   3. named_costs names a project as the newest list does, else as the charge did; an organization as its charge did,
--      else as its newest charge with a name.

-- [define]
CREATE OR REPLACE MACRO name_or_unknown(id, name) AS CASE WHEN id IS NOT NULL THEN coalesce(name, 'unknown') END;

CREATE OR REPLACE VIEW named_costs AS
WITH named AS (
    SELECT user_id, provider, organization_id, date, organization_name
    FROM daily_costs
    WHERE organization_name IS NOT NULL
)
SELECT
    costs.* REPLACE (
        name_or_unknown(costs.project_id, coalesce(projects.name, costs.project_name)) AS project_name,
        coalesce(
            costs.organization_name,
            of_organization.organization_name,
            CASE WHEN costs.organization_id IS NULL THEN of_user.organization_name END
        ) AS organization_name
    ),
    costs.user_id || '/' || costs.project_id AS project_key,
    costs.user_id || '/' || costs.cost_model AS model_key
FROM daily_costs AS costs
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN (
    SELECT user_id, provider, organization_id, arg_max(organization_name, date) AS organization_name
    FROM named
    GROUP BY ALL
) AS of_organization USING (user_id, provider, organization_id)
LEFT JOIN (
    SELECT user_id, provider, arg_max(organization_name, date) AS organization_name FROM named GROUP BY ALL
) AS of_user USING (user_id, provider);

CREATE OR REPLACE VIEW named_usage AS
SELECT
    usage.*,
    name_or_unknown(usage.project_id, projects.name) AS project_name,
    name_or_unknown(usage.member_id, members.name) AS member_name,
    CASE WHEN members.last_seen_at IS NULL THEN name_or_unknown(usage.member_id, NULL) ELSE members.email END AS member_email,
    name_or_unknown(usage.api_key_id, api_keys.name) AS api_key_name,
    usage.user_id || '/' || usage.project_id AS project_key,
    usage.user_id || '/' || usage.member_id AS member_key,
    usage.user_id || '/' || usage.api_key_id AS api_key_key,
    usage.user_id || '/' || usage.cost_model AS model_key
FROM daily_usage AS usage
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN members USING (user_id, provider, member_id)
LEFT JOIN api_keys USING (user_id, provider, api_key_id);

CREATE OR REPLACE VIEW named_attributed_costs AS
SELECT
    costs.*,
    name_or_unknown(costs.project_id, projects.name) AS project_name,
    name_or_unknown(costs.member_id, members.name) AS member_name,
    CASE WHEN members.last_seen_at IS NULL THEN name_or_unknown(costs.member_id, NULL) ELSE members.email END AS member_email,
    name_or_unknown(costs.api_key_id, api_keys.name) AS api_key_name,
    api_keys.owner_name,
    api_keys.owner_type,
    costs.user_id || '/' || costs.project_id AS project_key,
    costs.user_id || '/' || costs.member_id AS member_key,
    costs.user_id || '/' || costs.api_key_id AS api_key_key,
    costs.user_id || '/' || costs.cost_model AS model_key
FROM daily_attributed_costs AS costs
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN members USING (user_id, provider, member_id)
LEFT JOIN api_keys USING (user_id, provider, api_key_id);

CREATE OR REPLACE VIEW named_member_costs AS
SELECT
    costs.*,
    name_or_unknown(costs.project_id, projects.name) AS project_name,
    name_or_unknown(costs.member_id, members.name) AS member_name,
    CASE WHEN members.last_seen_at IS NULL THEN name_or_unknown(costs.member_id, NULL) ELSE members.email END AS member_email,
    costs.user_id || '/' || costs.project_id AS project_key,
    costs.user_id || '/' || costs.member_id AS member_key,
    costs.user_id || '/' || costs.model AS model_key
FROM daily_member_costs AS costs
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN members USING (user_id, provider, member_id);

CREATE OR REPLACE VIEW named_key_costs AS
SELECT
    costs.*,
    name_or_unknown(costs.project_id, projects.name) AS project_name,
    name_or_unknown(costs.api_key_id, api_keys.name) AS api_key_name,
    api_keys.owner_name,
    api_keys.owner_type,
    costs.user_id || '/' || costs.project_id AS project_key,
    costs.user_id || '/' || costs.api_key_id AS api_key_key,
    costs.user_id || '/' || costs.model AS model_key
FROM daily_key_costs AS costs
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN api_keys USING (user_id, provider, api_key_id);

-- [comments]
-- Columns that are not here have the comments of their table (schema.py).
COMMENT ON MACRO name_or_unknown IS 'Name of an id, unknown where no list of OpenAI had it; NULL without an id';
COMMENT ON VIEW named_costs IS 'daily_costs with the newest names of projects and the organization.';
COMMENT ON COLUMN named_costs.project_name IS 'Newest name of the project; NULL for a charge without a project';
COMMENT ON COLUMN named_costs.organization_name IS 'Name of the OpenAI organization at the fetch time, else its newest known one; NULL if unknown';
COMMENT ON COLUMN named_costs.project_key IS 'user_id/project_id, as in projects; NULL for a charge without a project';
COMMENT ON COLUMN named_costs.model_key IS 'user_id/cost_model, as in models';
COMMENT ON VIEW named_usage IS 'daily_usage with the names of projects, members and API keys.';
COMMENT ON COLUMN named_usage.project_name IS 'Newest name of the project; unknown if no list had it, NULL without a project';
COMMENT ON COLUMN named_usage.member_name IS 'Newest name of the member or service account; unknown if no list had it, NULL without one';
COMMENT ON COLUMN named_usage.member_email IS 'Email address; unknown if no list had the member, NULL without a member and for a service account';
COMMENT ON COLUMN named_usage.api_key_name IS 'Newest name of the API key; unknown if no list had it, NULL without one';
COMMENT ON COLUMN named_usage.project_key IS 'user_id/project_id, as in projects; NULL without a project';
COMMENT ON COLUMN named_usage.member_key IS 'user_id/member_id, as in members; NULL without a member';
COMMENT ON COLUMN named_usage.api_key_key IS 'user_id/api_key_id, as in api_keys; NULL without an API key';
COMMENT ON COLUMN named_usage.model_key IS 'user_id/cost_model, as in models; a service without a model and without charges is not there';
COMMENT ON VIEW named_attributed_costs IS 'daily_attributed_costs with the names of projects, members, API keys and the keys'' owners.';
COMMENT ON COLUMN named_attributed_costs.project_name IS 'Newest name of the project; unknown if no list had it, NULL without a project';
COMMENT ON COLUMN named_attributed_costs.member_name IS 'Newest name of the member or service account; unknown if no list had it, NULL without one';
COMMENT ON COLUMN named_attributed_costs.member_email IS 'Email address; unknown if no list had the member, NULL without a member and for a service account';
COMMENT ON COLUMN named_attributed_costs.api_key_name IS 'Newest name of the API key; unknown if no list had it, NULL without one';
COMMENT ON COLUMN named_attributed_costs.owner_name IS 'Name of the API key''s owner; NULL without a key, or if no list had it';
COMMENT ON COLUMN named_attributed_costs.owner_type IS 'user or service_account: what the API key''s owner is; NULL as for owner_name';
COMMENT ON COLUMN named_attributed_costs.project_key IS 'user_id/project_id, as in projects; NULL without a project';
COMMENT ON COLUMN named_attributed_costs.member_key IS 'user_id/member_id, as in members; NULL without a member';
COMMENT ON COLUMN named_attributed_costs.api_key_key IS 'user_id/api_key_id, as in api_keys; NULL without an API key';
COMMENT ON COLUMN named_attributed_costs.model_key IS 'user_id/cost_model, as in models';
COMMENT ON VIEW named_member_costs IS 'daily_member_costs with the names of projects and members.';
COMMENT ON COLUMN named_member_costs.project_name IS 'Newest name of the project; unknown if no list had it, NULL without a project';
COMMENT ON COLUMN named_member_costs.member_name IS 'Newest name of the member or service account; unknown if no list had it, NULL without one';
COMMENT ON COLUMN named_member_costs.member_email IS 'Email address; unknown if no list had the member, NULL without a member and for a service account';
COMMENT ON COLUMN named_member_costs.project_key IS 'user_id/project_id, as in projects; NULL without a project';
COMMENT ON COLUMN named_member_costs.member_key IS 'user_id/member_id, as in members; NULL without a member';
COMMENT ON COLUMN named_member_costs.model_key IS 'user_id/model, as in models';
COMMENT ON VIEW named_key_costs IS 'daily_key_costs with the names of projects, API keys and their owners.';
COMMENT ON COLUMN named_key_costs.project_name IS 'Newest name of the project; unknown if no list had it, NULL without a project';
COMMENT ON COLUMN named_key_costs.api_key_name IS 'Newest name of the API key; unknown if no list had it, NULL without one';
COMMENT ON COLUMN named_key_costs.owner_name IS 'Name of the API key''s owner; NULL without a key, or if no list had it';
COMMENT ON COLUMN named_key_costs.owner_type IS 'user or service_account: what the API key''s owner is; NULL as for owner_name';
COMMENT ON COLUMN named_key_costs.project_key IS 'user_id/project_id, as in projects; NULL without a project';
COMMENT ON COLUMN named_key_costs.api_key_key IS 'user_id/api_key_id, as in api_keys; NULL without an API key';
COMMENT ON COLUMN named_key_costs.model_key IS 'user_id/model, as in models';
