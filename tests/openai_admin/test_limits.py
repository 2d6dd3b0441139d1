"""Deadlines, size limits, and isolation of an organization's trouble from others."""

import asyncio
import gzip
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import pytest

from finora_pipeline.openai_admin.bodies import read_body
from finora_pipeline.openai_admin.client import Limits, OpenAIAdminClient, open_client
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS
from finora_pipeline.openai_admin.errors import (
    AnswerTooLarge,
    OpenAIAdminError,
    RateLimited,
    TimedOut,
    Unreachable,
    UnreadableResponse,
)
from finora_pipeline.openai_admin.in_flight import InFlight
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Page, Window
from finora_pipeline.openai_simulator import Fault, FaultKind, OrganizationSpec, Simulator, running
from tests.conftest import QUICK, OpenAI

T = TypeVar("T")
PATIENT = replace(QUICK, timeout_seconds=20, request_seconds=20, retry_seconds=20)
ONCE = replace(PATIENT, retry_seconds=0)


@pytest.fixture(scope="module")
def shared_openai() -> Iterator[OpenAI]:
    now = datetime(2026, 11, 18, 15, tzinfo=UTC)
    specs = [OrganizationSpec(number, since=now.date() - timedelta(days=3)) for number in range(3)]
    simulator = Simulator(specs, now=now)
    with running(simulator) as base_url:
        yield OpenAI(simulator, base_url)


@pytest.fixture
def openai(shared_openai: OpenAI) -> Iterator[OpenAI]:
    shared_openai.simulator.requests.clear()
    yield shared_openai
    shared_openai.simulator.clear_faults()
    shared_openai.simulator.latency = 0


def with_client(openai: OpenAI, use: Callable[[OpenAIAdminClient], Awaitable[T]], limits: Limits) -> T:
    async def run() -> T:
        async with open_client(openai.base_url, limits) as client:
            return await use(client)

    return asyncio.run(run())


def today(openai: OpenAI) -> Window:
    day = openai.simulator.now.date()
    return Window(day, day + timedelta(days=1))


def read(openai: OpenAI, limits: Limits, fault: Fault | None = None) -> list[Page]:
    if fault:
        openai.simulator.add_fault(openai.organizations[0], fault)

    async def use(client: OpenAIAdminClient) -> list[Page]:
        return await client.organization(AdminKey(openai.organizations[0].admin_key)).fetch(
            COSTS, today(openai)
        )

    return with_client(openai, use, limits)


def test_a_dripping_body_ends_at_the_requests_time_limit(openai: OpenAI) -> None:
    # Each byte arrives within the read time-out; all together would take minutes.
    drip = Fault(FaultKind.DRIP, seconds=0.02)
    with pytest.raises(TimedOut, match=r"did not answer within 0\.3 s \(127\.0\.0\.1:\d+\)"):
        read(openai, replace(ONCE, request_seconds=0.3), drip)


def test_a_retry_ends_at_the_time_limit_too(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.SERVER_ERROR, times=1))
    # The first retry has only the rest of the time for retries, or the read time-out.
    limits = replace(PATIENT, request_seconds=600, retry_seconds=0.3, timeout_seconds=0.3)
    with pytest.raises(TimedOut):
        read(openai, limits, Fault(FaultKind.DRIP, seconds=0.02))
    assert openai.simulator.requests["costs"] >= 2


def test_an_answer_of_too_many_bytes_is_not_read_to_its_end(openai: OpenAI) -> None:
    (page,) = read(openai, PATIENT)
    size = len(page.body)
    assert read(openai, replace(PATIENT, body_bytes=size))[0].body == page.body
    with pytest.raises(AnswerTooLarge, match="in one answer"):
        read(openai, replace(PATIENT, body_bytes=size - 1))
    # One request: the body would be as long again.
    assert openai.simulator.requests["costs"] == 3


def test_a_page_of_too_many_rows_is_refused_once(openai: OpenAI) -> None:
    with pytest.raises(AnswerTooLarge, match="over the limit of 1"):
        read(openai, replace(PATIENT, rows_per_page=1))
    assert openai.simulator.requests["costs"] == 1


