"""The simulator through the official SDK: types, pages and refusals as OpenAI's."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import (
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
)

from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS
from finora_pipeline.openai_admin.pages import unix_seconds
from finora_pipeline.openai_simulator import (
    Fault,
    FaultKind,
    KeyState,
    OrganizationSpec,
    Simulator,
    running,
)
from tests import conftest

NOW = datetime(2026, 11, 18, 15, tzinfo=UTC)
TODAY = NOW.date()
DAYS = 10
FIRST = TODAY - timedelta(days=DAYS - 1)
TOMORROW = TODAY + timedelta(days=1)
HOUR = 3600
FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def shared() -> Iterator[conftest.OpenAI]:
    simulator = Simulator([OrganizationSpec(0, since=FIRST)], now=NOW)
    with running(simulator) as base_url:
        yield conftest.OpenAI(simulator, base_url)


@pytest.fixture
def simulated(shared: conftest.OpenAI) -> Iterator[conftest.OpenAI]:
    """One organization of ten days at a frozen moment, without faults."""
    yield shared
    shared.simulator.frozen_now = NOW
    shared.simulator.clear_faults()
    shared.simulator.set_key_state(shared.organizations[0].admin_key, KeyState.ACTIVE)


def sdk_of(simulated: conftest.OpenAI, key: str | None = None) -> OpenAI:
    return OpenAI(
        admin_api_key=key or simulated.organizations[0].admin_key,
        base_url=simulated.base_url,
        _strict_response_validation=True,
        max_retries=0,
        timeout=20,
    )


@pytest.fixture(scope="module")
def shared_sdk(shared: conftest.OpenAI) -> Iterator[OpenAI]:
    """One client for the module: creating one takes longer than most tests."""
    with sdk_of(shared) as client:
        yield client


@pytest.fixture
def sdk(simulated: conftest.OpenAI, shared_sdk: OpenAI) -> OpenAI:  # noqa: ARG001
    """The official SDK with strict response validation, on a simulator without faults."""
    return shared_sdk


def whole_window(**more: Any) -> dict[str, Any]:
    return {"start_time": unix_seconds(FIRST), "end_time": unix_seconds(TOMORROW), "limit": DAYS, **more}


def ask(sdk: OpenAI, name: str, **params: Any) -> Any:
    """Call the SDK's method of a costs or usage endpoint, named as ours are."""
    return getattr(sdk.admin.organization.usage, name)(**params)


def costs_text(sdk: OpenAI, **more: Any) -> dict[str, Any]:
    """Parse a page of costs from its text, so that no amount becomes a float."""
    params = whole_window(group_by=["project_id", "line_item"], **more)
    raw = sdk.admin.organization.usage.with_raw_response.costs(**params)
    return json.loads(raw.http_response.text, parse_float=Decimal)


def costs_by_row(sdk: OpenAI) -> dict[tuple[date, str, str], Decimal]:
    """Return every amount by day, project and line item."""
    return {
        (datetime.fromtimestamp(bucket["start_time"], UTC).date(), row["project_id"], row["line_item"]): (
            Decimal(row["amount"]["value"])
        )
        for bucket in costs_text(sdk)["data"]
        for row in bucket["results"]
    }


def results_of(page: Any) -> list[Any]:
    return [result for bucket in page.data for result in bucket.results]


GROUPINGS = [
    pytest.param(name, dimension)
    for name, endpoint in ENDPOINTS.items()
    for dimension in (None, *endpoint.dimensions)
]


@pytest.mark.parametrize(("name", "dimension"), GROUPINGS)
def test_sdk_reads_every_endpoint_by_every_dimension(sdk: OpenAI, name: str, dimension: str | None) -> None:
    endpoint = ENDPOINTS[name]

    page = ask(sdk, name, **whole_window(**({"group_by": [dimension]} if dimension else {})))

    assert page.object == "page"
    assert [b.start_time for b in page.data] == [unix_seconds(FIRST + timedelta(days=n)) for n in range(DAYS)]
    results = results_of(page)
    assert results
    for result in results:
        assert result.object == endpoint.result_object
        for other in endpoint.dimensions:
            value = getattr(result, other)
            assert value is None or other == dimension
    values = {getattr(result, dimension) for result in results} if dimension else {None}
    assert any(value is not None for value in values) == bool(dimension)
    if not dimension:
        assert all(len(bucket.results) == 1 for bucket in page.data)


