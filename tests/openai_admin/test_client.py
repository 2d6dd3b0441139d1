"""The client against a faulty simulated OpenAI: retries, errors and messages."""

import asyncio
import json
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar

import pytest

from finora_pipeline.openai_admin.client import Limits, OpenAIAdminClient, open_client
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS, Endpoint
from finora_pipeline.openai_admin.error_responses import retry_after
from finora_pipeline.openai_admin.errors import (
    InsufficientPermissions,
    InvalidKey,
    NotFound,
    OpenAIAdminError,
    RateLimited,
    TransientError,
    UnexpectedShape,
    Unreachable,
    UnreadableResponse,
    UnsupportedRequest,
)
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.organization import _Query
from finora_pipeline.openai_admin.pages import Page, Window, unix_seconds
from finora_pipeline.openai_simulator import (
    Fault,
    FaultKind,
    KeyState,
    OrganizationSpec,
    Simulator,
    running,
)
from tests.conftest import QUICK, OpenAI

T = TypeVar("T")
StartOpenAI = Callable[..., OpenAI]

# A busy machine must cause neither time-outs nor exhausted retries.
PATIENT = replace(QUICK, timeout_seconds=20, retry_seconds=20)
IMPATIENT = replace(QUICK, timeout_seconds=20)

# `read` requests at most one page's days; pages of four days make OpenAI return cursors.
COMPLETIONS = ENDPOINTS["completions"]
SHORT_PAGES = replace(COMPLETIONS, days_per_page=4)


@pytest.fixture(scope="module")
def shared_openai() -> Iterator[OpenAI]:
    """One server for the module: starting one takes longer than most tests."""
    now = datetime(2026, 11, 18, 15, tzinfo=UTC)
    since = now.date() - timedelta(days=9)
    simulator = Simulator([OrganizationSpec(number, since=since) for number in range(4)], now=now)
    with running(simulator) as base_url:
        yield OpenAI(simulator, base_url)


@pytest.fixture
def openai(shared_openai: OpenAI) -> Iterator[OpenAI]:
    """A simulated OpenAI of four organizations, reset to no faults."""
    shared_openai.simulator.requests.clear()
    yield shared_openai
    shared_openai.simulator.clear_faults()
    for organization in shared_openai.organizations:
        shared_openai.simulator.set_key_state(organization.admin_key, KeyState.ACTIVE)


def with_client(
    base_url: str, use: Callable[[OpenAIAdminClient], Awaitable[T]], limits: Limits = PATIENT
) -> T:
    """Call `use` with an open client; return its result."""

    async def run() -> T:
        async with open_client(base_url, limits) as client:
            return await use(client)

    return asyncio.run(run())


def last_days(openai: OpenAI, days: int) -> Window:
    """Return the UTC days up to the simulator's today."""
    tomorrow = openai.simulator.now.date() + timedelta(days=1)
    return Window(tomorrow - timedelta(days=days), tomorrow)


def key_of(openai: OpenAI, number: int = 0) -> AdminKey:
    return AdminKey(openai.organizations[number].admin_key)


def read(
    openai: OpenAI, endpoint: Endpoint = COSTS, days: int = 5, limits: Limits = PATIENT
) -> tuple[list[Page], int]:
    """Fetch the last days; return the pages and the number of requests."""

    async def use(client: OpenAIAdminClient) -> tuple[list[Page], int]:
        pages = await client.organization(key_of(openai)).fetch(endpoint, last_days(openai, days))
        return pages, client.outcomes.total()

    return with_client(openai.base_url, use, limits)


def read_with_cursor(openai: OpenAI, days: int = 10, limits: Limits = PATIENT) -> tuple[list[Page], int]:
    """Fetch the same in pages of four days, following cursors."""

    async def use(client: OpenAIAdminClient) -> tuple[list[Page], int]:
        reader = client.organization(key_of(openai))
        query = _Query(SHORT_PAGES, SHORT_PAGES.group_by, None, None)
        pages = await reader._fetch_piece(query, last_days(openai, days))
        return pages, client.outcomes.total()

    return with_client(openai.base_url, use, limits)


