-- Facts with the names of their ids. Views, so that each name is the newest that OpenAI has listed.

-- [define]
-- An id that no list has had is `unknown`: it was deleted before the first list was fetched.
CREATE OR REPLACE MACRO name_or_unknown(id, name) AS CASE WHEN id IS NOT NULL THEN coalesce(name, 'unknown') END;

CREATE OR REPLACE VIEW named_usage AS
SELECT
    usage.*,
    name_or_unknown(usage.project_id, projects.name) AS project_name,
    name_or_unknown(usage.member_id, members.name) AS member_name,
    name_or_unknown(usage.member_id, members.email) AS member_email,
    name_or_unknown(usage.api_key_id, api_keys.name) AS api_key_name
FROM daily_usage AS usage
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN members USING (user_id, provider, member_id)
LEFT JOIN api_keys USING (user_id, provider, api_key_id);
COMMENT ON VIEW named_usage IS 'daily_usage with the names of projects, members and API keys.';

CREATE OR REPLACE VIEW named_member_costs AS
SELECT
    costs.*,
    name_or_unknown(costs.project_id, projects.name) AS project_name,
    name_or_unknown(costs.member_id, members.name) AS member_name,
    name_or_unknown(costs.member_id, members.email) AS member_email
FROM daily_member_costs AS costs
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN members USING (user_id, provider, member_id);
COMMENT ON VIEW named_member_costs IS 'daily_member_costs with the names of projects and members.';

CREATE OR REPLACE VIEW named_key_costs AS
SELECT
    costs.*,
    name_or_unknown(costs.project_id, projects.name) AS project_name,
    name_or_unknown(costs.api_key_id, api_keys.name) AS api_key_name,
    api_keys.owner_name,
    api_keys.owner_type
FROM daily_key_costs AS costs
LEFT JOIN projects USING (user_id, provider, project_id)
LEFT JOIN api_keys USING (user_id, provider, api_key_id);
COMMENT ON VIEW named_key_costs IS 'daily_key_costs with the names of projects, API keys and their owners.';