def test_usage_does_not_depend_on_its_grouping(sdk: OpenAI) -> None:
    def tokens(**more: Any) -> int:
        return sum(r.input_tokens for r in results_of(ask(sdk, "completions", **whole_window(**more))))

    assert tokens() == tokens(group_by=["model"]) == tokens(group_by=["project_id", "api_key_id"])


def test_token_counts_add_up_as_documented(sdk: OpenAI) -> None:
    for row in results_of(ask(sdk, "completions", **whole_window(group_by=["model"]))):
        assert row.input_tokens == row.input_cached_tokens + row.input_uncached_tokens
        assert row.input_cached_tokens <= row.input_tokens
        assert row.output_tokens == row.output_text_tokens


def test_costs_carry_the_keys_that_live_answers_carry(sdk: OpenAI) -> None:
    captured = json.loads((FIXTURES / "captured_costs_string_amounts.json").read_text())
    page = costs_text(sdk)

    for ours, live in ((page, captured), (page["data"][0], captured["data"][0])):
        assert set(live) <= set(ours)
    assert set(captured["data"][0]["results"][0]) <= set(page["data"][0]["results"][0])


def test_days_without_spend_are_empty_buckets(sdk: OpenAI) -> None:
    page = ask(sdk, "costs", start_time=unix_seconds(FIRST - timedelta(days=3)), end_time=unix_seconds(FIRST))

    assert [bucket.results for bucket in page.data] == [[], [], []]


def test_paging_returns_the_rows_of_a_single_page(sdk: OpenAI) -> None:
    params = whole_window(group_by=["project_id", "line_item"])
    whole = ask(sdk, "costs", **params)
    pages = [ask(sdk, "costs", **params | {"limit": 4})]
    while pages[-1].has_more:
        pages.append(ask(sdk, "costs", **params | {"limit": 4}, page=pages[-1].next_page))

    assert [len(page.data) for page in pages] == [4, 4, 2]
    assert pages[-1].next_page is None
    assert [bucket for page in pages for bucket in page.data] == whole.data