def failure(openai: OpenAI, run: Callable[[], object]) -> OpenAIAdminError:
    """Return the error that `run` raises, after checking its message."""
    with pytest.raises(OpenAIAdminError) as caught:
        run()
    message = str(caught.value)
    assert message[0].isupper()
    assert message.endswith(".")
    assert "\n" not in message
    # Our two sentences, the host, and at most 160 characters of OpenAI's own words.
    assert len(message) < 400
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    for organization in openai.organizations:
        assert organization.admin_key not in shown
    return caught.value


def starts_of(pages: list[Page]) -> list[int]:
    """Return the first second of each bucket, in the order of the pages."""
    return [bucket["start_time"] for page in pages for bucket in json.loads(page.body)["data"]]


def each_day(window: Window) -> list[int]:
    return [unix_seconds(window.start + timedelta(days=n)) for n in range(window.days)]


RECOVERING = [
    Fault(FaultKind.RATE_LIMIT, seconds=0, times=1),
    Fault(FaultKind.RATE_LIMIT, times=2),
    Fault(FaultKind.SERVER_ERROR, times=2),
    Fault(FaultKind.NOT_FOUND, times=1),
    Fault(FaultKind.HTML, times=1),
    Fault(FaultKind.CUT, times=1),
    Fault(FaultKind.RESET, times=1),
    Fault(FaultKind.NULL_RESULTS, times=1),
    Fault(FaultKind.FOREIGN_CURRENCY, times=1),
    Fault(FaultKind.ECHO_KEY, times=1),
]

LASTING: list[tuple[Fault, type[OpenAIAdminError], str]] = [
    (Fault(FaultKind.RATE_LIMIT), RateLimited, "rate limit"),
    (Fault(FaultKind.RATE_LIMIT, seconds=3600), RateLimited, "rate limit"),
    (Fault(FaultKind.SERVER_ERROR), Unreachable, "answered 500"),
    (Fault(FaultKind.NOT_FOUND), NotFound, "answered 404"),
    (Fault(FaultKind.RESET), Unreachable, "could not be reached"),
    (Fault(FaultKind.HTML), UnreadableResponse, "not a page"),
    (Fault(FaultKind.CUT), UnreadableResponse, "not a page"),
    (Fault(FaultKind.NULL_RESULTS), UnexpectedShape, "results"),
    (Fault(FaultKind.LEFT_OUT), UnreadableResponse, "left out days"),
    (Fault(FaultKind.FOREIGN_CURRENCY), UnexpectedShape, "'eur'"),
    (Fault(FaultKind.NO_CURSOR), UnreadableResponse, "no page token"),
    (Fault(FaultKind.SAME_CURSOR), UnreadableResponse, "repeated a page token"),
    (Fault(FaultKind.ECHO_KEY), UnreadableResponse, "contains the key"),
]


def test_days_before_a_new_organizations_first_day_count_as_empty(
    openai: OpenAI,
) -> None:
    window = last_days(openai, 5)
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.LATE_START))

    def read_since(known_from: date | None) -> list[Page]:
        async def use(client: OpenAIAdminClient) -> list[Page]:
            return await client.organization(key_of(openai)).fetch(COSTS, window, known_from=known_from)

        return with_client(openai.base_url, use)

    for known_from in (None, window.last - timedelta(days=1), window.last):
        assert sum(len(page.head.starts) for page in read_since(known_from)) == 2
    for known_from in (window.start - timedelta(days=9), window.start, window.last - timedelta(days=2)):
        with pytest.raises(UnreadableResponse, match="left out days"):
            read_since(known_from)


def test_the_fetch_time_is_the_time_of_the_request(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.SLOW, seconds=0.2))
    pages, _ = read(openai)
    assert datetime.now(UTC) - pages[0].fetched_at >= timedelta(seconds=0.2)


@pytest.mark.parametrize("fault", RECOVERING, ids=lambda fault: f"{fault.kind}-{fault.times}")
def test_a_transient_fault_changes_no_result(openai: OpenAI, fault: Fault) -> None:
    undisturbed, requests = read(openai)
    times = fault.times or 0
    # Parameters are shared by repeated runs, and a fault counts its strikes.
    openai.simulator.add_fault(openai.organizations[0], replace(fault))

    pages, requests_with_repeats = read(openai)

    assert [page.body for page in pages] == [page.body for page in undisturbed]
    assert requests_with_repeats == requests + times


