"""Usage by image size and source, search context and vector store: parts of the usage without them."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import ENDPOINTS, OPTIONAL_DIMENSIONS, USAGE, Endpoint
from finora_pipeline.openai_admin.pages import unix_seconds
from finora_pipeline.openai_simulator.answers import BadRequest, page_of
from finora_pipeline.openai_simulator.organization import OrganizationSpec, SimulatedOrganization

FIRST, DAYS = date(2026, 11, 1), 3
SPLIT = [endpoint for endpoint in USAGE if endpoint.optional_group_by]


def organization(**spec: Any) -> SimulatedOrganization:
    return SimulatedOrganization(OrganizationSpec(0, since=FIRST, **spec))


def usage(
    organization: SimulatedOrganization, endpoint: Endpoint, now: datetime, **params: list[str]
) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of the days up to `now`, each with the start of its day."""
    window = {"start_time": unix_seconds(FIRST), "end_time": unix_seconds(FIRST + timedelta(days=DAYS))}
    asked = {name: [str(value)] for name, value in window.items()} | {"limit": [str(DAYS)]} | params
    buckets = page_of(endpoint, organization, asked, now)["data"]
    return [(bucket["start_time"], row) for bucket in buckets for row in bucket["results"]]


def sums(rows: list[tuple[int, dict[str, Any]]], endpoint: Endpoint) -> Counter[tuple[int, str]]:
    counts: Counter[tuple[int, str]] = Counter()
    for day, row in rows:
        for measure in endpoint.measures:
            counts[day, measure] += row[measure]
    return counts


@given(
    endpoint=st.sampled_from(SPLIT),
    dimensions=st.sets(st.sampled_from(["project_id", "model", *OPTIONAL_DIMENSIONS])),
    seed=st.integers(0, 1_000),
    minutes=st.integers(0, DAYS * 24 * 60 - 1),
)
def test_sums_by_any_dimensions_equal_the_ungrouped_usage(
    endpoint: Endpoint, dimensions: set[str], seed: int, minutes: int
) -> None:
    simulated = organization(seed=seed)
    now = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    grouping = sorted(dimensions & set(endpoint.dimensions))

    grouped = usage(simulated, endpoint, now, group_by=grouping)
    whole = usage(simulated, endpoint, now)

    assert len(whole) == now.day
    assert sums(grouped, endpoint) == sums(whole, endpoint)
    assert sums(truth_of(simulated, endpoint, now), endpoint) == sums(whole, endpoint)


def truth_of(
    organization: SimulatedOrganization, endpoint: Endpoint, now: datetime
) -> list[tuple[int, dict[str, Any]]]:
    truth = organization.truth(FIRST, FIRST + timedelta(days=DAYS), now)
    return [
        (unix_seconds(day), dict(measures))
        for (day, service, *_), measures in truth.usage.items()
        if service == endpoint.name and isinstance(day, date)
    ]


@pytest.mark.parametrize("endpoint", SPLIT, ids=lambda endpoint: endpoint.name)
def test_each_optional_dimension_has_several_values(endpoint: Endpoint) -> None:
    now = datetime(2026, 11, 10, tzinfo=UTC)
    for dimension in endpoint.optional_group_by:
        rows = usage(organization(), endpoint, now, group_by=[dimension])
        values = {row[dimension] for _, row in rows}
        assert len(values) > 1
        assert None not in values


def test_a_filter_returns_its_part_of_the_usage() -> None:
    now, images = datetime(2026, 11, 10, tzinfo=UTC), ENDPOINTS["images"]
    by_size = usage(organization(), images, now, group_by=["size"])
    large = [(day, row) for day, row in by_size if row["size"] == "1792x1024"]

    filtered = usage(organization(), images, now, sizes=["1792x1024"])

    assert sums(filtered, images) == sums(large, images)
    assert sums(filtered, images).total() < sums(by_size, images).total()


def test_refused_dimensions_are_named_and_others_answered() -> None:
    now, images = datetime(2026, 11, 10, tzinfo=UTC), ENDPOINTS["images"]
    simulated = organization(refused_dimensions=("size", "source"))

    with pytest.raises(BadRequest, match="size"):
        usage(simulated, images, now, group_by=["model", "size"])

    assert usage(simulated, images, now, group_by=["model"])
