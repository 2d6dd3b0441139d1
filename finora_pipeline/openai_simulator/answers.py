"""OpenAI's pages of costs and usage for a simulated organization.

Rows have the undocumented keys of the live API: `organization_id`, `project_name`, `start_time_iso` and
others. Amounts are decimal128 text, or numbers if the caller wants them.
"""

import base64
import hashlib
import struct
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal
from typing import Any, TypeVar

import msgspec

from finora_pipeline.openai_admin.endpoints import COSTS, OPTIONAL_DIMENSIONS, Endpoint
from finora_pipeline.openai_simulator.organization import Cell, SimulatedOrganization

Params = dict[str, list[str]]
Row = dict[str, Any]
Default = TypeVar("Default")

_DECIMAL128 = Context(prec=34)
DAY = 86_400
DEFAULT_LIMIT = 7
# OpenAI documents no bounds; these are those of `datetime`.
_TIMES = range(
    int(datetime(1, 1, 1, tzinfo=UTC).timestamp()), int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
)
# Filters: query parameter → the dimension it filters.
FILTERS = {
    "project_ids": "project_id",
    "user_ids": "user_id",
    "api_key_ids": "api_key_id",
    "models": "model",
    "line_items": "line_item",
    "batch": "batch",
    "sizes": "size",
    "sources": "source",
    "context_levels": "context_level",
    "vector_store_ids": "vector_store_id",
}


class BadRequest(Exception):
    """OpenAI answers the query with 400; the text is its message."""


def decimal128_text(amount: Decimal) -> str:
    """An amount as in the live API: 34 significant digits, zero as `0E-6176`."""
    if not amount:
        return "0E-6176"
    exact = amount.quantize(Decimal(1).scaleb(amount.adjusted() - 33), context=_DECIMAL128)
    return format(exact, "f")


@dataclass(frozen=True, slots=True)
class Query:
    """A checked query of costs or usage.

    `start`, `end`: Unix seconds; `limit`: buckets per page; `fingerprint`: identifies the parameters, to
    which OpenAI binds page tokens.
    """

    start: int
    end: int
    limit: int
    group_by: tuple[str, ...]
    filters: dict[str, frozenset[str | bool]]
    fingerprint: int


def parse_query(
    endpoint: Endpoint, organization: SimulatedOrganization, params: Params, now: datetime
) -> Query:
    """Check the parameters as OpenAI does. Raises `BadRequest`."""
    clean = {name.removesuffix("[]"): values for name, values in params.items()}
    start = whole_number(clean, "start_time", _TIMES, None)
    if start is None:
        raise BadRequest("Missing required parameter: 'start_time'.")
    end = whole_number(clean, "end_time", _TIMES, int(now.timestamp()))
    if endpoint is COSTS:
        start -= start % DAY
    if clean.get("bucket_width", ["1d"]) != ["1d"]:
        raise BadRequest("This simulator has daily buckets only.")
    limit = whole_number(clean, "limit", range(1, endpoint.days_per_page + 1), DEFAULT_LIMIT)
    group_by = tuple(clean.get("group_by", ()))
    if unknown := set(group_by) - set(endpoint.dimensions):
        raise BadRequest(f"Invalid 'group_by': {sorted(unknown)}.")
    if endpoint is COSTS:
        refused = set(group_by) & {"user_id", "api_key_id"} - set(organization.spec.cost_groupings)
    else:
        refused = set(group_by) & set(organization.spec.refused_dimensions)
    if refused:
        raise BadRequest(f"Grouping by {sorted(refused)} is not supported for this organization.")
    filters: dict[str, frozenset[str | bool]] = {
        dimension: frozenset(clean[name])
        for name, dimension in FILTERS.items()
        if dimension in endpoint.dimensions and clean.get(name)
    }
    if values := filters.get("batch"):
        if not values <= {"true", "false"}:
            raise BadRequest("Invalid 'batch': expected a boolean.")
        filters["batch"] = frozenset(text == "true" for text in values)
    bound = sorted((name, value) for name, value in clean.items() if name != "page")
    digest = hashlib.sha256(repr((organization.id, endpoint.name, bound)).encode()).digest()
    return Query(start, end, limit, group_by, filters, int.from_bytes(digest[:4], "big"))


def page_of(
    endpoint: Endpoint,
    organization: SimulatedOrganization,
    params: Params,
    now: datetime,
    amounts_as_numbers: bool = False,
) -> Row:
    """The page that OpenAI would send. Raises `BadRequest`, also for another query's page token."""
    query = parse_query(endpoint, organization, params, now)
    first = query.start
    if token := params.get("page", [None])[0]:
        first = _start_of_token(token, query.fingerprint)
    buckets: list[Row] = []
    start = first
    while start < query.end and len(buckets) < query.limit:
        end = start - start % DAY + DAY
        day = datetime.fromtimestamp(start, UTC).date()
        cells = organization.cells(day, now)
        if endpoint is COSTS:
            results = _cost_rows(organization, cells, query, amounts_as_numbers)
        else:
            results = _usage_rows(endpoint, cells, query)
        buckets.append(_bucket(start, end, results))
        start = end
    has_more = start < query.end
    return {
        "object": "page",
        "data": buckets,
        "has_more": has_more,
        "next_page": _token(start, query.fingerprint, now) if has_more else None,
    }