@pytest.mark.parametrize(
    ("fault", "error", "words"), LASTING, ids=[f"{fault.kind}-{fault.seconds}" for fault, *_ in LASTING]
)
def test_lasting_fault_ends_in_its_error(
    openai: OpenAI, fault: Fault, error: type[OpenAIAdminError], words: str
) -> None:
    openai.simulator.add_fault(openai.organizations[0], replace(fault))

    raised = failure(openai, lambda: read(openai, limits=IMPATIENT))

    assert type(raised) is error
    assert isinstance(raised, TransientError)
    assert words in str(raised)


def test_retry_after_beyond_the_retry_limit_is_not_waited_for(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.RATE_LIMIT, seconds=3600))

    raised = failure(openai, lambda: read(openai))

    assert isinstance(raised, RateLimited)
    assert raised.retry_after == 3600
    assert openai.simulator.requests["costs"] == 1


def test_endless_retry_after_zero_is_retried_with_pauses(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.RATE_LIMIT, seconds=0))

    raised = failure(openai, lambda: read(openai, limits=replace(IMPATIENT, retry_seconds=0.3)))

    assert isinstance(raised, RateLimited)
    # Pauses that double from a millisecond fit about ten times.
    assert openai.simulator.requests["costs"] < 30


def test_a_silent_server_is_unreachable(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.HANG))

    raised = failure(openai, lambda: read(openai, limits=replace(QUICK, timeout_seconds=0.2)))

    assert isinstance(raised, Unreachable)
    assert "did not answer within 0.2 s" in str(raised)


def test_a_closed_port_is_unreachable(openai: OpenAI) -> None:
    with socket.socket() as bound:
        # Bound but not listening: the port refuses, and no other process can take it.
        bound.bind(("127.0.0.1", 0))
        closed_port = OpenAI(openai.simulator, f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
        raised = failure(openai, lambda: read(closed_port, limits=IMPATIENT))

    assert isinstance(raised, Unreachable)
    assert "could not be reached" in str(raised)


def test_a_slow_response_within_the_time_limit_is_accepted(openai: OpenAI) -> None:
    undisturbed, _ = read(openai)
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.SLOW, seconds=0.01))

    pages, requests = read(openai)

    assert [page.body for page in pages] == [page.body for page in undisturbed]
    assert requests == 1


def test_rows_without_amount_are_accepted(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.NO_AMOUNT))

    (page,), requests = read(openai)

    rows = [row for bucket in json.loads(page.body)["data"] for row in bucket["results"]]
    assert rows
    assert not any("amount" in row for row in rows)
    assert requests == 1


def test_a_fault_at_one_endpoint_spares_the_others(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.SERVER_ERROR, endpoint="completions"))

    assert len(read(openai, COSTS)[0]) == 1
    assert isinstance(failure(openai, lambda: read(openai, COMPLETIONS, limits=IMPATIENT)), Unreachable)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (KeyState.REVOKED, InvalidKey),
        (KeyState.DEMOTED, InsufficientPermissions),
        (KeyState.RESTRICTED, InsufficientPermissions),
    ],
)
def test_a_refused_key_is_not_retried(openai: OpenAI, state: KeyState, error: type[OpenAIAdminError]) -> None:
    openai.simulator.set_key_state(openai.organizations[0].admin_key, state)

    async def use(client: OpenAIAdminClient) -> int:
        with pytest.raises(error):
            await client.organization(key_of(openai)).fetch(COSTS, last_days(openai, 5))
        return client.outcomes.total()

    assert with_client(openai.base_url, use) == 1
    assert "Create a new Admin key" in str(failure(openai, lambda: read(openai)))


def test_a_refused_key_on_a_long_window_raises_one_error(openai: OpenAI) -> None:
    openai.simulator.set_key_state(openai.organizations[0].admin_key, KeyState.REVOKED)

    assert type(failure(openai, lambda: read(openai, days=400))) is InvalidKey


def test_grouping_that_the_organization_lacks_is_refused_at_once(start_openai: StartOpenAI) -> None:
    openai = start_openai(days=5, cost_groupings=())

    async def use(client: OpenAIAdminClient) -> list[Page]:
        reader = client.organization(key_of(openai))
        return await reader.fetch(COSTS, last_days(openai, 5), group_by=("api_key_id",))

    raised = failure(openai, lambda: with_client(openai.base_url, use))

    assert isinstance(raised, UnsupportedRequest)
    assert "api_key_id" in str(raised)
    assert openai.simulator.requests["costs"] == 1


