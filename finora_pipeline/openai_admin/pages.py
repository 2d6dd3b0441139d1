"""A page of costs or usage: its documented shape, checked and typed, and the window it was asked for.

Undocumented keys are ignored (the live API sends several); a documented key of the wrong type makes the
whole page unreadable, so that nothing half-understood is ever stored. Numbers of money and quantity stay
the text OpenAI sent (`msgspec.Raw`): no float is ever made of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import msgspec

from finora_pipeline.openai_admin.amounts import AmountError, add_exactly, parse_amount
from finora_pipeline.openai_admin.endpoints import COSTS, Endpoint
from finora_pipeline.openai_admin.errors import UnreadableResponse

SECONDS_PER_DAY = 86_400
CURRENCY = "usd"
# What nearly all numbers of a day look like, joined by commas; anything else is looked at one by one.
_PLAIN_NUMBERS = re.compile(
    rb'(?:(?:"-?\d{1,18}\.\d{1,60}"|-?\d{1,18}(?:\.\d{1,60})?|"0E-6176"|null)?(?:,|$))*'
).fullmatch


def unix_seconds(day: date) -> int:
    """The first second of a UTC day, in Unix seconds."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """Whole UTC days, `start` inclusive, `end` exclusive, as OpenAI's `start_time` and `end_time`."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"The window from {self.start} to {self.end} holds no day.")

    @property
    def last(self) -> date:
        """The last day of the window."""
        return self.end - timedelta(days=1)

    @property
    def days(self) -> int:
        return (self.end - self.start).days

    def split(self, most_days: int) -> Iterator["Window"]:
        """The window in pieces of at most `most_days`, the newest piece last."""
        start = self.start
        while start < self.end:
            end = min(start + timedelta(days=most_days), self.end)
            yield Window(start, end)
            start = end


@dataclass(frozen=True, slots=True)
class Page:
    """One page as received. `body` is OpenAI's text, verbatim; `grouping` the `group_by` values that were
    asked for; `number` counts from 1 in its window."""

    endpoint: Endpoint
    window: Window
    grouping: tuple[str, ...]
    number: int
    fetched_at: datetime
    body: bytes


class Amount(msgspec.Struct, frozen=True, gc=False):
    """Money as OpenAI writes it: JSON string or number, USD. Both fields are optional in the schema."""

    value: msgspec.Raw = msgspec.Raw()
    currency: str | None = CURRENCY


class CostResult(msgspec.Struct, frozen=True, gc=False):
    """One row of the costs endpoint (`organization.costs.result`)."""

    amount: Amount | None = None
    line_item: str | None = None
    project_id: str | None = None
    project_name: str | None = None
    organization_id: str | None = None
    organization_name: str | None = None
    quantity: msgspec.Raw = msgspec.Raw()
    quantity_unit: str | None = None