BOMB = """
import asyncio, resource, sys
from datetime import date
from finora_pipeline.openai_admin.client import Limits, open_client
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.errors import AnswerTooLarge
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Window

DAY = Window(date(2026, 11, 18), date(2026, 11, 19))

async def run():
    async with open_client(sys.argv[1], Limits(body_bytes=4_000_000)) as client:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            await client.organization(AdminKey(sys.argv[2])).fetch(COSTS, DAY)
        except AnswerTooLarge as error:
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)

asyncio.run(run())
"""


@pytest.mark.slow
def test_a_gzip_bomb_takes_no_memory(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.GZIP_BOMB, mebibytes=300))
    command = [sys.executable, "-c", BOMB, openai.base_url, openai.organizations[0].admin_key]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    kilobytes, _, message = done.stdout.partition(" ")
    assert "more than 3.8147 MiB in one answer" in message
    # macOS counts bytes.
    assert int(kilobytes) / (1024 if sys.platform == "darwin" else 1) < 60_000


async def parts(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 16_384])
@pytest.mark.parametrize(
    ("encoding", "sent"),
    [
        ("", b"plain text"),
        ("identity", b"plain text"),
        ("gzip", gzip.compress(b"plain text", mtime=0)),
        (" GZIP ", gzip.compress(b"plain text", mtime=0)),
        ("x-gzip", gzip.compress(b"plain ", mtime=0) + gzip.compress(b"text", mtime=0)),
        ("deflate", zlib.compress(b"plain text")),
    ],
    ids=["none", "identity", "gzip", "capitals", "two parts", "deflate"],
)
def test_a_body_is_decompressed_in_any_chunks(encoding: str, sent: bytes, size: int) -> None:
    assert asyncio.run(read_body(parts(sent, size), encoding, 10)) == b"plain text"
    with pytest.raises(AnswerTooLarge):
        asyncio.run(read_body(parts(sent, size), encoding, 9))
    assert asyncio.run(read_body(parts(sent, size), encoding, 9, may_be_cut=True)) == b"plain tex"


def test_a_body_of_a_broken_or_unknown_encoding_is_an_error() -> None:
    with pytest.raises(zlib.error):
        asyncio.run(read_body(parts(b"not gzip", 3), "gzip", 100))
    for encoding in ("br", "gzip, gzip", "zstd"):
        with pytest.raises(UnreadableResponse, match="not requested"):
            asyncio.run(read_body(parts(b"x", 1), encoding, 100))


def test_only_the_start_of_a_long_error_body_is_read(openai: OpenAI) -> None:
    long = '{"error": {"message": "It broke.", "padding": "' + "x" * 1_000_000 + '"}}'
    with pytest.raises(Unreachable, match="answered 500"):
        read(openai, ONCE, Fault(FaultKind.STATUS, status=500, body=long))


@asynccontextmanager
async def held(places: InFlight, count: int) -> AsyncIterator[None]:
    for _ in range(count):
        await places.__aenter__()
    yield
    for _ in range(count):
        await places.__aexit__()


def answers(places: InFlight, limited: int, good: int) -> None:
    for number in range(limited + good):
        places.answered(number < limited)


def test_concurrency_shrinks_under_429_and_recovers_afterwards() -> None:
    async def run() -> None:
        places = InFlight(64)
        answers(places, 64, 0)
        assert places.places == 32
        answers(places, 8, 24)
        assert places.places == 16
        for _ in range(20):
            answers(places, 16, 0)
        assert places.places == 4
        for _ in range(40):
            answers(places, 0, 64)
        assert places.places == 64

    asyncio.run(run())


def test_one_organizations_429_slows_no_other() -> None:
    async def run() -> None:
        places = InFlight(256)
        for _ in range(10):
            answers(places, 20, 236)
        assert places.places == 256

    asyncio.run(run())


