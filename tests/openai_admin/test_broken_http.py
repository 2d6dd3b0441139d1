"""The client against foreign servers and broken HTTP: proxies, portals, torn connections."""

import asyncio
import gzip
import json
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date, timedelta

import aiohttp
import pytest

from finora_pipeline.openai_admin.client import Limits, open_client
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.errors import OpenAIAdminError, RateLimited, Unreachable, UnreadableResponse
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Page, Window, unix_seconds
from tests.conftest import QUICK

KEY = AdminKey("sk-admin-Zk3_9xQw-7LmN2pRtVbY4cD1")
FIRST = date(2026, 6, 14)
# No retries, so that every response counts.
ONCE = replace(QUICK, timeout_seconds=20, retry_seconds=0)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def with_length(body: bytes, headers: bytes = b"") -> bytes:
    return OK + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def page(*days: int, next_page: str | None = None) -> bytes:
    """Return a response with empty buckets of these days, counted from the first."""
    starts = [unix_seconds(FIRST + timedelta(days=day)) for day in days]
    buckets = [
        {"object": "bucket", "start_time": start, "end_time": start + 86_400, "results": []}
        for start in starts
    ]
    whole = {"object": "page", "data": buckets, "has_more": next_page is not None, "next_page": next_page}
    return with_length(json.dumps(whole).encode())


@asynccontextmanager
async def listening(answers: Sequence[bytes], heard: list[bytes]) -> AsyncIterator[str]:
    """Serve these bytes on a port in order, then the last ones for ever."""
    left = list(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}/v1"


def read(*answers: bytes, days: int = 3, limits: Limits = ONCE) -> tuple[list[Page], int]:
    """Fetch a window of so many days; return the pages and the number of requests."""

    async def run() -> tuple[list[Page], int]:
        window = Window(FIRST, FIRST + timedelta(days=days))
        async with listening(answers, []) as base_url, open_client(base_url, limits) as client:
            return await client.organization(KEY).fetch(COSTS, window), client.outcomes.total()

    return asyncio.run(run())


def failure(*answers: bytes, limits: Limits = ONCE) -> OpenAIAdminError:
    """Return the error of such a fetch, which must be ours and hold no key."""
    with pytest.raises(OpenAIAdminError) as caught:
        read(*answers, limits=limits)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY.reveal() not in shown
    assert str(caught.value).endswith(".")
    return caught.value


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(b"", Unreachable, id="closed at once"),
        pytest.param(OK, Unreachable, id="closed within the headers"),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", Unreachable, id="closed within a chunk"
        ),
        pytest.param(
            with_length(b"not gzip", b"Content-Encoding: gzip\r\n"), Unreachable, id="not compressed"
        ),
        pytest.param(
            with_length(gzip.compress(b"{}" * 99)[:12], b"Content-Encoding: gzip\r\n"),
            UnreadableResponse,
            id="cut within the compression",
        ),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", UnreadableResponse, id="no content"),
        pytest.param(b"HTTP/1.1 999 ?\r\nContent-Length: 0\r\n\r\n", Unreachable, id="unheard-of status"),
        pytest.param(b"\x00\x16\x03\x01garbage\r\n\r\n", Unreachable, id="not HTTP"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", Unreachable, id="another protocol"),
        pytest.param(b"HTTP/1.1 OK\r\n\r\n", Unreachable, id="no status"),
        pytest.param(
            OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}\r\n",
            Unreachable,
            id="chunk without length",
        ),
        pytest.param(OK + b"Content-Length: -5\r\n\r\n{}", Unreachable, id="negative length"),
        pytest.param(OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n", Unreachable, id="endless header"),
    ],
)
def test_a_broken_response_is_transient(answer: bytes, error: type[OpenAIAdminError]) -> None:
    assert type(failure(answer)) is error


def test_a_broken_response_is_retried() -> None:
    pages, requests = read(b"SSH-2.0-OpenSSH_9.9\r\n", page(0, 1, 2), limits=replace(ONCE, retry_seconds=20))

    assert [len(json.loads(one.body)["data"]) for one in pages] == [3]
    assert requests == 2


def test_no_error_about_malformed_http_shows_the_key() -> None:
    with pytest.raises((OpenAIAdminError, aiohttp.ClientError)) as caught:
        read(b"SSH-2.0-OpenSSH_9.9\r\n")
    # A bare assertion on the text would print it, with the key, on failure.
    shows_key = KEY.reveal() in repr(caught.value)
    assert not shows_key


def test_a_redirect_does_not_carry_the_key() -> None:
    async def run() -> list[bytes]:
        heard: list[bytes] = []
        async with listening([page(0)], heard) as elsewhere:
            moved = b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % elsewhere.encode()
            async with listening([moved], []) as base_url, open_client(base_url, ONCE) as client:
                with pytest.raises(UnreadableResponse, match="unexpected status"):
                    await client.organization(KEY).fetch(COSTS, Window(FIRST, FIRST + timedelta(days=1)))
        return heard

    assert asyncio.run(run()) == []


def test_only_the_authorization_header_carries_the_key() -> None:
    async def run() -> list[bytes]:
        heard: list[bytes] = []
        async with listening([page(0)], heard) as base_url, open_client(base_url, ONCE) as client:
            await client.organization(KEY).fetch(COSTS, Window(FIRST, FIRST + timedelta(days=1)))
        return heard

    (asked,) = asyncio.run(run())
    line, *headers = asked.decode().split("\r\n")
    assert line.startswith("GET /v1/organization/costs?")
    assert [header.lower() for header in headers if KEY.reveal() in header] == [
        f"authorization: bearer {KEY.reveal()}".lower()
    ]
    assert KEY.reveal() not in line


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([page(-1, 0, 1)], "not requested"),
        ([page(0, 1, 2, 3)], "not requested"),
        ([page(0, 1, 1)], "a day twice"),
        ([page(0, 2, 1)], "a day twice"),
        ([page(0, 1, next_page="page_a"), page(1, 2)], "a day twice"),
        ([page(0, next_page="page_a"), page(1, next_page="page_a")], "repeated a page token"),
        ([page(0, next_page="")], "gave no page token"),
    ],
    ids=["a day too early", "a day too late", "twice", "backwards", "again", "same token", "empty token"],
)
def test_pages_that_do_not_fit_their_window_are_unreadable(answers: list[bytes], words: str) -> None:
    # The window is requested three times before the fetch fails.
    error = failure(*answers * 3)

    assert isinstance(error, UnreadableResponse)
    assert words in str(error)


def test_pages_that_fit_their_window_are_read() -> None:
    pages, requests = read(page(0, next_page="page_a"), page(1, next_page="page_b"), page(2))

    assert [one.number for one in pages] == [1, 2, 3]
    assert requests == 3


@pytest.mark.parametrize(
    "moment",
    ["Wed, 21 Oct 99999999999 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:00 +99999999999999"],
)
def test_retry_after_beyond_the_calendar_is_ignored(moment: str) -> None:
    busy = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: %s\r\nContent-Length: 0\r\n\r\n" % moment.encode()

    error = failure(busy)

    assert isinstance(error, RateLimited)
    assert error.retry_after is None


def test_a_deeply_nested_response_is_unreadable() -> None:
    body = b'{"object":"page","data":[],"has_more":false,"extra":' + b"[" * 20_000 + b"]" * 20_000 + b"}"

    assert isinstance(failure(with_length(body)), UnreadableResponse)
