-- Ids that are unique across users, for tools that join by one column.
ALTER TABLE projects ADD COLUMN project_key VARCHAR;
ALTER TABLE members ADD COLUMN member_key VARCHAR;
ALTER TABLE api_keys ADD COLUMN api_key_key VARCHAR;

UPDATE projects SET project_key = user_id || '/' || project_id;

UPDATE members SET member_key = user_id || '/' || member_id;

UPDATE api_keys SET api_key_key = user_id || '/' || api_key_id;
