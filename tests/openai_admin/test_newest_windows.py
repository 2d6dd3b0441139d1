"""Windows that OpenAI refuses: the newest days it returns are fetched and recorded."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta

import pytest

from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS, Endpoint
from finora_pipeline.openai_admin.errors import InvalidKey, Unreachable, UnsupportedRequest, WindowRefused
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.pages import Page, Window, unix_seconds
from finora_pipeline.openai_simulator import (
    Fault,
    FaultKind,
    KeyState,
)
from tests.conftest import QUICK, OpenAI

PATIENT = replace(QUICK, timeout_seconds=20, request_seconds=20, retry_seconds=20)
# 15:00 of the real today, since the client uses the real clock.
TODAY = datetime.now(UTC).date()
TOMORROW = TODAY + timedelta(days=1)
COMPLETIONS = ENDPOINTS["completions"]


@pytest.fixture
def openai(start_openai) -> OpenAI:
    now = datetime.combine(TODAY, time(15), UTC)
    return start_openai(days=600, now=now, services=False, projects=1, members=1, cost_groupings=())


def read_newest(
    openai: OpenAI,
    window: Window,
    *faults: Fault,
    endpoint: Endpoint = COSTS,
    group_by: tuple[str, ...] | None = None,
    known_from: date | None = None,
) -> tuple[list[Page], Window]:
    for fault in faults:
        openai.simulator.add_fault(openai.organizations[0], fault)
    openai.simulator.requests.clear()

    async def run() -> tuple[list[Page], Window]:
        async with open_client(openai.base_url, PATIENT) as client:
            reader = client.organization(AdminKey(openai.organizations[0].admin_key))
            return await reader.fetch_newest(endpoint, window, group_by, known_from)

    return asyncio.run(run())


def days_of(pages: list[Page]) -> list[int]:
    return [start for page in pages for start in page.head.starts]


def rows_of(pages: list[Page]) -> dict[int, list[object]]:
    return {
        bucket["start_time"]: bucket["results"] for page in pages for bucket in json.loads(page.body)["data"]
    }


def each_day(window: Window) -> list[int]:
    return [unix_seconds(window.start + timedelta(days=n)) for n in range(window.days)]


def last(days: int) -> Window:
    return Window(TOMORROW - timedelta(days=days), TOMORROW)


def test_a_window_openai_accepts_is_fetched_unchanged(openai: OpenAI) -> None:
    pages, given = read_newest(openai, last(400))
    assert given == last(400)
    assert days_of(pages) == each_day(given)
    assert openai.simulator.requests["costs"] == 3


@pytest.mark.parametrize("endpoint", [COSTS, COMPLETIONS], ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize("limit", [1, 2, 30, 179, 180, 181, 366])
@pytest.mark.slow
def test_all_days_openai_returns_are_fetched(openai: OpenAI, endpoint: Endpoint, limit: int) -> None:
    # A window must begin within so many days before now, so the first whole day is that old.
    pages, given = read_newest(openai, last(500), Fault(FaultKind.NO_HISTORY, days=limit), endpoint=endpoint)
    assert given == Window(TODAY - timedelta(days=limit - 1), TOMORROW)
    assert days_of(pages) == each_day(given)
    assert openai.simulator.requests[endpoint.name] < 40


def test_usage_is_fetched_for_the_days_of_the_costs(openai: OpenAI) -> None:
    pages, given = read_newest(openai, last(500), Fault(FaultKind.NO_HISTORY, days=200))
    openai.simulator.clear_faults()
    again, _ = read_newest(openai, given)
    assert rows_of(pages) == rows_of(again)
    assert any(rows_of(pages).values())


def test_a_refused_future_ends_now(openai: OpenAI) -> None:
    # The simulator's clock is ahead, so that the real now is not in its future.
    openai.simulator.frozen_now = datetime.now(UTC) + timedelta(seconds=5)
    pages, given = read_newest(openai, last(10), Fault(FaultKind.NO_FUTURE))
    assert given == last(10)
    assert days_of(pages) == each_day(given)


def test_a_wholly_refused_today_is_left_out(openai: OpenAI) -> None:
    openai.simulator.frozen_now = datetime.combine(TODAY, time(), UTC)
    pages, given = read_newest(openai, last(10), Fault(FaultKind.NO_FUTURE))
    assert given == Window(last(10).start, TODAY)
    assert days_of(pages) == each_day(given)


def test_history_and_future_may_both_be_refused(openai: OpenAI) -> None:
    openai.simulator.frozen_now = datetime.now(UTC) + timedelta(seconds=5)
    faults = (Fault(FaultKind.NO_FUTURE), Fault(FaultKind.NO_HISTORY, days=50))
    pages, given = read_newest(openai, last(300), *faults)
    assert given == Window(TODAY - timedelta(days=49), TOMORROW)
    assert days_of(pages) == each_day(given)


def test_a_window_without_today_is_shortened_too(openai: OpenAI) -> None:
    window = Window(TODAY - timedelta(days=400), TODAY - timedelta(days=20))
    pages, given = read_newest(openai, window, Fault(FaultKind.NO_HISTORY, days=100))
    assert given == Window(TODAY - timedelta(days=99), window.end)
    assert days_of(pages) == each_day(given)


def test_a_wholly_refused_window_raises_after_few_requests(openai: OpenAI) -> None:
    window = Window(TODAY - timedelta(days=400), TODAY - timedelta(days=200))
    with pytest.raises(WindowRefused, match="start_time"):
        read_newest(openai, window, Fault(FaultKind.NO_HISTORY, days=100))
    assert openai.simulator.requests["costs"] <= 4


def test_a_query_refused_for_another_reason_is_not_shortened(openai: OpenAI) -> None:
    with pytest.raises(UnsupportedRequest, match="user_id") as caught:
        read_newest(openai, last(400), group_by=("user_id",))
    assert not isinstance(caught.value, WindowRefused)
    assert openai.simulator.requests["costs"] <= 3 + 3


def test_an_error_about_other_things_than_days_raises_at_once(openai: OpenAI) -> None:
    openai.simulator.set_key_state(openai.organizations[0].admin_key, KeyState.REVOKED)
    with pytest.raises(InvalidKey):
        read_newest(openai, last(5))
    openai.simulator.set_key_state(openai.organizations[0].admin_key, KeyState.ACTIVE)
    # Another failure on older days returns no partial result.
    faults = (
        Fault(FaultKind.NO_HISTORY, days=366, times=3),
        Fault(FaultKind.STATUS, status=500, seconds=3600, after=1),
    )
    with pytest.raises(Unreachable):
        read_newest(openai, last(400), *faults)


def test_days_before_the_organization_are_left_out(openai: OpenAI) -> None:
    pages, given = read_newest(openai, last(500), Fault(FaultKind.NO_HISTORY, days=300), known_from=TODAY)
    assert given == Window(TODAY - timedelta(days=299), TOMORROW)
    assert days_of(pages) == each_day(given)