@pytest.mark.parametrize(
    ("endpoint", "days", "lengths"),
    [
        (COSTS, 180, [180]),
        (COSTS, 181, [180, 1]),
        (COSTS, 400, [180, 180, 40]),
        (COMPLETIONS, 31, [31]),
        (COMPLETIONS, 32, [31, 1]),
        (COMPLETIONS, 70, [31, 31, 8]),
    ],
    ids=lambda value: value.name if isinstance(value, Endpoint) else None,
)
def test_long_window_is_split_at_the_page_limit(
    openai: OpenAI, endpoint: Endpoint, days: int, lengths: list[int]
) -> None:
    pages, requests = read(openai, endpoint, days)

    assert [page.window.days for page in pages] == lengths
    assert starts_of(pages) == each_day(last_days(openai, days))
    assert requests == len(lengths)


def test_cursor_leads_through_the_window_once(openai: OpenAI) -> None:
    (one_page,), _ = read(openai, COMPLETIONS, days=10)

    pages, requests = read_with_cursor(openai)

    assert [page.number for page in pages] == [1, 2, 3]
    assert requests == 3
    buckets = [bucket for page in pages for bucket in json.loads(page.body)["data"]]
    assert buckets == json.loads(one_page.body)["data"]


def test_rejected_page_token_starts_the_window_again(openai: OpenAI) -> None:
    undisturbed, _ = read_with_cursor(openai)
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.PAGE_TOKEN, times=1))

    pages, requests = read_with_cursor(openai)

    assert [page.body for page in pages] == [page.body for page in undisturbed]
    assert requests == 2 + 3


def test_page_tokens_rejected_for_ever_are_unreadable(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.PAGE_TOKEN))

    raised = failure(openai, lambda: read_with_cursor(openai))

    assert isinstance(raised, UnreadableResponse)
    assert "page tokens" in str(raised)


def test_rejected_page_token_is_tried_three_times(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.PAGE_TOKEN))

    failure(openai, lambda: read_with_cursor(openai))

    # Each time the first page and the refused second one.
    assert openai.simulator.requests["completions"] == 3 * 2


@pytest.mark.parametrize(
    "kind", [FaultKind.RATE_LIMIT, FaultKind.SERVER_ERROR, FaultKind.CUT, FaultKind.RESET, FaultKind.HTML]
)
def test_passing_fault_does_not_lose_the_cursor(openai: OpenAI, kind: FaultKind) -> None:
    undisturbed, _ = read_with_cursor(openai)
    openai.simulator.add_fault(openai.organizations[0], Fault(kind, times=2))

    pages, requests = read_with_cursor(openai)

    assert [page.body for page in pages] == [page.body for page in undisturbed]
    assert requests == 3 + 2


def test_endless_cursor_ends(openai: OpenAI) -> None:
    raised = failure(openai, lambda: read_with_cursor(openai, limits=replace(PATIENT, most_pages=2)))

    assert isinstance(raised, UnreadableResponse)
    assert "2 pages" in str(raised)


def test_a_fault_on_a_later_page_returns_no_partial_window(openai: OpenAI) -> None:
    # The fault hits one of the three pieces, which then has no time for a retry.
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.RATE_LIMIT, seconds=3600, times=1))

    assert isinstance(failure(openai, lambda: read(openai, days=400)), RateLimited)


def test_organizations_are_fetched_concurrently_and_separately(openai: OpenAI) -> None:
    window = last_days(openai, 5)
    openai.simulator.add_fault(openai.organizations[2], Fault(FaultKind.SERVER_ERROR))

    async def use(client: OpenAIAdminClient) -> list[list[Page] | BaseException]:
        readers = [client.organization(key_of(openai, number)) for number in range(4)]
        return await asyncio.gather(*(r.fetch(COSTS, window) for r in readers), return_exceptions=True)

    answers = with_client(openai.base_url, use, IMPATIENT)

    for organization, answer in zip(openai.organizations, answers, strict=True):
        if organization is openai.organizations[2]:
            assert isinstance(answer, Unreachable)
        else:
            assert isinstance(answer, list)
            assert organization.id.encode() in answer[0].body


