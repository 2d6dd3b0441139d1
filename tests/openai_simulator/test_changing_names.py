"""A simulated organization whose names and members change: its lists and its rows."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from finora_pipeline.openai_admin.endpoints import ENDPOINTS, USAGE, USAGE_DIMENSIONS
from finora_pipeline.openai_admin.pages import unix_seconds
from finora_pipeline.openai_simulator import (
    OrganizationSpec,
    SimulatedOrganization,
    Simulator,
    Truth,
    running,
)

NOW = datetime(2026, 11, 18, 15, tzinfo=UTC)
TODAY = NOW.date()
DAYS = 10
FIRST = TODAY - timedelta(days=DAYS - 1)
TOMORROW = TODAY + timedelta(days=1)
GONE_SINCE = TODAY - timedelta(days=4)
EVERYTHING = OrganizationSpec(
    0,
    since=FIRST,
    archived_projects=1,
    vanished_members=2,
    deleted_keys=1,
    service_accounts=2,
    gone_since=GONE_SINCE,
)


@contextmanager
def sdk_on(simulator: Simulator) -> Iterator[OpenAI]:
    """Open the official SDK with strict response validation."""
    with (
        running(simulator) as base_url,
        OpenAI(
            admin_api_key=simulator.organizations[0].admin_key,
            base_url=base_url,
            _strict_response_validation=True,
            max_retries=0,
            timeout=20,
        ) as sdk,
    ):
        yield sdk


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator([EVERYTHING], now=NOW)


@pytest.fixture(scope="module")
def sdk(simulator: Simulator) -> Iterator[OpenAI]:
    with sdk_on(simulator) as sdk:
        yield sdk


@pytest.fixture
def organization(simulator: Simulator) -> SimulatedOrganization:
    return simulator.organizations[0]


@pytest.fixture
def truth(organization: SimulatedOrganization) -> Truth:
    return organization.truth(FIRST, TOMORROW, NOW)


@pytest.fixture
def before_the_change(simulator: Simulator) -> Iterator[None]:
    simulator.frozen_now = datetime.combine(GONE_SINCE, time(), UTC) - timedelta(minutes=1)
    yield
    simulator.frozen_now = NOW


def rows_of(sdk: OpenAI, name: str, *group_by: str) -> list[tuple[date, Any]]:
    """Return every row of the ten days with its day."""
    page = getattr(sdk.admin.organization.usage, name)(
        start_time=unix_seconds(FIRST),
        end_time=unix_seconds(TOMORROW),
        limit=DAYS,
        group_by=list(group_by),
    )
    return [
        (datetime.fromtimestamp(bucket.start_time, UTC).date(), row)
        for bucket in page.data
        for row in bucket.results
    ]


def last_days(sdk: OpenAI, name: str, dimension: str) -> dict[str | None, date]:
    """Return the last day of each value of the dimension."""
    return {getattr(row, dimension): day for day, row in rows_of(sdk, name, dimension)}


def in_project(sdk: OpenAI, kind: str, organization: SimulatedOrganization, **params: Any) -> dict[str, Any]:
    """Return the objects of this kind of all projects, by id."""
    listing = getattr(sdk.admin.organization.projects, kind)
    return {item.id: item for project in organization.projects for item in listing.list(project.id, **params)}


@pytest.mark.parametrize(
    "gone",
    [
        {"archived_projects": 1},
        {"vanished_members": 1},
        {"deleted_keys": 1},
        {"archived_projects": 4, "gone_since": TODAY},
        {"vanished_members": 4, "gone_since": TODAY},
        {"deleted_keys": 7, "gone_since": TODAY},
        {"archived_projects": 1, "deleted_keys": 5, "gone_since": TODAY},
    ],
)
def test_a_departure_needs_a_day_and_an_object(gone: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"gone|deleted"):
        OrganizationSpec(0, since=FIRST, **gone)


@pytest.mark.parametrize("name", ["costs", "completions"])
@pytest.mark.parametrize(
    ("dimension", "gone"),
    [
        ("project_id", lambda o: [p.id for p in o.projects[-1:]]),
        ("user_id", lambda o: [m.id for m in o.members[-2:]]),
        ("api_key_id", lambda o: [k.id for k in o.api_keys if k.deleted_at]),
    ],
    ids=["archived project", "vanished member", "deleted key"],
)
def test_usage_of_departed_objects_ends_but_is_kept(
    sdk: OpenAI,
    organization: SimulatedOrganization,
    name: str,
    dimension: str,
    gone: Callable[[SimulatedOrganization], list[str]],
) -> None:
    last = last_days(sdk, name, dimension)

    assert gone(organization)
    assert {last[gone_id] for gone_id in gone(organization)} == {GONE_SINCE - timedelta(days=1)}
    assert TODAY in last.values()


def test_archived_project_is_listed_on_request(sdk: OpenAI, organization: SimulatedOrganization) -> None:
    *active, archived = organization.projects

    assert [p.id for p in sdk.admin.organization.projects.list()] == [p.id for p in active]
    *_, shown = sdk.admin.organization.projects.list(include_archived=True)
    assert (shown.id, shown.name, shown.status) == (archived.id, archived.name, "archived")
    assert shown.archived_at == unix_seconds(GONE_SINCE)
    assert sdk.admin.organization.projects.retrieve(archived.id) == shown


def test_vanished_members_are_not_listed(sdk: OpenAI, organization: SimulatedOrganization) -> None:
    present = [m.id for m in organization.members[:-2]]

    assert [u.id for u in sdk.admin.organization.users.list()] == present
    assert set(in_project(sdk, "users", organization)) == set(present)


def test_keys_of_vanished_members_are_listed_on_request(
    sdk: OpenAI, organization: SimulatedOrganization
) -> None:
    vanished = {m.id for m in organization.members[-2:]}
    inactive = {k.id for k in organization.api_keys if k.member_id in vanished and not k.deleted_at}
    by_default = in_project(sdk, "api_keys", organization)

    assert inactive
    assert set(in_project(sdk, "api_keys", organization, owner_project_access="inactive")) == inactive
    assert by_default == in_project(sdk, "api_keys", organization, owner_project_access="active")
    every = in_project(sdk, "api_keys", organization, owner_project_access="any")
    assert set(every) == set(by_default) | inactive
    assert {k for k, key in every.items() if key.owner_project_access == "inactive"} == inactive


def test_access_is_active_inactive_or_any(sdk: OpenAI, organization: SimulatedOrganization) -> None:
    with pytest.raises(BadRequestError, match="owner_project_access"):
        in_project(sdk, "api_keys", organization, owner_project_access="perhaps")


def test_deleted_keys_are_not_listed(sdk: OpenAI, organization: SimulatedOrganization) -> None:
    listed = in_project(sdk, "api_keys", organization, owner_project_access="any")
    (deleted,) = (key for key in organization.api_keys if key.deleted_at)

    assert set(listed) == {key.id for key in organization.api_keys} - {deleted.id}
    assert deleted.project.archived_at is None


def test_service_accounts_own_keys_and_are_no_members(
    sdk: OpenAI, organization: SimulatedOrganization
) -> None:
    accounts = in_project(sdk, "service_accounts", organization)
    keys = {
        key_id: key.owner.service_account
        for key_id, key in in_project(sdk, "api_keys", organization).items()
        if key.owner.type == "service_account"
    }

    assert {account.id for account in keys.values()} == set(accounts)
    assert len(accounts) == len(keys) == 2
    for owner in keys.values():
        assert owner.to_dict().items() <= accounts[owner.id].to_dict().items()
    assert not set(accounts) & {m.id for m in sdk.admin.organization.users.list()}
    assert not set(accounts) & set(in_project(sdk, "users", organization))


@pytest.mark.parametrize("name", ["costs", "completions"])
def test_usage_of_a_service_account_has_no_member(
    sdk: OpenAI, organization: SimulatedOrganization, name: str
) -> None:
    of_accounts = {key.id for key in organization.api_keys if key.member_id is None}
    rows = rows_of(sdk, name, "api_key_id", "user_id")

    assert {row.api_key_id for _, row in rows if row.user_id is None} == of_accounts
    assert None in last_days(sdk, name, "user_id")


@pytest.mark.usefixtures("before_the_change")
def test_nothing_departs_before_its_day(sdk: OpenAI, organization: SimulatedOrganization) -> None:
    assert [u.id for u in sdk.admin.organization.users.list()] == [m.id for m in organization.members]
    projects = list(sdk.admin.organization.projects.list())
    assert [p.id for p in projects] == [p.id for p in organization.projects]
    assert {(p.status, p.archived_at) for p in projects} == {("active", None)}
    assert set(in_project(sdk, "api_keys", organization)) == {k.id for k in organization.api_keys}


def test_the_past_does_not_depend_on_later_departures(organization: SimulatedOrganization) -> None:
    untouched = SimulatedOrganization(OrganizationSpec(0, since=FIRST, service_accounts=2))

    for attribute in ("projects", "members", "api_keys"):
        ids = [item.id for item in getattr(organization, attribute)]
        assert ids == [item.id for item in getattr(untouched, attribute)]
    assert organization.truth(FIRST, GONE_SINCE, NOW) == untouched.truth(FIRST, GONE_SINCE, NOW)
    assert organization.truth(FIRST, TOMORROW, NOW).total < untouched.truth(FIRST, TOMORROW, NOW).total


@pytest.mark.parametrize("name", [endpoint.name for endpoint in USAGE])
def test_truth_knows_the_usage(sdk: OpenAI, truth: Truth, name: str) -> None:
    endpoint = ENDPOINTS[name]
    grouping = [dimension for dimension in USAGE_DIMENSIONS if dimension in endpoint.dimensions]

    answered = {
        (day, name, *(getattr(row, dimension, None) for dimension in USAGE_DIMENSIONS)): {
            measure: getattr(row, measure) for measure in endpoint.measures
        }
        for day, row in rows_of(sdk, name, *grouping)
    }

    assert answered
    assert answered == {row: measures for row, measures in truth.usage.items() if row[1] == name}


def test_truth_knows_the_costs_of_members_and_keys(
    sdk: OpenAI, organization: SimulatedOrganization, truth: Truth
) -> None:
    by_member: dict[tuple[date, str | None], Decimal] = defaultdict(Decimal)
    owners = {key.id: key.member_id for key in organization.api_keys}
    for (day, key_id), amount in truth.by_key.items():
        by_member[day, owners[key_id]] += amount

    assert by_member == truth.by_member
    assert sum(by_member.values()) == truth.total
    # The SDK makes floats of amounts.
    for dimension, amounts in (("user_id", truth.by_member), ("api_key_id", truth.by_key)):
        answered = {
            (day, getattr(row, dimension)): row.amount.value for day, row in rows_of(sdk, "costs", dimension)
        }
        assert answered == {group: float(amount) for group, amount in amounts.items()}


def test_the_control_endpoint_returns_the_whole_truth(sdk: OpenAI, truth: Truth) -> None:
    address = str(sdk.base_url).removesuffix("/v1/")
    query = {"organization": 0, "start": FIRST.isoformat(), "end": TOMORROW.isoformat()}

    served = httpx.get(f"{address}/_simulator/truth", params=query).json()

    assert set(served) == {field.name for field in fields(truth)}
    assert served["by_member"] == {f"{day}|{m or ''}": str(usd) for (day, m), usd in truth.by_member.items()}
    assert served["by_key"] == {f"{day}|{key}": str(usd) for (day, key), usd in truth.by_key.items()}
    assert served["usage"] == {
        "|".join("" if part is None else str(part) for part in row): measures
        for row, measures in truth.usage.items()
    }
