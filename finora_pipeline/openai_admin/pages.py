"""A page of costs or usage: its documented shape, checked and typed, and the window it was asked for.

Undocumented keys are ignored (the live API sends several); a documented key of the wrong type makes the
whole page unreadable, so that nothing half-understood is ever stored. Numbers of money and quantity stay
the text OpenAI sent (`msgspec.Raw`): no float is ever made of them.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, TypeVar

import msgspec

from finora_pipeline.openai_admin.amounts import AmountError, add_exactly, parse_amount, round_to_total
from finora_pipeline.openai_admin.endpoints import Endpoint, Listing
from finora_pipeline.openai_admin.errors import UnreadableResponse
from finora_pipeline.openai_admin.keys import redact

SECONDS_PER_DAY = 86_400
CURRENCY = "usd"
# What nearly all amounts and quantities of a day look like, joined by commas: a decimal128 text with at most
# 18 places before its trailing zeros, and a number that a double holds.
# Possessive throughout: a pattern that may go back would do so for every amount before an odd one.
_CANONICAL_AMOUNTS = re.compile(rb'(?:(?>"-?\d{1,18}+\.\d{1,18}+0*+"|"0E-6176"|null)?+(?:,|$))*+').fullmatch
_LINE_ITEM = operator.attrgetter("line_item")
_CANONICAL_QUANTITIES = re.compile(rb"(?:(?>-?\d{1,12}+(?:\.\d{1,3}+)?+|null)?+(?:,|$))*+").fullmatch


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
class PageHead:
    """What is known of a checked page: whether and where it goes on, the days it holds, whether SQL can
    read its numbers as they stand (`canonical_costs` otherwise), the line items it names, and id and name of
    the organization whose costs they are."""

    has_more: bool
    next_page: str | None
    starts: list[int]
    is_canonical: bool = True
    line_items: frozenset[str] = frozenset()
    organization: tuple[str, str | None] | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page as received. `body` is OpenAI's text, verbatim, and `head` what its check found; `grouping`
    the `group_by` values that were asked for, or the project of a list; `number` counts from 1 in its
    window; `fetched_at` is the moment when it was asked for."""

    endpoint: Endpoint | Listing
    window: Window
    grouping: tuple[str, ...]
    number: int
    fetched_at: datetime
    body: bytes
    head: PageHead


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
    user_id: str | None = None
    user_email: str | None = None
    api_key_id: str | None = None
    quantity: msgspec.Raw = msgspec.Raw()
    quantity_unit: str | None = None


# So large that no row of a day has it (a quadrillion tokens, a petabyte), so small that thousands of them add
# up within the 64 bits of our columns.
_MOST_COUNTED = 10**15
Count = Annotated[int, msgspec.Meta(ge=-_MOST_COUNTED, le=_MOST_COUNTED)]


class UsageResult(msgspec.Struct, frozen=True, gc=False):
    """One row of any usage endpoint; a measure that the endpoint does not have is None."""

    project_id: str | None = None
    user_id: str | None = None
    api_key_id: str | None = None
    model: str | None = None
    batch: bool | None = None
    service_tier: str | None = None
    num_model_requests: Count | None = None
    num_requests: Count | None = None
    input_tokens: Count | None = None
    input_cached_tokens: Count | None = None
    input_uncached_tokens: Count | None = None
    input_cache_write_tokens: Count | None = None
    input_cache_write_30m_tokens: Count | None = None
    input_cache_write_12h_tokens: Count | None = None
    input_text_tokens: Count | None = None
    input_cached_text_tokens: Count | None = None
    output_tokens: Count | None = None
    output_text_tokens: Count | None = None
    input_audio_tokens: Count | None = None
    input_cached_audio_tokens: Count | None = None
    output_audio_tokens: Count | None = None
    input_image_tokens: Count | None = None
    input_cached_image_tokens: Count | None = None
    output_image_tokens: Count | None = None
    images: Count | None = None
    seconds: Count | None = None
    characters: Count | None = None
    usage_bytes: Count | None = None
    num_sessions: Count | None = None


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