def test_every_project_is_listed(start_openai: StartOpenAI) -> None:
    openai = start_openai(days=2, projects=250, members=1, keys_per_project=1, models=(), services=False)
    organization = openai.organizations[0]
    organization.projects[7] = replace(organization.projects[7], archived_at=1)

    projects = with_client(openai.base_url, lambda client: client.organization(key_of(openai)).projects())

    assert projects == [project.id for project in organization.projects]
    assert openai.simulator.requests["projects"] == 3


@pytest.mark.parametrize(
    "fault",
    [fault for fault in RECOVERING if fault.kind not in (FaultKind.NULL_RESULTS, FaultKind.FOREIGN_CURRENCY)],
    ids=lambda fault: f"{fault.kind}-{fault.times}",
)
def test_a_transient_fault_changes_no_list_of_projects(openai: OpenAI, fault: Fault) -> None:
    def projects() -> list[str]:
        return with_client(openai.base_url, lambda client: client.organization(key_of(openai)).projects())

    undisturbed = projects()
    openai.simulator.add_fault(openai.organizations[0], replace(fault))

    assert projects() == undisturbed
    assert openai.simulator.requests["projects"] == 2 + (fault.times or 0)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FaultKind.RATE_LIMIT, RateLimited),
        (FaultKind.SERVER_ERROR, Unreachable),
        (FaultKind.NOT_FOUND, NotFound),
        (FaultKind.RESET, Unreachable),
        (FaultKind.HTML, UnreadableResponse),
        (FaultKind.CUT, UnreadableResponse),
        (FaultKind.ECHO_KEY, UnreadableResponse),
    ],
)
def test_lasting_fault_ends_the_list_of_projects(
    openai: OpenAI, kind: FaultKind, error: type[OpenAIAdminError]
) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(kind, endpoint="projects"))

    async def use(client: OpenAIAdminClient) -> object:
        return await client.organization(key_of(openai)).projects()

    assert type(failure(openai, lambda: with_client(openai.base_url, use, IMPATIENT))) is error


def test_refused_key_lists_no_projects(openai: OpenAI) -> None:
    openai.simulator.set_key_state(openai.organizations[0].admin_key, KeyState.DEMOTED)

    async def use(client: OpenAIAdminClient) -> int:
        with pytest.raises(InsufficientPermissions):
            await client.organization(key_of(openai)).projects()
        return client.outcomes.total()

    assert with_client(openai.base_url, use) == 1


def test_a_refused_query_raises_one_sentence(start_openai: StartOpenAI) -> None:
    openai = start_openai(days=5, cost_groupings=())

    async def use(client: OpenAIAdminClient) -> list[Page]:
        reader = client.organization(key_of(openai))
        return await reader.fetch(COSTS, last_days(openai, 5), group_by=("api_key_id",))

    raised = failure(openai, lambda: with_client(openai.base_url, use))

    assert not str(raised).endswith("..")


def test_foreign_currency_spares_usage(openai: OpenAI) -> None:
    undisturbed, _ = read(openai, COMPLETIONS)
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.FOREIGN_CURRENCY))

    assert [page.body for page in read(openai, COMPLETIONS, limits=IMPATIENT)[0]] == [
        page.body for page in undisturbed
    ]


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17),
        ("0.5", 0.5),
        ("0", 0),
        ("-3", 0),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        pytest.param("Wed, 21 Oct 2015 07:28:00", 0),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": header}) == seconds


def test_no_retry_after_is_invented() -> None:
    assert retry_after({}) is None


def test_an_empty_piece_between_others_does_not_count_as_fetched(openai: OpenAI):
    window = last_days(openai, 400)
    middle = f"start_time={unix_seconds(window.start + timedelta(days=COSTS.days_per_page))}"
    nothing = b'{"object":"page","data":[],"has_more":false,"next_page":null}'

    async def forgetful(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if middle not in scope.get("query_string", b"").decode():
            await openai.simulator(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": nothing})

    with running(forgetful) as base_url:  # type: ignore[arg-type]
        forgetting = OpenAI(openai.simulator, base_url)
        error = failure(openai, lambda: read(forgetting, days=400))
    assert isinstance(error, UnreadableResponse)
    assert "left out days" in str(error)
    assert len(read(openai, days=400)[0]) == 3
