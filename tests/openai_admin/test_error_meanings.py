"""Meanings of OpenAI's errors by code and message, with the host and fitting advice."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from finora_pipeline.openai_admin.addresses import parse_address
from finora_pipeline.openai_admin.client import Limits, OpenAIAdminClient, open_client
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.error_responses import error_of
from finora_pipeline.openai_admin.errors import (
    AccessRefused,
    IncorrectHostname,
    InsufficientPermissions,
    InvalidKey,
    IpNotAuthorized,
    NoOrganization,
    NotFound,
    NotTheAPI,
    OpenAIAdminError,
    PermanentError,
    ProxyFailed,
    RateLimited,
    SpendLimitReached,
    Unreachable,
    UnreadableResponse,
    UnsupportedCountry,
    UnsupportedRequest,
    WindowRefused,
    quoted,
)
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator import Fault, FaultKind, OrganizationSpec, Simulator, running
from tests.conftest import QUICK, OpenAI

T = TypeVar("T")
OPENAI = parse_address("https://api.openai.com/v1")
GATEWAY = parse_address("https://gateway.example.com/openai/v1")
KEY = "sk-admin-Zk3_9xQw-7LmN2pRtVbY4cD1"
PAGE = (
    "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Enable JavaScript</body></html>"
)


def body(
    message: str, code: Any = None, kind: str = "invalid_request_error", param: str | None = None
) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


SCOPES = "You have insufficient permissions for this operation. Missing scopes: api.usage.read. Check that…"
MEANINGS: list[tuple[int, str, type[OpenAIAdminError], str]] = [
    (
        401,
        body("Incorrect API key provided: sk-admin*fake.", "invalid_api_key"),
        InvalidKey,
        "deleted or revoked",
    ),
    (401, body("Incorrect API key provided: sk-admin*fake."), InvalidKey, "ChatGPT workspace"),
    (401, body(SCOPES), InsufficientPermissions, "project key"),
    (403, json.dumps({"error": SCOPES}), InsufficientPermissions, "Create a new Admin key"),
    (401, body("Your request IP is not authorized.", "ip_not_authorized"), IpNotAuthorized, "IP allowlist"),
    (403, body("Your request IP is not authorized.", "ip_not_authorized"), IpNotAuthorized, "IP allowlist"),
    (
        401,
        body(
            "Attempted to access resource with incorrect regional hostname. Use eu.api.openai.com.",
            "incorrect_hostname",
        ),
        IncorrectHostname,
        "https://eu.api.openai.com/v1",
    ),
    (401, body("Use the regional host.", "incorrect_hostname"), IncorrectHostname, "another host"),
    (
        401,
        body("You must be a member of an organization.", "no_organization"),
        NoOrganization,
        "no organization",
    ),
    (403, body("Not supported.", "unsupported_country_region_territory"), UnsupportedCountry, "country"),
    (403, body("Country, region, or territory not supported"), UnsupportedCountry, "country"),
    (
        403,
        body("Your organization does not have access to this feature."),
        AccessRefused,
        "does not have access",
    ),
    (401, body("The API key has expired.", "expired_key"), AccessRefused, "has expired"),
    (401, "", AccessRefused, "answered 401."),
    (403, "no", AccessRefused, "answered 403: no."),
    (403, "[]", AccessRefused, "answered 403."),
    (402, body("Payment required"), AccessRefused, "Payment required"),
    (422, json.dumps({"detail": "Unprocessable"}), AccessRefused, "Unprocessable"),
    (403, PAGE, NotTheAPI, "Just a moment"),
    (503, PAGE, NotTheAPI, "web page"),
    (400, PAGE, NotTheAPI, "web page"),
    (407, "", ProxyFailed, "HTTPS_PROXY"),
    (429, body("Rate limit reached", "rate_limit_exceeded", "requests"), RateLimited, "rate limit"),
    (429, "", RateLimited, "rate limit"),
    *(
        (429, body("Your limit is reached.", code), SpendLimitReached, "Billing")
        for code in (
            "organization_spend_limit_exceeded",
            "project_spend_limit_exceeded",
            "organization_usage_limit_exceeded",
            "credit_balance_exhausted",
            "insufficient_quota",
        )
    ),
    (429, body("You exceeded your quota.", None, "insufficient_quota"), SpendLimitReached, "Billing"),
    (400, body("Grouping by ['user_id'] is not supported."), UnsupportedRequest, "user_id"),
    (400, body("Invalid.", param="group_by"), UnsupportedRequest, "Invalid"),
    (400, body("This project has been archived.", "project_archived"), UnsupportedRequest, "archived"),
    (400, body("Invalid 'start_time': too old."), WindowRefused, "start_time"),
    (400, body("Invalid 'end_time': in the future."), WindowRefused, "end_time"),
    (400, body("Something went wrong."), AccessRefused, "Something went wrong"),
    (404, json.dumps({"code": 404, "message": "The project was not found"}), NotFound, "not found"),
    (500, body("The server had an error.", None, "server_error"), Unreachable, "The server had an error"),
    (520, "", Unreachable, "answered 520."),
    (302, "", UnreadableResponse, "redirects"),
]


@pytest.mark.parametrize(("status", "sent", "error", "words"), MEANINGS)
@pytest.mark.parametrize("address", [OPENAI, GATEWAY], ids=lambda address: address.host)
def test_an_error_means_what_its_code_and_words_say(
    status: int, sent: str, error: type[OpenAIAdminError], words: str, address: Any
) -> None:
    headers = {"content-type": "text/html"} if sent == PAGE else {"content-type": "application/json"}

    found = error_of(status, sent.encode(), headers, address)

    assert type(found) is error
    message = str(found)
    assert words in message
    assert address.host in message
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 500
    assert found.status == status
    # A new key is advised only where the key is the cause, and only then fetches stop.
    is_key = error in (InvalidKey, InsufficientPermissions)
    assert ("new Admin key" in message) is is_key
    assert found.is_permanent is (is_key or issubclass(error, UnsupportedRequest))
    assert found.is_permanent is isinstance(found, PermanentError)


def test_the_right_host_comes_from_openais_own_words() -> None:
    def right_host(words: str) -> str | None:
        error = error_of(401, body(words, "incorrect_hostname").encode(), {}, OPENAI)
        assert isinstance(error, IncorrectHostname)
        return error.right_host

    assert right_host("Use https://us.api.openai.com/v1 instead of api.openai.com.") == "us.api.openai.com"
    assert right_host("Please make your request to eu.api.openai.com") == "eu.api.openai.com"
    for other in ("Use evil.example.", "Use evil.api.openai.com.", "Use eu.api.openai.com.evil.example", ""):
        assert right_host(other) is None


def test_code_and_retry_after_are_kept() -> None:
    error = error_of(429, body("Wait.", "rate_limit_exceeded").encode(), {"retry-after": "7"}, OPENAI)
    assert (error.status, error.code, error.retry_after) == (429, "rate_limit_exceeded", 7)
    assert error_of(403, body("No.", 7).encode(), {}, OPENAI).code == "7"
    assert error_of(403, b'{"error": {"message": 7, "code": []}}', {}, OPENAI).code is None
    assert error_of(429, b"", {"retry-after": "inf"}, OPENAI).retry_after is None
    assert error_of(429, b"", {"retry-after": "nan"}, OPENAI).retry_after is None


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"Incorrect API key provided: {KEY}.", "Incorrect API key provided: sk-…"),
        ("Two\nlines\tand\r\nmore", "Two lines and more"),
        ("red \x1b[31malert\x07", "red \\u001b[31malert\\u0007"),
        ("NUL \x00", "NUL \\u0000"),
        ("turned \u202egnp", "turned \\u202egnp"),
        ("half \ud83d", "half \\ud83d"),
        ("Überblick 東京 😀", "Überblick 東京 😀"),
    ],
)
def test_openais_messages_are_made_safe_to_show(said: str, shown: str) -> None:
    assert quoted(said).rstrip(".") == shown
    # Characters that JSON cannot hold are replaced before.
    if not {"\ud83d", "\x00"} & set(said):
        message = str(error_of(500, body(said).encode(), {}, OPENAI))
        assert message.endswith(f": {shown}.")
        assert KEY not in message


def test_long_messages_of_openai_are_cut() -> None:
    assert quoted("word " * 10_000).endswith("…")
    assert len(quoted("word " * 10_000)) <= 160
    assert len(str(error_of(500, body("x" * 100_000).encode(), {}, OPENAI))) < 400
    # A key cut off at the end of the message is still hidden.
    assert "sk-admin-Z" not in quoted("x" * 150 + " " + KEY)


@pytest.mark.parametrize(
    "sent", [b"\xff\xfe", b'{"error": ' + b"[" * 20_000, b'{"error": "\\ud83d"}', b'"text"', b"null", b"{}"]
)
def test_any_body_of_an_error_has_a_meaning(sent: bytes) -> None:
    error = error_of(500, sent, {}, OPENAI)
    assert type(error) is Unreachable
    assert str(error).endswith(".")


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAI]:
    now = datetime(2026, 11, 18, 15, tzinfo=UTC)
    simulator = Simulator([OrganizationSpec(0, since=now.date() - timedelta(days=5))], now=now)
    with running(simulator) as base_url:
        yield OpenAI(simulator, base_url)


# A busy machine must not turn a slow response into a time-out.
PATIENT = replace(QUICK, timeout_seconds=20, request_seconds=20, retry_seconds=20)
HASTY = replace(PATIENT, retry_seconds=0.05)


def with_client(openai: OpenAI, use: Callable[[OpenAIAdminClient], Awaitable[T]], limits: Limits) -> T:
    async def run() -> T:
        async with open_client(openai.base_url, limits) as client:
            return await use(client)

    return asyncio.run(run())


def requests_until(openai: OpenAI, fault: Fault, limits: Limits) -> tuple[int, OpenAIAdminError | None]:
    """Return the number of requests for a day of costs under a fault, and the final error."""
    openai.simulator.requests.clear()
    openai.simulator.clear_faults()
    openai.simulator.add_fault(openai.organizations[0], fault)
    day = openai.simulator.now.date()

    async def use(client: OpenAIAdminClient) -> OpenAIAdminError | None:
        try:
            key = AdminKey(openai.organizations[0].admin_key)
            await client.organization(key).fetch(COSTS, Window(day, day + timedelta(days=1)))
        except OpenAIAdminError as error:
            return error
        return None

    error = with_client(openai, use, limits)
    return openai.simulator.requests["costs"], error


@pytest.mark.parametrize(
    ("status", "sent", "requests"),
    [
        # A bad key, or a reason that OpenAI explains: one request.
        (401, body("Incorrect API key provided.", "invalid_api_key"), 1),
        (403, body(SCOPES), 1),
        (401, body("Not authorized.", "ip_not_authorized"), 1),
        (401, body("Use eu.api.openai.com.", "incorrect_hostname"), 1),
        (401, body("None.", "no_organization"), 1),
        (403, body("No.", "unsupported_country_region_territory"), 1),
        (429, body("Empty.", "credit_balance_exhausted"), 1),
        (400, body("Not supported."), 1),
        # An unknown reason: two retries.
        (403, body("Your organization does not have access to this feature."), 3),
        (401, "", 3),
        (418, "", 3),
    ],
)
def test_a_refusal_is_retried_according_to_its_reason(
    openai: OpenAI, status: int, sent: str, requests: int
) -> None:
    fault = Fault(FaultKind.STATUS, status=status, body=sent)
    assert requests_until(openai, fault, PATIENT)[0] == requests


@pytest.mark.parametrize(
    ("status", "sent", "kind"),
    [
        (403, PAGE, "text/html"),
        (403, PAGE, "application/json"),
        (503, PAGE, "text/html"),
        (200, PAGE, "text/html"),
        (500, "", "text/plain"),
        (403, body("Your organization does not have access to this feature."), "application/json"),
        (401, body("Something odd.", "odd_code"), "application/json"),
    ],
)
def test_a_transient_error_changes_no_result(openai: OpenAI, status: int, sent: str, kind: str) -> None:
    fault = Fault(FaultKind.STATUS, status=status, body=sent, content_type=kind, times=1)
    assert requests_until(openai, fault, PATIENT) == (2, None)


def test_a_lasting_web_page_is_retried_like_a_server_error(openai: OpenAI) -> None:
    requests, error = requests_until(
        openai, Fault(FaultKind.STATUS, status=403, body=PAGE, content_type="text/html"), HASTY
    )
    assert isinstance(error, NotTheAPI)
    assert not error.is_permanent
    assert requests > 2


def test_a_type_error_is_retried_briefly(openai: OpenAI) -> None:
    requests, error = requests_until(
        openai, Fault(FaultKind.EDIT, edit='"value":"[^"]*"', body='"value":"12,5"'), PATIENT
    )
    assert requests == 1
    assert "data[0].results[0].amount.value" in str(error)
    assert openai.base_url.removeprefix("http://").removesuffix("/v1") in str(error)
    assert requests_until(openai, Fault(FaultKind.NULL_RESULTS), PATIENT)[0] == 2


def test_every_error_class_has_a_metric_label() -> None:
    def classes(of: type[OpenAIAdminError]) -> Iterator[type[OpenAIAdminError]]:
        yield of
        for one in of.__subclasses__():
            yield from classes(one)

    named = {
        one.__name__: one.reason for one in classes(OpenAIAdminError) if not one.__name__.startswith("_")
    }
    assert len(named) > 25
    assert all(reason.replace("_", "").isalpha() and reason.islower() for reason in named.values())