def test_lower_concurrency_holds_with_requests_in_flight() -> None:
    async def run() -> None:
        places = InFlight(32)
        async with held(places, 32):
            answers(places, 32, 0)
            assert places.places == 16
        async with held(places, 16):
            # The seventeenth waits.
            waiting = asyncio.ensure_future(places.__aenter__())
            await asyncio.sleep(0)
            assert not waiting.done()
            await places.__aexit__()
            await waiting
        for _ in range(10):
            answers(places, 0, 32)
        async with held(places, 32):
            assert places.places == 32

    asyncio.run(run())


def test_requests_in_flight_never_exceed_the_concurrency(openai: OpenAI) -> None:
    in_flight = most = 0

    async def counted(scope, receive, send) -> None:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.01)
        # Before the response: the client may continue as soon as it arrives.
        in_flight -= 1
        await openai.simulator(scope, receive, send)

    async def use(client: OpenAIAdminClient) -> None:
        readers = [client.organization(AdminKey(o.admin_key)) for o in openai.organizations]
        usage = [e for e in ENDPOINTS.values() if e is not COSTS][:6]
        await asyncio.gather(*(r.fetch(endpoint, today(openai)) for r in readers for endpoint in usage))

    with running(counted) as base_url:  # type: ignore[arg-type]
        counting = OpenAI(openai.simulator, base_url)
        with_client(counting, use, replace(PATIENT, per_organization=2))
        assert 3 <= most <= 6
        most = 0
        with_client(counting, use, replace(PATIENT, concurrency=2))
        assert most == 2


def test_a_pause_before_a_retry_holds_no_slot(openai: OpenAI) -> None:
    # One slot for all: a pause that holds it would block the others.
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.RATE_LIMIT, seconds=3))
    limits = replace(PATIENT, concurrency=1, per_organization=1, retry_seconds=30)

    async def use(client: OpenAIAdminClient) -> None:
        stuck, *others = (client.organization(AdminKey(o.admin_key)) for o in openai.organizations)
        paused = asyncio.create_task(stuck.fetch(COSTS, today(openai)))
        while not openai.simulator.requests["costs"]:
            await asyncio.sleep(0.001)
        for other in others:
            assert len(await other.fetch(COSTS, today(openai))) == 1
        # The same organization's other endpoints continue, too.
        openai.simulator.clear_faults()
        assert len(await stuck.fetch(ENDPOINTS["embeddings"], today(openai))) == 1
        assert not paused.done()
        paused.cancel()

    with_client(openai, use, limits)


def test_a_fetch_without_retry_time_makes_one_request(openai: OpenAI) -> None:
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.SERVER_ERROR))

    async def use(client: OpenAIAdminClient) -> None:
        reader = client.organization(AdminKey(openai.organizations[0].admin_key))
        with pytest.raises(OpenAIAdminError):
            await reader.fetch(COSTS, today(openai), retry_seconds=0)

    with_client(openai, use, PATIENT)
    assert openai.simulator.requests["costs"] == 1


def test_a_far_network_is_simulated(openai: OpenAI) -> None:
    openai.simulator.latency = 0.1
    began = time.monotonic()
    read(openai, PATIENT)
    assert time.monotonic() - began >= 0.1


def test_waiting_for_a_slot_does_not_use_up_the_retry_limit(openai: OpenAI) -> None:
    """A request that waits long for a slot has as many retries as others."""
    openai.simulator.add_fault(openai.organizations[1], Fault(FaultKind.SERVER_ERROR, times=1))
    openai.simulator.add_fault(openai.organizations[0], Fault(FaultKind.SLOW, seconds=0.3))
    limits = replace(PATIENT, concurrency=1, retry_seconds=0.25)

    async def use(client: OpenAIAdminClient) -> None:
        slow, other = (client.organization(AdminKey(o.admin_key)) for o in openai.organizations[:2])
        first = asyncio.create_task(slow.fetch(COSTS, today(openai)))
        await asyncio.sleep(0)
        assert len(await other.fetch(COSTS, today(openai))) == 1
        await first

    with_client(openai, use, limits)


def test_endless_429_ends_as_a_rate_limit(openai: OpenAI) -> None:
    with pytest.raises(RateLimited):
        read(openai, replace(PATIENT, retry_seconds=0.05), Fault(FaultKind.RATE_LIMIT))