def _bucket(start: int, end: int, results: list[Row]) -> Row:
    # In the live API only empty buckets have a time zone in their ISO times.
    zone = "" if results else "+00:00"
    begin, finish = (datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%dT%H:%M:%S") for t in (start, end))
    return {
        "object": "bucket",
        "start_time": start,
        "end_time": end,
        "start_time_iso": begin + zone,
        "end_time_iso": finish + zone,
        "results": results,
    }


def _dimensions(cell: Cell) -> dict[str, Any]:
    key = cell.api_key
    return {
        "project_id": key.project.id,
        "user_id": key.member_id,
        "api_key_id": key.id,
        "model": cell.model,
        "batch": False,
        "service_tier": cell.service_tier,
        "api_source": "unlabeled",
        **dict.fromkeys(OPTIONAL_DIMENSIONS),
    }


def _cost_rows(
    organization: SimulatedOrganization, cells: list[Cell], query: Query, as_numbers: bool
) -> list[Row]:
    amounts: dict[tuple[Any, ...], Decimal] = defaultdict(Decimal)
    quantities: dict[tuple[Any, ...], int] = defaultdict(int)
    units: dict[tuple[Any, ...], str | None] = {}
    projects = {project.id: project.name for project in organization.projects}
    emails = {member.id: member.email for member in organization.members}
    for cell in cells:
        dimensions = _dimensions(cell)
        for line in cell.lines:
            dimensions["line_item"] = line.text
            if any(dimensions[name] not in wanted for name, wanted in query.filters.items()):
                continue
            group = tuple(dimensions[name] for name in query.group_by)
            amounts[group] += cell.measures[line.measure] * line.price
            quantities[group] += cell.measures[line.measure]
            units[group] = line.unit
    rows: list[Row] = []
    for group, amount in amounts.items():
        values = dict(zip(query.group_by, group, strict=True))
        by_line = "line_item" in values
        project, member = values.get("project_id"), values.get("user_id")
        rows.append(
            {
                "object": "organization.costs.result",
                "amount": {
                    "value": msgspec.Raw(format(amount, "f").encode())
                    if as_numbers
                    else decimal128_text(amount),
                    "currency": "usd",
                },
                "line_item": values.get("line_item"),
                "project_id": project,
                "project_name": projects.get(project) if project else None,
                "organization_id": organization.id,
                "organization_name": organization.name,
                "user_id": member,
                "user_email": emails.get(member) if member else None,
                "api_key_id": values.get("api_key_id"),
                "api_source": values.get("api_source"),
                "quantity": float(quantities[group]) if by_line else None,
                "quantity_unit": units[group] if by_line else None,
            }
        )
    return rows


def _usage_rows(endpoint: Endpoint, cells: list[Cell], query: Query) -> list[Row]:
    sums: dict[tuple[Any, ...], dict[str, int]] = {}
    for cell in cells:
        if cell.service != endpoint.name:
            continue
        for optional, measures in cell.parts():
            dimensions = _dimensions(cell) | optional
            if any(dimensions[name] not in wanted for name, wanted in query.filters.items()):
                continue
            group = tuple(dimensions[name] for name in query.group_by)
            total = sums.setdefault(group, dict.fromkeys(endpoint.measures, 0))
            for measure in endpoint.measures:
                total[measure] += measures.get(measure, 0)
    return [
        {
            "object": endpoint.result_object,
            **total,
            **dict.fromkeys(endpoint.dimensions),
            **dict(zip(query.group_by, group, strict=True)),
        }
        for group, total in sums.items()
    ]


def _token(start: int, fingerprint: int, now: datetime) -> str:
    """Issue time, query fingerprint and start of the next bucket, as decoded from live tokens."""
    return "page_" + base64.b64encode(struct.pack(">qIq", int(now.timestamp()), fingerprint, start)).decode()


def _start_of_token(token: str, fingerprint: int) -> int:
    try:
        _, bound, start = struct.unpack(">qIq", base64.b64decode(token.removeprefix("page_"), validate=True))
    except (ValueError, struct.error):
        bound, start = None, 0
    if bound != fingerprint:
        raise BadRequest("The page token is invalid, have you modified the query parameters?")
    return start


def whole_number(params: Params, name: str, allowed: range, default: Default) -> int | Default:
    """An integer parameter, or the default without it. Raises `BadRequest`."""
    values = params.get(name)
    if not values:
        return default
    try:
        number = int(values[0])
    except ValueError:
        raise BadRequest(f"Invalid '{name}': expected an integer.") from None
    if number not in allowed:
        raise BadRequest(f"Invalid '{name}': expected a value from {allowed[0]} to {allowed[-1]}.")
    return number