def test_cursor_that_never_moves_is_taken_back(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    simulated.simulator.add_fault(simulated.organizations[0], Fault(FaultKind.SAME_CURSOR))
    params = whole_window(limit=4)

    first = ask(sdk, "costs", **params)
    second, third = (ask(sdk, "costs", **params, page=first.next_page) for _ in range(2))

    assert len(first.data) == 4
    assert second == third
    assert second.data == []
    assert second.has_more
    assert second.next_page == first.next_page


def test_a_fault_of_results_spares_a_page_without_results(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    simulated.simulator.add_fault(simulated.organizations[0], Fault(FaultKind.NULL_RESULTS))

    assert ask(sdk, "costs", **whole_window(end_time=unix_seconds(FIRST))).data == []
    project = simulated.organizations[0].projects[0]
    assert sdk.admin.organization.projects.retrieve(project.id).id == project.id


def test_default_limit_is_a_week(sdk: OpenAI) -> None:
    page = ask(sdk, "costs", start_time=unix_seconds(FIRST), end_time=unix_seconds(TOMORROW))

    assert len(page.data) == 7
    assert page.has_more


@pytest.mark.parametrize(
    "changed",
    [
        {"group_by": ["line_item"]},
        {"limit": 3},
        {"end_time": unix_seconds(TODAY)},
        {"start_time": unix_seconds(FIRST + timedelta(days=1))},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_page_token_is_bound_to_its_query(sdk: OpenAI, changed: dict[str, Any]) -> None:
    params = whole_window(group_by=["project_id"], limit=4)
    token = ask(sdk, "costs", **params).next_page

    with pytest.raises(BadRequestError, match="page token is invalid") as refused:
        ask(sdk, "costs", **params | changed, page=token)
    assert refused.value.code == "invalid_request_error"


def test_page_token_of_another_endpoint_is_refused(sdk: OpenAI) -> None:
    params = whole_window(limit=4)
    token = ask(sdk, "embeddings", **params).next_page

    with pytest.raises(BadRequestError, match="page token is invalid"):
        ask(sdk, "moderations", **params, page=token)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_limit_ends_at_the_documented_maximum(sdk: OpenAI, name: str) -> None:
    most = ENDPOINTS[name].days_per_page

    assert ask(sdk, name, **whole_window(limit=most)).data
    with pytest.raises(BadRequestError, match="limit"):
        ask(sdk, name, **whole_window(limit=most + 1))


@pytest.mark.parametrize("name", ENDPOINTS)
def test_limit_starts_at_one(sdk: OpenAI, name: str) -> None:
    with pytest.raises(BadRequestError, match="limit"):
        ask(sdk, name, **whole_window(limit=0))


@pytest.mark.parametrize("start", [-(10**9), 10**11])
@pytest.mark.parametrize("name", ["costs", "completions"])
def test_spans_without_any_booking_are_paged_too(sdk: OpenAI, name: str, start: int) -> None:
    params = {"start_time": start, "end_time": start + 10 * 24 * HOUR, "limit": 4}

    first = ask(sdk, name, **params)
    second = ask(sdk, name, **params, page=first.next_page)

    assert [bucket.results for bucket in first.data + second.data] == [[]] * 8
    assert first.data[-1].end_time == second.data[0].start_time


@pytest.mark.parametrize("start", [-(10**30), -(10**11), 10**12])
@pytest.mark.parametrize("name", ["costs", "completions"])
def test_start_beyond_the_calendar_is_refused(sdk: OpenAI, name: str, start: int) -> None:
    with pytest.raises(BadRequestError, match="start_time"):
        ask(sdk, name, start_time=start)


def test_window_that_ends_in_1970_is_empty(sdk: OpenAI) -> None:
    assert ask(sdk, "costs", **whole_window(end_time=0)).data == []


@pytest.mark.parametrize("limit", [-1, 0, 101])
def test_lists_have_one_to_a_hundred_objects(sdk: OpenAI, limit: int) -> None:
    with pytest.raises(BadRequestError, match="limit"):
        sdk.admin.organization.projects.list(limit=limit)


@pytest.mark.parametrize("name", ENDPOINTS)
def test_start_time_is_required(simulated: conftest.OpenAI, sdk: OpenAI, name: str) -> None:
    with pytest.raises(BadRequestError, match="start_time"):
        sdk.get(
            f"{simulated.base_url}{ENDPOINTS[name].path}",
            cast_to=object,
            options={
                "headers": {"Authorization": f"Bearer {simulated.organizations[0].admin_key}"},
            },
        )


def test_unknown_grouping_is_refused(sdk: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="group_by"):
        ask(sdk, "costs", **whole_window(group_by=["model"]))


@pytest.mark.parametrize("name", ENDPOINTS)
def test_start_within_a_day_is_floored_by_costs_and_clips_usage(sdk: OpenAI, name: str) -> None:
    start = unix_seconds(FIRST) + 7 * HOUR

    first, second, *_ = ask(sdk, name, **whole_window(start_time=start)).data

    assert first.start_time == (unix_seconds(FIRST) if ENDPOINTS[name] is COSTS else start)
    assert first.end_time == second.start_time == unix_seconds(FIRST + timedelta(days=1))


def test_window_without_end_reaches_through_today(sdk: OpenAI) -> None:
    page = ask(sdk, "costs", start_time=unix_seconds(FIRST), limit=180)

    assert page.data[-1].start_time == unix_seconds(TODAY)
    assert page.data[-1].end_time == unix_seconds(TOMORROW)


def test_today_is_partial(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    today = simulated.truth(0, conftest.Window(TODAY, TOMORROW)).total
    settled = simulated.organizations[0].truth(TODAY, TOMORROW, NOW + timedelta(days=5)).total

    assert sum(amount for (day, *_), amount in costs_by_row(sdk).items() if day == TODAY) == today
    assert Decimal(0) < today < settled


def test_two_queries_at_the_same_moment_agree(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    # A second simulator does not share the first one's cached responses.
    again = Simulator([OrganizationSpec(0, since=FIRST)], now=NOW)
    with running(again) as base_url, sdk_of(conftest.OpenAI(again, base_url)) as other:
        assert costs_text(sdk) == costs_text(sdk) == costs_text(other)
    assert again.organizations[0].admin_key == simulated.organizations[0].admin_key


def test_a_later_query_restates_only_the_newest_days(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    before = costs_by_row(sdk)
    simulated.simulator.frozen_now = NOW + timedelta(hours=3)
    after = costs_by_row(sdk)

    restated = {key[0] for key in before | after if before.get(key) != after.get(key)}
    assert {TODAY, TODAY - timedelta(days=1)} <= restated
    assert min(restated) > TODAY - timedelta(days=3)


def test_provisional_line_vanishes(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    yesterday = TODAY - timedelta(days=1)

    def lines() -> set[str]:
        return {line for day, _, line in costs_by_row(sdk) if day == yesterday}

    before = lines()
    simulated.simulator.frozen_now = datetime.combine(TOMORROW, time(1), UTC)

    assert before - lines() == {"chat-latest , input"}


def test_nothing_is_booked_after_today(sdk: OpenAI) -> None:
    page = ask(sdk, "costs", start_time=unix_seconds(TODAY), end_time=unix_seconds(TOMORROW + timedelta(3)))

    assert [bool(bucket.results) for bucket in page.data] == [True, False, False, False]


def test_truth_is_the_sum_of_the_texts(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    truth = simulated.truth(0, conftest.Window(FIRST, TOMORROW))
    rows = [row for bucket in costs_text(sdk)["data"] for row in bucket["results"]]

    assert all(isinstance(row["amount"]["value"], str) for row in rows)
    assert costs_by_row(sdk) == truth.by_row
    assert sum(costs_by_row(sdk).values()) == truth.total


def test_truth_is_the_sum_of_the_numbers(start_openai: Callable[..., conftest.OpenAI]) -> None:
    simulated = start_openai(days=DAYS, now=NOW, amounts_as_numbers=True)
    truth = simulated.truth(0, conftest.Window(FIRST, TOMORROW))

    with sdk_of(simulated) as sdk:
        rows = [row for bucket in costs_text(sdk)["data"] for row in bucket["results"]]
        assert all(isinstance(row["amount"]["value"], Decimal | int) for row in rows)
        assert costs_by_row(sdk) == truth.by_row
        assert all(
            isinstance(row.amount.value, float) for row in results_of(ask(sdk, "costs", **whole_window()))
        )


def test_truth_knows_the_tokens(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    counted: dict[str, tuple[int, int]] = {}
    for row in results_of(ask(sdk, "completions", **whole_window(group_by=["model"]))):
        asked, written = counted.get(row.model, (0, 0))
        counted[row.model] = (asked + row.input_tokens, written + row.output_tokens)

    assert counted == simulated.truth(0, conftest.Window(FIRST, TOMORROW)).tokens_by_model


def test_costs_can_be_filtered(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    project = simulated.organizations[0].projects[1]

    rows = results_of(ask(sdk, "costs", **whole_window(group_by=["project_id"], project_ids=[project.id])))

    assert {row.project_id for row in rows} == {project.id}


ONE_BY_ONE = [
    ("costs", "line_items", "line_item"),
    ("completions", "models", "model"),
    ("completions", "project_ids", "project_id"),
    ("completions", "user_ids", "user_id"),
    ("completions", "api_key_ids", "api_key_id"),
    ("vector_stores", "project_ids", "project_id"),
    ("images", "sizes", "size"),
    ("images", "sources", "source"),
    ("web_search_calls", "context_levels", "context_level"),
    ("file_search_calls", "vector_store_ids", "vector_store_id"),
]


@pytest.mark.parametrize(("name", "parameter", "dimension"), ONE_BY_ONE)
def test_filter_leaves_what_it_names(sdk: OpenAI, name: str, parameter: str, dimension: str) -> None:
    grouped = whole_window(group_by=[dimension])
    every = results_of(ask(sdk, name, **grouped))
    wanted = getattr(every[0], dimension)

    kept = results_of(ask(sdk, name, **grouped, **{parameter: [wanted]}))

    assert kept == [result for result in every if getattr(result, dimension) == wanted]
    assert kept


@pytest.mark.parametrize(
    ("name", "filtered"),
    [
        ("completions", {"batch": True}),
        ("images", {"sizes": ["256x256"]}),
        ("images", {"sources": ["image.variation"]}),
        ("web_search_calls", {"context_levels": ["low"]}),
        ("file_search_calls", {"vector_store_ids": ["vs_unknown"]}),
    ],
)
def test_filter_that_nothing_fits_leaves_nothing(sdk: OpenAI, name: str, filtered: dict[str, Any]) -> None:
    assert results_of(ask(sdk, name, **whole_window(**filtered))) == []


def test_batch_is_true_or_false(sdk: OpenAI) -> None:
    every = results_of(ask(sdk, "completions", **whole_window()))

    assert results_of(ask(sdk, "completions", **whole_window(batch=False))) == every
    with pytest.raises(BadRequestError, match="batch"):
        ask(sdk, "completions", **whole_window(), extra_query={"batch": "perhaps"})


def test_directory_of_the_organization(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    organization = simulated.organizations[0]

    assert [u.id for u in sdk.admin.organization.users.list()] == [m.id for m in organization.members]
    (admin_key,) = sdk.admin.organization.admin_api_keys.list()
    assert organization.admin_key not in admin_key.to_json()
    projects = list(sdk.admin.organization.projects.list())
    assert [p.id for p in projects] == [p.id for p in organization.projects]
    for project in projects:
        assert sdk.admin.organization.projects.retrieve(project.id) == project


def test_directory_of_a_project(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    organization = simulated.organizations[0]
    for project in organization.projects:
        of_project = [key for key in organization.api_keys if key.project.id == project.id]
        keys = list(sdk.admin.organization.projects.api_keys.list(project.id))
        members = list(sdk.admin.organization.projects.users.list(project.id))

        assert [key.id for key in keys] == [key.id for key in of_project]
        assert {member.id for member in members} == {key.owner.id for key in of_project}
        assert list(sdk.admin.organization.projects.service_accounts.list(project.id)) == []


def test_archived_projects_are_listed_on_request(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    projects = simulated.organizations[0].projects
    original = projects[1]
    projects[1] = replace(original, archived_at=unix_seconds(TODAY))
    # The clock moves with the change, since responses are cached while it stands still.
    simulated.simulator.frozen_now = NOW + timedelta(minutes=1)
    try:
        shown = [p.id for p in sdk.admin.organization.projects.list()]
        every = {p.id: p.status for p in sdk.admin.organization.projects.list(include_archived=True)}
    finally:
        projects[1] = original

    assert original.id not in shown
    assert every == {p.id: "archived" if p is original else "active" for p in projects}


def test_lists_are_paged(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    organization = simulated.organizations[0]

    first = sdk.admin.organization.projects.list(limit=2)

    assert [p.id for p in first.data] == [p.id for p in organization.projects[:2]]
    assert first.has_more
    assert [p.id for p in first] == [p.id for p in organization.projects]


def test_unknown_project_is_not_found(sdk: OpenAI) -> None:
    with pytest.raises(NotFoundError) as missing:
        sdk.admin.organization.projects.retrieve("proj_unknown")

    # Not wrapped in `error`, unlike every other refusal.
    assert missing.value.body == {
        "code": 404,
        "message": "/v1/organization/projects/proj_unknown was not found",
    }


def captured_error(name: str) -> Any:
    return json.loads((FIXTURES / f"error_{name}.json").read_text())["body"]["error"]


def test_a_revoked_key_is_refused(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    key = simulated.organizations[0].admin_key
    simulated.simulator.set_key_state(key, KeyState.REVOKED)

    with pytest.raises(AuthenticationError) as refused:
        ask(sdk, "costs", **whole_window())

    live = captured_error("401_invalid_api_key")
    assert isinstance(refused.value.body, dict)
    assert refused.value.body | {"message": ""} == live | {"message": ""}
    assert key not in str(refused.value)


def test_unknown_key_is_refused_like_a_revoked_one(simulated: conftest.OpenAI) -> None:
    with (
        sdk_of(simulated, "sk-admin-of-no-organization") as sdk,
        pytest.raises(AuthenticationError, match="Incorrect API key"),
    ):
        ask(sdk, "costs", **whole_window())


def test_a_demoted_creators_error_is_a_bare_string(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    simulated.simulator.set_key_state(simulated.organizations[0].admin_key, KeyState.DEMOTED)

    with pytest.raises(PermissionDeniedError) as refused:
        ask(sdk, "costs", **whole_window())

    assert isinstance(captured_error("403_missing_scope_string_form"), str)
    assert isinstance(refused.value.body, str)
    assert "Missing scopes: api.usage.read" in refused.value.body


def test_a_restricted_keys_error_is_an_object(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    simulated.simulator.set_key_state(simulated.organizations[0].admin_key, KeyState.RESTRICTED)

    with pytest.raises(PermissionDeniedError) as refused:
        ask(sdk, "costs", **whole_window())

    assert refused.value.body == captured_error("403_missing_scope_object_form")


def test_project_key_has_no_scope(simulated: conftest.OpenAI) -> None:
    with (
        sdk_of(simulated, "sk-proj-0123456789abcdef0123") as sdk,
        pytest.raises(PermissionDeniedError) as refused,
    ):
        ask(sdk, "costs", **whole_window())

    assert refused.value.body == captured_error("403_missing_scope_object_form")


def test_a_rate_limit_has_retry_after(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    simulated.simulator.add_fault(simulated.organizations[0], Fault(FaultKind.RATE_LIMIT, seconds=1, times=1))

    with pytest.raises(RateLimitError) as refused:
        ask(sdk, "costs", **whole_window())

    assert refused.value.response.headers["retry-after"] == "1"
    assert refused.value.code == captured_error("429_rate_limit")["code"]
    assert ask(sdk, "costs", **whole_window()).data


def side_door(simulated: conftest.OpenAI, action: str, body: bytes) -> httpx.Response:
    return httpx.post(f"{simulated.base_url.removesuffix('/v1')}/_simulator/{action}", content=body)


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("clock", b"{"),
        ("clock", b"\xff"),
        ("clock", b"[]"),
        ("clock", b"[" * 20_000),
        ("clock", b'{"now": 5}'),
        ("clock", b'{"now": "0001-01-01T00:00:00+14:00"}'),
        ("keys", b'{"organization": 0}'),
        ("keys", b'{"organization": 0, "state": 1}'),
        ("keys", b'{"organization": 0, "state": "revoked", "key": "sk-admin-of-no-organization"}'),
        ("keys", b'{"organization": 7, "state": "revoked"}'),
        ("keys", b'{"organization": null, "state": "revoked"}'),
        ("truth", b'{"organization": 0, "start": 1, "end": 2}'),
        ("faults", b'{"organization": 0}'),
        ("faults", b'{"organization": [], "kind": "html"}'),
        ("faults", b'{"organization": 0, "kind": "html", "times": "twice"}'),
        ("faults", b'{"organization": 0, "kind": "html", "often": 2}'),
        ("nothing", b"{}"),
    ],
)
def test_the_control_endpoint_refuses_unknown_input(
    simulated: conftest.OpenAI, sdk: OpenAI, action: str, body: bytes
) -> None:
    refused = side_door(simulated, action, body)

    assert refused.status_code == 400
    assert refused.json()["error"]
    assert simulated.simulator.now == NOW
    assert ask(sdk, "costs", **whole_window()).data


def test_the_control_endpoint_ends_all_faults(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    assert side_door(simulated, "faults", b'{"organization": 0, "kind": "rate_limit"}').status_code == 200
    with pytest.raises(RateLimitError):
        ask(sdk, "costs", **whole_window())

    assert side_door(simulated, "calm", b"").status_code == 200

    assert ask(sdk, "costs", **whole_window()).data


def test_the_control_endpoint_accepts_json_and_a_query(simulated: conftest.OpenAI, sdk: OpenAI) -> None:
    for action, body in (
        ("faults", b'{"organization": 0, "kind": "rate_limit", "times": 1, "seconds": 0.5}'),
        ("faults?organization=0&kind=rate_limit&times=1&seconds=0.5&endpoint=costs", b""),
        (
            "faults",
            b'{"organization": "0", "kind": "rate_limit", "times": 1, "seconds": 0.5, "endpoint": null}',
        ),
    ):
        assert side_door(simulated, action, body).status_code == 200

        with pytest.raises(RateLimitError) as refused:
            ask(sdk, "costs", **whole_window())
        assert refused.value.response.headers["retry-after"] == "0.5"
        assert ask(sdk, "costs", **whole_window()).data