class UsageResult(msgspec.Struct, frozen=True, gc=False):
    """One row of any usage endpoint; a measure that the endpoint does not have is None."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None
    input_tokens: int | None = None
    input_cached_tokens: int | None = None
    input_cache_write_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_tokens: int | None = None
    output_audio_tokens: int | None = None
    num_model_requests: int | None = None


class CostBucket(msgspec.Struct, frozen=True, gc=False):
    """One UTC day of costs; an empty `results` is a day without spend."""

    start_time: int
    end_time: int
    results: list[CostResult]


class UsageBucket(msgspec.Struct, frozen=True, gc=False):
    """One UTC day of usage."""

    start_time: int
    end_time: int
    results: list[UsageResult]


class _CostPage(msgspec.Struct, frozen=True, gc=False):
    object: str
    data: list[CostBucket]
    has_more: bool
    next_page: str | None = None


class _UsagePage(msgspec.Struct, frozen=True, gc=False):
    object: str
    data: list[UsageBucket]
    has_more: bool
    next_page: str | None = None


_COST_DECODER = msgspec.json.Decoder(_CostPage)
_USAGE_DECODER = msgspec.json.Decoder(_UsagePage)

PageT = TypeVar("PageT", _CostPage, _UsagePage)


def decode_costs(body: bytes) -> _CostPage:
    """A page of the costs endpoint, its amounts not yet checked. Raises `UnreadableResponse`."""
    return _decode(_COST_DECODER, body)


def distinct_costs(results: list[CostResult]) -> list[CostResult]:
    """A day's rows with those of the same project and line item added up, exactly; usually as they are."""
    if len({(result.project_id, result.line_item) for result in results}) == len(results):
        return results
    merged: dict[tuple[str | None, str | None], CostResult] = {}
    for result in results:
        key = (result.project_id, result.line_item)
        if (known := merged.get(key)) is not None:
            total = _sum(known.amount and known.amount.value, result.amount and result.amount.value)
            result = msgspec.structs.replace(
                result, amount=Amount(total), quantity=_sum(known.quantity, result.quantity)
            )
        merged[key] = result
    return list(merged.values())


def _sum(one: msgspec.Raw | None, other: msgspec.Raw | None) -> msgspec.Raw:
    """The exact sum of two numbers' texts as such a text; empty if neither is there."""
    values = [v for raw in (one, other) if raw is not None and (v := parse_amount(bytes(raw))) is not None]
    return msgspec.Raw(str(add_exactly(values)).encode()) if values else msgspec.Raw()


def decode_usage(body: bytes) -> _UsagePage:
    """A page of any usage endpoint. Raises `UnreadableResponse` if it is not one."""
    return _decode(_USAGE_DECODER, body)


@dataclass(frozen=True, slots=True)
class PageHead:
    """What following the cursor needs of a page: whether and where it goes on, and the days it holds."""

    has_more: bool
    next_page: str | None
    starts: list[int]


def check_page(endpoint: Endpoint, body: bytes) -> PageHead:
    """Whether the text is a whole, typed page of that endpoint.

    Each amount must be a decimal in a JSON string or number, or null, in US dollars. Raises
    `UnreadableResponse` with what is wrong.
    """
    if endpoint is not COSTS:
        used = decode_usage(body)
        return PageHead(used.has_more, used.next_page, [bucket.start_time for bucket in used.data])
    page = decode_costs(body)
    for bucket in page.data:
        amounts = [result.amount for result in bucket.results if result.amount is not None]
        numbers = [amount.value for amount in amounts] + [result.quantity for result in bucket.results]
        if not _PLAIN_NUMBERS(b",".join(numbers)):
            for number in numbers:
                _check_number(number)
        if {amount.currency for amount in amounts} - {CURRENCY, None}:
            _check_currencies(amounts)
    return PageHead(page.has_more, page.next_page, [bucket.start_time for bucket in page.data])


def _check_currencies(amounts: list[Amount]) -> None:
    for amount in amounts:
        if amount.currency and amount.currency.lower() != CURRENCY:
            raise UnreadableResponse(
                f"OpenAI sent an amount in {amount.currency!r}; only US dollars are understood."
            )


def _check_number(raw: msgspec.Raw) -> None:
    try:
        parse_amount(bytes(raw))
    except AmountError as error:
        raise UnreadableResponse(f"OpenAI sent an amount that is not one: {error}") from None


def _decode(decoder: msgspec.json.Decoder[PageT], body: bytes) -> PageT:
    try:
        page = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UnreadableResponse(f"OpenAI's answer is not a page of daily buckets: {error}.") from None
    if page.object != "page":
        raise UnreadableResponse(f"OpenAI's answer is a {page.object!r} where a page was asked for.")
    for bucket in page.data:
        if bucket.start_time % SECONDS_PER_DAY:
            raise UnreadableResponse(f"OpenAI sent a bucket that starts within a day ({bucket.start_time}).")
    return page