class _UncheckedBucket(msgspec.Struct, gc=False):
    start_time: int
    results: msgspec.Raw


class _UncheckedPage(msgspec.Struct, gc=False):
    data: list[_UncheckedBucket]


_COST_DECODER = msgspec.json.Decoder(_CostPage)
_USAGE_DECODER = msgspec.json.Decoder(_UsagePage)
_UNCHECKED_DECODER = msgspec.json.Decoder(_UncheckedPage)
_RESULTS_DECODER = msgspec.json.Decoder(list[msgspec.Raw])

PageT = TypeVar("PageT", _CostPage, _UsagePage)


def decode_costs(body: bytes) -> _CostPage:
    """A page of the costs endpoint, its amounts not yet checked. Raises `UnreadableResponse`."""
    return _decode(_COST_DECODER, body)


@lru_cache
def _grain_of(group_by: tuple[str, ...]) -> Callable[[CostResult], object]:
    """What makes a row of costs one of its own: what they are grouped by. OpenAI may name more."""
    return operator.attrgetter(*group_by) if group_by else lambda _: None


def canonical_costs(group_by: tuple[str, ...], body: bytes) -> bytes:
    """A checked page of costs in the one form that SQL reads without losing a digit.

    Each amount and quantity becomes a string of a plain decimal with 18 places, each combination of what
    they are grouped by one row of a day. The page's amounts keep their exact sum, rounded once
    (`amounts.round_to_total`).
    """
    grain_of = _grain_of(group_by)
    days: list[int] = []
    grains: list[list[CostResult]] = []
    for bucket in decode_costs(body).data:
        of_day: dict[object, list[CostResult]] = {}
        for result in bucket.results:
            of_day.setdefault(grain_of(result), []).append(result)
        days += [bucket.start_time] * len(of_day)
        grains += of_day.values()
    amounts = round_to_total([_total(r.amount.value for r in grain if r.amount) for grain in grains])
    buckets: dict[int, list[dict[str, object]]] = {}
    for day, grain, amount in zip(days, grains, amounts, strict=True):
        row = msgspec.structs.asdict(grain[-1]) | {
            "amount": {"value": _text(amount)},
            "quantity": _text(*round_to_total([_total(result.quantity for result in grain)])),
        }
        buckets.setdefault(day, []).append(row)
    return msgspec.json.encode(
        {"data": [{"start_time": day, "results": rows} for day, rows in buckets.items()]}
    )


def pieces(body: bytes, most_bytes: int) -> Iterator[bytes]:
    """A checked page of costs or usage as several short ones: its results as they are, in their order, each
    under its day. One holds as many whole days as are `most_bytes` long together, or a part of a longer day,
    up to the result that makes it as long."""
    data: list[_UncheckedBucket] = []
    size = 0
    for bucket in _UNCHECKED_DECODER.decode(body).data:
        for results in _parts(bucket.results, most_bytes):
            length = memoryview(results).nbytes
            if data and size + length > most_bytes:
                yield msgspec.json.encode(_UncheckedPage(data))
                data, size = [], 0
            data.append(_UncheckedBucket(bucket.start_time, results))
            size += length
    if data:
        yield msgspec.json.encode(_UncheckedPage(data))


def _parts(results: msgspec.Raw, most_bytes: int) -> Iterator[msgspec.Raw]:
    """A day's list of results as it is, or as several where it is long."""
    if memoryview(results).nbytes <= most_bytes:
        yield results
        return
    part: list[msgspec.Raw] = []
    size = 0
    for result in _RESULTS_DECODER.decode(results):
        part.append(result)
        size += memoryview(result).nbytes
        if size >= most_bytes:
            yield msgspec.Raw(msgspec.json.encode(part))
            part, size = [], 0
    if part:
        yield msgspec.Raw(msgspec.json.encode(part))


