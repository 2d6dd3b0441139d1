"""OpenAI's organization endpoints, one row each: path, page limit, dimensions and measures.

Source: the official Python SDK 3.54 (`client.admin.organization.usage`) and the published OpenAPI
document. All take GET with `start_time` (inclusive) and `end_time` (exclusive) in Unix seconds and
`bucket_width=1d`; the page limits are those for daily buckets.
"""

from dataclasses import dataclass, replace

from finora_pipeline.openai_admin.measures import TOKEN_MEASURES

COSTS_RESULT = "organization.costs.result"
USAGE_KIND = "usage"
BILLED_KIND = "billed"
DIRECTORY_KIND = "directory"
COSTS_DAYS_PER_PAGE = 180
USAGE_DAYS_PER_PAGE = 31

# The dimensions of daily_usage, in the names of OpenAI's `group_by`.
# An organization's API may refuse the optional ones (400); its usage is then fetched without them.
OPTIONAL_DIMENSIONS = ("size", "source", "context_level", "vector_store_id")
USAGE_DIMENSIONS = (
    *("project_id", "user_id", "api_key_id", "model", "batch", "service_tier"),
    *OPTIONAL_DIMENSIONS,
)
_BY_KEY = ("project_id", "user_id", "api_key_id", "model")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint of the organization API.

    `name`: the last part of its path and the `service` of its usage rows; `dimensions`: the `group_by`
    values that OpenAI accepts; `group_by`: those we request; `measures`: the numbers of a result.
    """

    name: str
    result_object: str
    dimensions: tuple[str, ...]
    measures: tuple[str, ...]
    group_by: tuple[str, ...]
    days_per_page: int = USAGE_DAYS_PER_PAGE

    @property
    def optional_group_by(self) -> tuple[str, ...]:
        """The requested dimensions that an organization's API may refuse."""
        return tuple(dimension for dimension in self.group_by if dimension in OPTIONAL_DIMENSIONS)

    @property
    def required_group_by(self) -> tuple[str, ...]:
        """The requested dimensions without the optional ones."""
        return tuple(dimension for dimension in self.group_by if dimension not in OPTIONAL_DIMENSIONS)

    @property
    def is_costs(self) -> bool:
        """Whether its rows are costs; otherwise they are usage."""
        return self.result_object == COSTS_RESULT

    @property
    def path(self) -> str:
        """The path below the base address."""
        return "/organization/costs" if self.is_costs else f"/organization/usage/{self.name}"

    @property
    def kind(self) -> str:
        """The group that is landed and loaded together: costs, their other views, or all usage."""
        if self.name == "costs":
            return "costs"
        return BILLED_KIND if self.is_costs else USAGE_KIND


def _usage(
    name: str, dimensions: tuple[str, ...], measures: tuple[str, ...], result: str | None = None
) -> Endpoint:
    group_by = tuple(dimension for dimension in dimensions if dimension in USAGE_DIMENSIONS)
    return Endpoint(name, f"organization.usage.{result or name}.result", dimensions, measures, group_by)


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of the directory, with names for the ids in costs and usage; `name` is its table."""

    name: str
    path: str
    params: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        """The group that is landed and loaded together: the whole directory."""
        return DIRECTORY_KIND


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            "costs",
            COSTS_RESULT,
            ("project_id", "user_id", "line_item", "api_key_id", "api_source"),
            ("amount", "quantity"),
            ("project_id", "line_item"),
            COSTS_DAYS_PER_PAGE,
        ),
        _usage(
            "completions",
            (*_BY_KEY, "batch", "service_tier", "api_source"),
            (*TOKEN_MEASURES, "num_model_requests"),
        ),
        _usage("embeddings", _BY_KEY, ("input_tokens", "num_model_requests")),
        _usage("moderations", _BY_KEY, ("input_tokens", "num_model_requests")),
        _usage("images", (*_BY_KEY, "size", "source"), ("images", "num_model_requests")),
        _usage("audio_speeches", _BY_KEY, ("characters", "num_model_requests")),
        _usage("audio_transcriptions", _BY_KEY, ("seconds", "num_model_requests")),
        _usage("vector_stores", ("project_id",), ("usage_bytes",)),
        _usage("code_interpreter_sessions", ("project_id",), ("num_sessions",)),
        # The next two name their result objects unlike their paths.
        _usage(
            "file_search_calls",
            ("project_id", "user_id", "api_key_id", "vector_store_id"),
            ("num_requests",),
            result="file_searches",
        ),
        _usage(
            "web_search_calls",
            (*_BY_KEY, "context_level", "api_source"),
            ("num_requests", "num_model_requests"),
            result="web_searches",
        ),
        _usage(
            "decisions",
            (*_BY_KEY, "batch", "service_tier", "api_source"),
            (*TOKEN_MEASURES, "num_model_requests"),
        ),
    )
}

PROJECTS = Listing("projects", "/organization/projects", (("include_archived", "true"),))
MEMBERS = Listing("members", "/organization/users")
# Without `any` OpenAI omits the keys of members who left.
API_KEYS = Listing(
    "api_keys", "/organization/projects/{project_id}/api_keys", (("owner_project_access", "any"),)
)
# Not in the list of members, although their ids are the `user_id` of usage rows.
SERVICE_ACCOUNTS = Listing("service_accounts", "/organization/projects/{project_id}/service_accounts")
# Fetched only for the expiry of the key itself, never landed.
ADMIN_KEYS = Listing("admin_api_keys", "/organization/admin_api_keys")

COSTS = ENDPOINTS["costs"]
# Other views of the costs: OpenAI's total, and by member and by API key, which the API of some organizations
# refuses (400).
COST_TOTALS = replace(COSTS, name="cost_totals", group_by=())
COSTS_BY: dict[str, Endpoint] = {
    dimension: replace(COSTS, name=name, group_by=(*COSTS.group_by, dimension))
    for dimension, name in (("user_id", "costs_by_member"), ("api_key_id", "costs_by_key"))
}
USAGE: tuple[Endpoint, ...] = tuple(endpoint for endpoint in ENDPOINTS.values() if endpoint is not COSTS)
# What a refresh fetches in addition to costs, by name.
EXTRA_ENDPOINTS: dict[str, Endpoint] = {e.name: e for e in (COST_TOTALS, *COSTS_BY.values(), *USAGE)}
USAGE_MEASURES: tuple[str, ...] = tuple(dict.fromkeys(measure for e in USAGE for measure in e.measures))
