"""The directory: each list has its own outcome, and none is requested for ever."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.directory import Directory
from finora_pipeline.openai_admin.endpoints import API_KEYS, MEMBERS, PROJECTS, SERVICE_ACCOUNTS
from finora_pipeline.openai_admin.errors import (
    AccessRefused,
    InsufficientPermissions,
    OpenAIAdminError,
    Unreachable,
    UnsupportedRequest,
)
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_simulator import Fault, FaultKind
from tests.conftest import QUICK, OpenAI

StartOpenAI = Callable[..., OpenAI]
PATIENT = replace(QUICK, timeout_seconds=20, request_seconds=20, retry_seconds=20)
SMALL: dict[str, Any] = {"days": 2, "models": (), "services": False, "members": 2, "keys_per_project": 1}
SCOPES = "You have insufficient permissions for this operation. Missing scopes: api.management.read."


def read(openai: OpenAI, *faults: Fault, retry_seconds: float | None = None) -> Directory:
    for fault in faults:
        openai.simulator.add_fault(openai.organizations[0], fault)

    async def run() -> Directory:
        async with open_client(openai.base_url, PATIENT) as client:
            reader = client.organization(AdminKey(openai.organizations[0].admin_key))
            return await reader.directory(retry_seconds)

    return asyncio.run(run())


def names(directory: Directory, listing: object) -> set[str]:
    return {
        item["name"]
        for outcome in directory.lists
        if outcome.listing is listing
        for page in outcome.pages
        for item in json.loads(page.body)["data"]
    }


def refused(path: str, status: int, message: str, **how: Any) -> Fault:
    sent = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": None}})
    return Fault(FaultKind.STATUS, path=path, status=status, body=sent, **how)


def test_all_lists_are_fetched_in_the_order_of_the_projects(start_openai: StartOpenAI) -> None:
    openai = start_openai(projects=5, service_accounts=2, **SMALL)
    organization = openai.organizations[0]

    first, again = read(openai), read(openai)

    assert [(one.listing, one.project_id) for one in first.lists] == [
        (PROJECTS, ""),
        (MEMBERS, ""),
        *((listing, p.id) for listing in (API_KEYS, SERVICE_ACCOUNTS) for p in organization.projects),
    ]
    assert first.failed == []
    assert names(first, PROJECTS) == {project.name for project in organization.projects}
    assert names(first, API_KEYS) == {key.name for key in organization.api_keys}
    owners = {key.owner.name for key in organization.api_keys if key.member_id is None}
    assert len(owners) == 2
    assert names(first, SERVICE_ACCOUNTS) == owners
    # Unchanged pages are the same page set.
    assert [(p.grouping, p.body) for p in first.pages] == [(p.grouping, p.body) for p in again.pages]


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (400, "This project has been archived.", UnsupportedRequest),
        (403, "Archived.", AccessRefused),
        (500, "The server had an error.", Unreachable),
    ],
)
def test_one_projects_list_that_fails_costs_only_itself(
    start_openai: StartOpenAI, status: int, message: str, error: type[OpenAIAdminError]
) -> None:
    openai = start_openai(projects=4, **SMALL)
    project = openai.organizations[0].projects[1]

    directory = read(openai, refused(f"{project.id}/api_keys", status, message), retry_seconds=0.01)

    (failed,) = directory.failed
    assert (failed.listing, failed.project_id, type(failed.error)) == (API_KEYS, project.id, error)
    assert message.rstrip(".") in str(failed.error)
    assert len(names(directory, PROJECTS)) == 4
    kept = {key.name for key in openai.organizations[0].api_keys if key.project.id != project.id}
    assert names(directory, API_KEYS) == kept
    assert len(names(directory, MEMBERS)) == 2


def test_a_project_that_is_gone_has_empty_lists(start_openai: StartOpenAI) -> None:
    openai = start_openai(projects=3, **SMALL)
    project = openai.organizations[0].projects[0]

    directory = read(openai, Fault(FaultKind.NOT_FOUND, path=f"{project.id}/"))

    assert directory.failed == []
    empty = {one.listing for one in directory.lists if one.project_id == project.id and not one.pages}
    assert empty == {API_KEYS, SERVICE_ACCOUNTS}


def test_lists_of_the_organization_fail_apart(start_openai: StartOpenAI) -> None:
    openai = start_openai(projects=3, **SMALL)

    directory = read(openai, refused("organization/users$", 403, SCOPES))
    assert [(one.listing, type(one.error)) for one in directory.failed] == [
        (MEMBERS, InsufficientPermissions)
    ]
    assert len(names(directory, API_KEYS)) > 1

    openai.simulator.clear_faults()
    directory = read(openai, refused("organization/projects$", 403, SCOPES))
    assert [one.listing for one in directory.failed] == [PROJECTS]
    assert len(names(directory, MEMBERS)) == 2


def test_a_refused_key_list_is_not_requested_for_each_project(
    start_openai: StartOpenAI,
) -> None:
    openai = start_openai(projects=40, **SMALL)

    directory = read(openai, refused("/api_keys$", 403, SCOPES))

    assert {one.listing for one in directory.failed} == {API_KEYS}
    assert len(directory.failed) == 40
    assert openai.simulator.requests["api_keys"] <= PATIENT.per_organization
    assert openai.simulator.requests["service_accounts"] == 40


def test_lists_that_keep_failing_are_given_up_together(start_openai: StartOpenAI) -> None:
    openai = start_openai(projects=40, **SMALL)

    directory = read(openai, refused("/api_keys$", 500, "The server had an error."), retry_seconds=0)

    assert len(directory.failed) == 40
    assert openai.simulator.requests["api_keys"] < 5 + PATIENT.per_organization

    openai.simulator.clear_faults()
    openai.simulator.requests.clear()
    directory = read(openai, refused("/api_keys$", 403, "Not open to you."), retry_seconds=0)
    assert len(directory.failed) == 40
    assert openai.simulator.requests["api_keys"] < 20 + PATIENT.per_organization


@pytest.mark.parametrize("odd", ["..", ".", "x" * 300])
def test_a_project_whose_id_no_path_can_hold_costs_only_its_own_lists(
    start_openai: StartOpenAI, odd: str
) -> None:
    openai = start_openai(projects=3, **SMALL)
    project = openai.organizations[0].projects[1]

    directory = read(openai, Fault(FaultKind.EDIT, path="organization/projects$", edit=project.id, body=odd))

    assert {(one.listing, one.project_id) for one in directory.failed} == {
        (API_KEYS, odd),
        (SERVICE_ACCOUNTS, odd),
    }
    assert len(names(directory, API_KEYS)) > 1
    assert openai.simulator.requests["api_keys"] == 2


@pytest.mark.parametrize(
    "odd", ["a/b", "a\\u0000b", "a\\nb", "a?b=c", "a#b", "a%2Fb", "ä", "@evil", "//evil"]
)
def test_a_strange_id_stays_one_part_of_the_path(start_openai: StartOpenAI, odd: str) -> None:
    openai = start_openai(projects=2, **SMALL)
    project = openai.organizations[0].projects[0]

    body = odd.replace("\\", "\\\\")
    directory = read(openai, Fault(FaultKind.EDIT, path="organization/projects$", edit=project.id, body=body))

    # The project is unknown to OpenAI: its lists are empty, without further requests.
    assert directory.failed == []
    assert len(directory.lists) == 2 + 2 * 2
    assert set(openai.simulator.requests) == {"projects", "users", "api_keys", "service_accounts"}


def test_many_projects_are_fetched_with_few_requests_at_once(start_openai: StartOpenAI) -> None:
    openai = start_openai(projects=200, members=1, days=2, models=(), services=False, keys_per_project=1)
    directory = read(openai)
    assert len(directory.lists) == 2 + 2 * 200
    assert directory.failed == []
    assert openai.simulator.requests["api_keys"] == openai.simulator.requests["service_accounts"] == 200


def expiry(openai: OpenAI, *faults: Fault) -> datetime | None:
    openai.simulator.clear_faults()
    for fault in faults:
        openai.simulator.add_fault(openai.organizations[0], fault)

    async def run() -> datetime | None:
        async with open_client(openai.base_url, PATIENT) as client:
            return await client.organization(AdminKey(openai.organizations[0].admin_key)).admin_key_expiry()

    return asyncio.run(run())


def test_the_expiry_of_an_admin_key_is_found(start_openai: StartOpenAI) -> None:
    openai = start_openai(projects=1, **SMALL)
    moment = datetime(2027, 3, 1, 12, tzinfo=UTC)

    def ends(sent: str, *more: Fault) -> datetime | None:
        edit = Fault(FaultKind.EDIT, "admin_api_keys", edit='"expires_at":null', body=f'"expires_at":{sent}')
        return expiry(openai, *more, edit)

    seconds = int(moment.timestamp())
    assert expiry(openai) is None
    assert ends(str(seconds)) == ends(f"{seconds}.0") == ends(f'"{seconds}"') == moment
    assert ends('"soon"') is ends("-1") is ends("1e30") is ends("[]") is None
    assert openai.simulator.requests["admin_api_keys"] == 8


def test_the_expiry_of_another_key_is_not_used(start_openai: StartOpenAI) -> None:
    openai = start_openai(projects=1, **SMALL)
    shown = openai.organizations[0].admin_key[-4:]

    def with_keys(*keys: tuple[str, int | None]) -> datetime | None:
        data = [{"id": f"key_{n}", "redacted_value": v, "expires_at": at} for n, (v, at) in enumerate(keys)]
        body = json.dumps({"object": "list", "data": data, "has_more": False})
        return expiry(openai, Fault(FaultKind.STATUS, "admin_api_keys", status=200, body=body))

    moment = datetime.fromtimestamp(1_900_000_000, UTC)
    assert with_keys(("sk-admin-***zzzz", 1_800_000_000), (f"sk-admin-...{shown}", 1_900_000_000)) == moment
    assert with_keys(("sk-admin-***zzzz", 1_800_000_000)) is None
    assert with_keys((f"sk-admin-***{shown}", 1_900_000_000), (f"sk-admin-***{shown}", 1_800_000_000)) is None
    assert with_keys(("", 1), (shown[-1], 1), ("***", 1), ("sk-admin-***" + shown[-1], 1)) is None


@pytest.mark.parametrize(
    "fault",
    [
        refused("admin_api_keys", 403, SCOPES),
        refused("admin_api_keys", 500, "The server had an error."),
        Fault(FaultKind.HTML, "admin_api_keys"),
        Fault(FaultKind.NOT_FOUND, "admin_api_keys"),
        Fault(FaultKind.EDIT, "admin_api_keys", edit='"redacted_value":"[^"]*"', body='"redacted_value":7'),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_key_that_cannot_list_keys_has_no_known_expiry(start_openai: StartOpenAI, fault: Fault) -> None:
    openai = start_openai(projects=1, **SMALL)
    assert expiry(openai, fault) is None
    assert openai.simulator.requests["admin_api_keys"] == 1