def _text(value: Decimal | None) -> str | None:
    return None if value is None else format(value, "f")


def _total(numbers: Iterable[msgspec.Raw]) -> Decimal | None:
    """The exact sum of the numbers that are there; None if none is."""
    values = [value for number in numbers if (value := parse_amount(bytes(number))) is not None]
    return add_exactly(values) if values else None


def decode_usage(body: bytes) -> _UsagePage:
    """A page of any usage endpoint. Raises `UnreadableResponse` if it is not one."""
    return _decode(_USAGE_DECODER, body)


def check_page(endpoint: Endpoint, body: bytes) -> PageHead:
    """Whether the text is a whole, typed page of that endpoint.

    Each amount must be a decimal in a JSON string or number, or null, in US dollars. Raises
    `UnreadableResponse` with what is wrong.
    """
    check_text(body)
    if not endpoint.is_costs:
        used = decode_usage(body)
        return PageHead(used.has_more, used.next_page, [bucket.start_time for bucket in used.data])
    page = decode_costs(body)
    grain_of = _grain_of(endpoint.group_by)
    is_canonical = True
    line_items: set[str | None] = set()
    organization = None
    for bucket in page.data:
        # A first read asks for years, most of them before the organization.
        if not bucket.results:
            continue
        amounts = [result.amount for result in bucket.results if result.amount is not None]
        quantities = [result.quantity for result in bucket.results]
        values = [amount.value for amount in amounts]
        if not (_CANONICAL_AMOUNTS(b",".join(values)) and _CANONICAL_QUANTITIES(b",".join(quantities))):
            is_canonical = False
            for number in (*values, *quantities):
                _check_number(number)
        grains = set(map(grain_of, bucket.results))
        line_items.update(map(_LINE_ITEM, bucket.results))
        if len(grains) < len(bucket.results):
            is_canonical = False
        if {amount.currency for amount in amounts} - {CURRENCY, None}:
            _check_currencies(amounts)
        first = bucket.results[0]
        if first.organization_id:
            organization = (first.organization_id, first.organization_name)
    starts = [bucket.start_time for bucket in page.data]
    named = frozenset(text for text in line_items if text is not None)
    return PageHead(page.has_more, page.next_page, starts, is_canonical, named, organization)


def check_text(body: bytes) -> None:
    """Raises `UnreadableResponse` unless all of it is UTF-8: decoders pass over what they need not read."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError:
        raise UnreadableResponse("OpenAI's answer is not a text in UTF-8.") from None


def _check_currencies(amounts: list[Amount]) -> None:
    for amount in amounts:
        if amount.currency and amount.currency.lower() != CURRENCY:
            raise UnreadableResponse(
                f"OpenAI sent an amount in {_told(amount.currency)}; only US dollars are understood."
            )


def _check_number(raw: msgspec.Raw) -> None:
    try:
        parse_amount(bytes(raw))
    except AmountError as error:
        raise UnreadableResponse(
            f"OpenAI sent an amount or quantity that is none: {redact(str(error))}"
        ) from None


def _told(text: str) -> str:
    """What OpenAI sent, fit for a message: short, and without anything that looks like a key."""
    return repr(redact(text)[:60])


def _decode(decoder: msgspec.json.Decoder[PageT], body: bytes) -> PageT:
    try:
        page = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        said = redact(str(error))[:200]
        raise UnreadableResponse(f"OpenAI's answer is not a page of daily buckets: {said}.") from None
    if page.object != "page":
        raise UnreadableResponse(f"OpenAI's answer is a {_told(page.object)} where a page was asked for.")
    for bucket in page.data:
        if bucket.start_time % SECONDS_PER_DAY:
            raise UnreadableResponse(f"OpenAI sent a bucket that starts within a day ({bucket.start_time}).")
    return page
