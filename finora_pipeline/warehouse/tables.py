"""Names of the warehouse's tables, and the placeholders of SQL that several tables share."""

from collections.abc import Mapping

# Also published as Parquet, a file per month.
MONTHLY_TABLES = (
    "daily_costs",
    "daily_usage",
    "daily_model_costs",
    "daily_attributed_costs",
    "daily_member_costs",
    "daily_key_costs",
)
# The columns that identify a row.
GRAIN = {
    "daily_costs": "user_id, provider, date, project_id, line_item",
    "daily_usage": "user_id, provider, date, service, project_id, member_id, api_key_id, model, batch, "
    "service_tier",
}
# The tables of the directory, each with the column of its ids.
ID_COLUMN = {"projects": "project_id", "members": "member_id", "api_keys": "api_key_id"}
TABLES = (
    *MONTHLY_TABLES,
    "cost_revisions",
    "usage_revisions",
    "user_metrics",
    "daily_user_metrics",
    *ID_COLUMN,
    "connections",
)
# Views that add names and keys to a table (named.sql).
NAMED = {
    "named_costs": "daily_costs",
    "named_usage": "daily_usage",
    "named_attributed_costs": "daily_attributed_costs",
    "named_member_costs": "daily_member_costs",
    "named_key_costs": "daily_key_costs",
}

# Placeholders of split_costs.sql by table.
SPLIT_COSTS: Mapping[str, Mapping[str, str]] = {
    "daily_member_costs": {
        "table": "daily_member_costs",
        "id": "member_id",
        "method": "member_method",
        "owner": "member",
        "an_owner": "a member",
    },
    "daily_key_costs": {
        "table": "daily_key_costs",
        "id": "api_key_id",
        "method": "api_key_method",
        "owner": "API key",
        "an_owner": "an API key",
    },
}
# Placeholders of directory.sql by table. `scope` says what list of OpenAI's a held row belongs to; service
# accounts are listed by project.
DIRECTORY: Mapping[str, Mapping[str, str]] = {
    "projects": {"table": "projects", "id": "project_id", "key": "project_key", "scope": "''"},
    "members": {
        "table": "members",
        "id": "member_id",
        "key": "member_key",
        "scope": "CASE WHEN email IS NULL THEN 'service accounts' ELSE 'members' END",
    },
    "api_keys": {"table": "api_keys", "id": "api_key_id", "key": "api_key_key", "scope": "project_id"},
}
