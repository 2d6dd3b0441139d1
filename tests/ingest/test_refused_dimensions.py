"""An organization whose API refuses optional dimensions keeps its usage, split as before."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

import pytest
from sqlalchemy import update

from finora_pipeline.accounts.database import connection_parts
from finora_pipeline.openai_admin.endpoints import ENDPOINTS, OPTIONAL_DIMENSIONS, USAGE
from finora_pipeline.openai_simulator import Fault, FaultKind
from finora_pipeline.warehouse.usage_columns import OPTIONAL_COLUMNS
from tests.conftest import Installation, OpenAI

SPLIT_SERVICES = {one.name: one.optional_group_by for one in USAGE if one.optional_group_by}
COUNTS = "coalesce(images, 0) + coalesce(calls, 0) + coalesce(requests, 0)"
REFUSED = '{"error": {"message": "Grouping is not supported.", "param": "group_by"}}'


def connected(openai: OpenAI, install: Callable[[OpenAI], Installation]) -> Installation:
    installation = install(openai)
    installation.connect(plan="trial")
    return installation


def refresh(installation: Installation) -> Counter[str]:
    """Refresh and return the number of requests by endpoint."""
    installation.openai.simulator.requests.clear()
    assert installation.refresh().failed_users == []
    return installation.openai.simulator.requests


def counts(installation: Installation) -> dict[tuple[date, str], int]:
    """Return the images, calls and requests of each day and split service."""
    query = f"SELECT date, service, sum({COUNTS})::BIGINT FROM daily_usage GROUP BY ALL"
    return {(day, service): n for day, service, n in installation.sql(query) if service in SPLIT_SERVICES}


def true_counts(installation: Installation) -> dict[tuple[Any, Any], int]:
    truth: Counter[tuple[Any, Any]] = Counter()
    for (day, service, *_), measures in installation.openai.truth(0, installation.history(7)).usage.items():
        if service in SPLIT_SERVICES:
            truth[day, service] += sum(measures.values())
    return dict(truth)


def split_services(installation: Installation) -> set[str]:
    """Return the services with values of their optional dimensions."""
    is_split = f"coalesce({', '.join(OPTIONAL_COLUMNS)}) IS NOT NULL"
    return {service for (service,) in installation.sql(f"SELECT service FROM daily_usage WHERE {is_split}")}


def failures(installation: Installation) -> dict[str, str]:
    return {one.part: one.reason for one in installation.part_failures().get("user-0", [])}


def let_a_day_pass(installation: Installation) -> None:
    """Make each failed part due for its next attempt."""
    with installation.accounts.database.write() as database:
        database.execute(update(connection_parts).values(retry_at=datetime(2026, 1, 1, tzinfo=UTC)))


def test_usage_is_split_by_all_dimensions(start_openai, install):
    installation = connected(start_openai(days=4), install)

    assert refresh(installation)["images"] == 1

    assert split_services(installation) == SPLIT_SERVICES.keys()
    assert counts(installation) == true_counts(installation)
    assert failures(installation) == {}


def test_refused_dimensions_cost_no_usage_and_a_request_a_day(start_openai, install):
    installation = connected(start_openai(days=4, refused_dimensions=OPTIONAL_DIMENSIONS), install)

    # With the dimensions, then without; the next refresh does not try them again until a day has passed.
    for wanted in (2, 1):
        requests = refresh(installation)
        assert {name: requests[name] for name in SPLIT_SERVICES} == dict.fromkeys(SPLIT_SERVICES, wanted)
        assert requests["completions"] == 1
        assert split_services(installation) == set()
        assert counts(installation) == true_counts(installation)
        assert failures(installation) == {f"{name}:split": "refused" for name in SPLIT_SERVICES}
    let_a_day_pass(installation)
    assert refresh(installation)["images"] == 2
    assert refresh(installation)["images"] == 1


def test_a_refusal_names_the_dimensions_and_openais_reason(start_openai, install):
    installation = connected(start_openai(days=2, refused_dimensions=("source",)), install)
    refresh(installation)

    (failure,) = installation.part_failures()["user-0"]

    assert failure.part == "images:split"
    assert failure.message.startswith("OpenAI does not split use of images by size and source: ")
    assert "Grouping by ['source'] is not supported" in failure.message
    assert split_services(installation) == SPLIT_SERVICES.keys() - {"images"}


def test_dimensions_that_openai_accepts_again_are_no_restatement(start_openai, install):
    openai = start_openai(days=4)
    installation = connected(openai, install)
    fault = Fault(FaultKind.STATUS, endpoint="images", query="size", status=400, body=REFUSED)
    openai.simulator.add_fault(openai.organizations[0], fault)
    refresh(installation)
    openai.simulator.clear_faults()
    refresh(installation)
    assert "images" not in split_services(installation)

    let_a_day_pass(installation)
    refresh(installation)

    assert split_services(installation) == SPLIT_SERVICES.keys()
    assert failures(installation) == {}
    assert installation.sql("FROM usage_revisions") == []
    assert counts(installation) == true_counts(installation)


def test_a_manual_refresh_tries_refused_dimensions_at_once(start_openai, install):
    installation = connected(start_openai(days=2, refused_dimensions=("context_level",)), install)
    refresh(installation)
    installation.openai.simulator.requests.clear()

    installation.fetch("manual", retry_parts=True)

    assert installation.openai.simulator.requests["web_search_calls"] == 2


def test_a_refused_endpoint_is_reported_as_before(start_openai, install):
    openai = start_openai(days=4)
    installation = connected(openai, install)
    body = '{"error": {"message": "This is not available to you."}}'
    fault = Fault(FaultKind.STATUS, endpoint="images", status=400, body=body, seconds=None)
    openai.simulator.add_fault(openai.organizations[0], fault)

    refresh(installation)

    (failure,) = installation.part_failures()["user-0"]
    assert (failure.part, failure.reason) == ("images", "refused")
    assert failure.message.startswith("Use of images is not open to this organization: ")
    assert "This is not available to you" in failure.message
    assert refresh(installation)["images"] == 0
    assert split_services(installation) == SPLIT_SERVICES.keys() - {"images"}


def test_refused_days_are_split_like_all_others(start_openai, install):
    """OpenAI refuses older days and ends in the future: those 400s do not concern the dimensions."""
    openai = start_openai(days=6)
    installation = connected(openai, install)
    for fault in (Fault(FaultKind.NO_FUTURE), Fault(FaultKind.NO_HISTORY, days=3)):
        openai.simulator.add_fault(openai.organizations[0], fault)

    refresh(installation)

    assert split_services(installation) == SPLIT_SERVICES.keys()
    assert not [part for part in failures(installation) if part.endswith(":split")]
    first = min(day for day, _ in counts(installation))
    assert counts(installation) == {
        key: count for key, count in true_counts(installation).items() if key[0] >= first
    }


def test_refused_days_and_dimensions_still_give_the_newest_usage(start_openai, install):
    openai = start_openai(days=6, refused_dimensions=OPTIONAL_DIMENSIONS)
    installation = connected(openai, install)
    openai.simulator.add_fault(
        openai.organizations[0], Fault(FaultKind.NO_HISTORY, endpoint="images", days=3)
    )

    refresh(installation)

    days = {day for day, service in counts(installation) if service == "images"}
    assert installation.today in days
    assert 3 <= len(days) < 6
    assert failures(installation)["images:split"] == "refused"


def test_an_outage_after_the_refusal_is_a_failure_of_the_endpoint(start_openai, install):
    openai = start_openai(days=3, refused_dimensions=("size",))
    installation = connected(openai, install)
    organization = openai.organizations[0]
    openai.simulator.add_fault(organization, Fault(FaultKind.SERVER_ERROR, endpoint="images", after=1))

    refresh(installation)

    assert failures(installation) == {"images": "unreachable"}
    openai.simulator.clear_faults()
    let_a_day_pass(installation)
    refresh(installation)
    assert failures(installation) == {"images:split": "refused"}
    assert counts(installation) == true_counts(installation)


@pytest.mark.parametrize("name", SPLIT_SERVICES)
def test_the_grouping_without_optional_dimensions_is_that_of_before(name: str):
    endpoint = ENDPOINTS[name]

    assert endpoint.required_group_by + endpoint.optional_group_by == endpoint.group_by
    before = ("project_id", "user_id", "api_key_id", "model")
    assert endpoint.required_group_by == (before[:3] if name == "file_search_calls" else before)
