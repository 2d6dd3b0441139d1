"""Names of the warehouse's tables, and the placeholders of SQL that several tables share."""

from collections.abc import Mapping
from dataclasses import dataclass

# Version of the published tables and views, which docs/schema.md explains and a test compares with them.
SCHEMA_VERSION = "2.0.0"
# Facts and costs by model, member and key, whose changed months loads and computations mark as unpublished.
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
    "service_tier, image_size, image_source, context_level, vector_store_id",
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
    "about",
)


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """A published table or view as Parquet files, with the order of its rows: readers skip other users.

    `day`: the column of UTC days whose months have a file each, or None for one file. `made_from`: other
    tables whose changed months change this one. `follows_clock`: whether rows change as days end, without a
    load. `added_at`: the column of moments of a table to which rows are only added; those of the running UTC
    day are in a file an hour, since each refresh would write them all again.
    """

    name: str
    order: str
    day: str | None = None
    made_from: tuple[str, ...] = ()
    follows_clock: bool = False
    added_at: str | None = None


def _by_user(grain: str) -> str:
    """The order of a table with days: by user, then day, then the rest of its grain."""
    return ", ".join(dict.fromkeys(("user_id", "date", *grain.split(", "))))


# Every published table and view, but for the views that only add names (named.sql).
PARQUET_TABLES = (
    ParquetTable("daily_costs", _by_user(GRAIN["daily_costs"]), "date"),
    ParquetTable("daily_usage", _by_user(GRAIN["daily_usage"]), "date"),
    ParquetTable("daily_model_costs", "user_id, date, provider, model", "date"),
    ParquetTable("daily_member_costs", "user_id, date, provider, project_id, member_id, model", "date"),
    ParquetTable("daily_key_costs", "user_id, date, provider, project_id, api_key_id, model", "date"),
    ParquetTable(
        "daily_attributed_costs",
        "user_id, date, provider, project_id, line_item, member_id, api_key_id",
        "date",
    ),
    ParquetTable(
        "daily_spend",
        "user_id, date, provider",
        "date",
        made_from=("daily_model_costs", "daily_usage", "pipeline.loaded_days"),
        follows_clock=True,
    ),
    ParquetTable(
        "cost_revisions",
        _by_user(f"{GRAIN['daily_costs']}, observed_at"),
        "date",
        added_at="observed_at",
    ),
    ParquetTable(
        "usage_revisions",
        _by_user(f"{GRAIN['daily_usage']}, observed_at"),
        "date",
        added_at="observed_at",
    ),
    ParquetTable(
        "reconciliation",
        "user_id, date, provider",
        "date",
        # Each computation of daily_model_costs computes the same days of reconciled_days.
        made_from=("daily_model_costs", "pipeline.reconciled_days"),
        follows_clock=True,
    ),
    ParquetTable(
        "restatements", _by_user(f"{GRAIN['daily_costs']}, observed_at"), "date", added_at="observed_at"
    ),
    ParquetTable("user_metrics", "user_id, provider, metric, period"),
    ParquetTable("daily_user_metrics", "user_id, as_of_date, provider, metric, period", "as_of_date"),
    ParquetTable("models", "user_id, provider, model"),
    ParquetTable("projects", "user_id, provider, project_id"),
    ParquetTable("members", "user_id, provider, member_id"),
    ParquetTable("api_keys", "user_id, provider, api_key_id"),
    ParquetTable("connections", "user_id, provider"),
    ParquetTable("about", "published_at"),
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
