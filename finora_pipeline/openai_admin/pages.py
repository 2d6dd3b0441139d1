"""Checks and decodes pages of costs and usage.

1. Undocumented keys are not decoded (the live API sends several).
2. Numbers are parsed from OpenAI's text, never through a float. A count may be written `10`, `10.0`, `1e1` or
   `"10"`. A page is refused only for an amount that would lose a digit or has a foreign currency.
3. Any other value of an undocumented type costs only itself: a name becomes text, a count that is not whole
   becomes unknown, and `PageHead.left_out` lists it.
4. Names contain neither NULs nor lone surrogates, which DuckDB, Postgres and Parquet cannot store.
5. If an object has a key twice, the last value counts, in SQL too: SQL reads such a page, like every page
   that it would read otherwise than our decoder, in its `canonical` form.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec

from finora_pipeline.openai_admin.amounts import (
    MOST_QUANTITY,
    AmountError,
    add_exactly,
    parse_amount,
    round_to_total,
)
from finora_pipeline.openai_admin.endpoints import Endpoint, Listing
from finora_pipeline.openai_admin.errors import LossyValue, UnexpectedShape, UnreadableResponse, quoted
from finora_pipeline.openai_admin.json_text import (
    ROWS_PER_PAGE,
    check_rows,
    check_size,
    check_text,
    clean_text,
    repeats_a_key,
)
from finora_pipeline.openai_admin.lenient import PageT, Row, cost_of, decode_loosely, place_of, usage_of
from finora_pipeline.openai_admin.lists import canonical_list
from finora_pipeline.openai_admin.results import CURRENCY, Amount, CostPage, CostResult, UsagePage

SECONDS_PER_DAY = 86_400
LEFT_OUT_NAMED = 20

# Nearly all amounts and quantities of a day, joined by commas: decimal128 texts of at most 18 places plus
# zeros, and numbers that fit a double. Possessive, since backtracking would repeat for every amount.
_CANONICAL_AMOUNTS = re.compile(rb'(?:(?>"-?\d{1,10}+\.\d{1,18}+0*+"|"0E-6176"|null)?+(?:,|$))*+').fullmatch
_LINE_ITEM = operator.attrgetter("line_item")
_CANONICAL_QUANTITIES = re.compile(rb"(?:(?>-?\d{1,12}+(?:\.\d{1,3}+)?+|null)?+(?:,|$))*+").fullmatch


def unix_seconds(day: date) -> int:
    """The first second of a UTC day, in Unix seconds."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """Whole UTC days, `start` inclusive, `end` exclusive, like `start_time` and `end_time`."""

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end <= self.start:
            raise ValueError(f"The window from {self.start} to {self.end} has no day.")

    @property
    def last(self) -> date:
        """The last day of the window."""
        return self.end - timedelta(days=1)

    @property
    def days(self) -> int:
        """The number of days."""
        return (self.end - self.start).days

    def split(self, most_days: int) -> Iterator["Window"]:
        """Split into windows of at most `most_days`, the newest last."""
        start = self.start
        while start < self.end:
            end = min(start + timedelta(days=most_days), self.end)
            yield Window(start, end)
            start = end


@dataclass(frozen=True, slots=True)
class PageHead:
    """The facts that the check of a page found.

    `starts`: its days, in Unix seconds; `is_canonical`: SQL can read the body (else `canonical`);
    `line_items`: their distinct texts; `organization`: id and name; `left_out`: the first
    `LEFT_OUT_NAMED` values that were not understood, such as `data[2].results[0].images: 1.5`.
    """

    has_more: bool
    next_page: str | None
    starts: list[int]
    is_canonical: bool = True
    line_items: frozenset[str] = frozenset()
    organization: tuple[str, str | None] | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A page as received.

    `grouping`: the requested `group_by` values, or the project of a list; `number`: from 1 in its window;
    `fetched_at`: the UTC moment of the request; `body`: OpenAI's text, verbatim.
    """

    endpoint: Endpoint | Listing
    window: Window
    grouping: tuple[str, ...]
    number: int
    fetched_at: datetime
    body: bytes
    head: PageHead


class _UncheckedBucket(msgspec.Struct, gc=False):
    start_time: int
    results: msgspec.Raw


class _UncheckedPage(msgspec.Struct, gc=False):
    data: list[_UncheckedBucket]


_COST_DECODER = msgspec.json.Decoder(CostPage)
_USAGE_DECODER = msgspec.json.Decoder(UsagePage)
_UNCHECKED_DECODER = msgspec.json.Decoder(_UncheckedPage)
_RESULTS_DECODER = msgspec.json.Decoder(list[msgspec.Raw])


def decode_costs(body: bytes) -> CostPage:
    """Decode a page of costs without checking its amounts. Raises `UnreadableResponse`."""
    return _decode(_COST_DECODER, cost_of, clean_text(body))[0]


@lru_cache
def _grain_of(group_by: tuple[str, ...]) -> Callable[[CostResult], object]:
    """The key function that finds duplicate cost rows, by the requested dimensions only."""
    return operator.attrgetter(*group_by) if group_by else lambda _: None


def canonical_costs(group_by: tuple[str, ...], body: bytes) -> bytes:
    """A checked page of costs in a form that SQL reads without losing a digit.

    Amounts and quantities become strings of plain decimals with 18 places; duplicate rows of a day become
    one row. The sum of the page's amounts stays the exact sum, rounded once (`amounts.round_to_total`).
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
        row: dict[str, object] = {
            **msgspec.structs.asdict(grain[-1]),
            "amount": {"value": _text(amount)},
            "quantity": _text(*round_to_total([_quantities(result.quantity for result in grain)])),
        }
        buckets.setdefault(day, []).append(row)
    return msgspec.json.encode(
        {"data": [{"start_time": day, "results": rows} for day, rows in buckets.items()]}
    )


def pieces(body: bytes, most_bytes: int) -> Iterator[bytes]:
    """Split a checked page of costs or usage into short pages; results keep their order.

    A piece has as many whole days as fit into `most_bytes`, or a part of a longer day that ends with the
    result that reaches `most_bytes`.
    """
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
    """Split a day's list of results into parts of about `most_bytes`; a short list stays whole."""
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


def _total(amounts: Iterable[msgspec.Raw]) -> Decimal | None:
    """The exact sum of the known amounts; None without any."""
    values = [value for amount in amounts if (value := parse_amount(bytes(amount))) is not None]
    return add_exactly(values) if values else None


def _quantities(quantities: Iterable[msgspec.Raw]) -> Decimal | None:
    """The exact sum of the quantities that are understood; None without any."""
    values = [value for quantity in quantities if (value := _quantity(quantity)) is not None]
    return add_exactly(values) if values else None


def decode_usage(body: bytes) -> UsagePage:
    """Decode a page of any usage endpoint. Raises `UnreadableResponse`."""
    return _decode(_USAGE_DECODER, usage_of, clean_text(body))[0]


def canonical_usage(body: bytes) -> bytes:
    """A checked page of usage with plain counts and clean names, in a form that SQL can read."""
    return msgspec.json.encode({"data": decode_usage(body).data})


def canonical(page: Page) -> bytes | None:
    """The text that SQL reads in place of a page's body; None if SQL can read the body."""
    if page.head.is_canonical:
        return None
    if isinstance(page.endpoint, Listing):
        return canonical_list(page.body)
    return canonical_costs(page.grouping, page.body) if page.endpoint.is_costs else canonical_usage(page.body)


def check_page(endpoint: Endpoint, body: bytes, most_rows: int = ROWS_PER_PAGE) -> PageHead:
    """Check that the body is a complete page of the endpoint, with types as documented.

    Each amount must be a decimal in a JSON string or number, or null, in US dollars. Raises
    `UnreadableResponse` with the reason.
    """
    check_text(body)
    check_size(body, most_rows)
    text = clean_text(body)
    # Only escapes can hide a duplicate key, a NUL or half a surrogate pair from a search of the bytes.
    is_canonical = text is body and b"\\" not in body
    if endpoint.is_costs:
        return _check_costs(endpoint, body, text, most_rows, is_canonical)
    page, left_out, is_exact = _decode(_USAGE_DECODER, usage_of, text)
    rows = sum(len(bucket.results) for bucket in page.data)
    check_rows(rows, most_rows)
    is_canonical = is_canonical and is_exact and not repeats_a_key(body, rows)
    starts = [bucket.start_time for bucket in page.data]
    return PageHead(page.has_more, page.next_page, starts, is_canonical, left_out=left_out)


def _check_costs(
    endpoint: Endpoint, body: bytes, text: bytes, most_rows: int, is_canonical: bool
) -> PageHead:
    """Check a page of costs; `is_canonical` is False if escapes may hide something from SQL."""
    page, left_out, is_exact = _decode(_COST_DECODER, cost_of, text)
    rows = sum(len(bucket.results) for bucket in page.data)
    check_rows(rows, most_rows)
    is_canonical = is_canonical and is_exact
    money = 0
    grain_of = _grain_of(endpoint.group_by)
    line_items: set[str | None] = set()
    organization = None
    for day, bucket in enumerate(page.data):
        # A first fetch requests years, most of them before the organization existed.
        if not bucket.results:
            continue
        amounts = [result.amount for result in bucket.results if result.amount is not None]
        quantities = [result.quantity for result in bucket.results]
        values = [amount.value for amount in amounts]
        money += len(values)
        if not (_CANONICAL_AMOUNTS(b",".join(values)) and _CANONICAL_QUANTITIES(b",".join(quantities))):
            is_canonical = False
            _check_numbers(day, bucket.results)
            left_out += tuple(_odd_quantities(day, bucket.results))
        grains = set(map(grain_of, bucket.results))
        line_items.update(map(_LINE_ITEM, bucket.results))
        if len(grains) < len(bucket.results):
            is_canonical = False
        if {amount.currency for amount in amounts} - {CURRENCY, None}:
            _check_currencies(amounts)
        first = bucket.results[0]
        if first.organization_id:
            organization = (first.organization_id, first.organization_name)
    is_canonical = is_canonical and not repeats_a_key(body, rows, money)
    starts = [bucket.start_time for bucket in page.data]
    named = frozenset(text for text in line_items if text is not None)
    return PageHead(
        page.has_more, page.next_page, starts, is_canonical, named, organization, left_out[:LEFT_OUT_NAMED]
    )


def _check_currencies(amounts: list[Amount]) -> None:
    for amount in amounts:
        if amount.currency and amount.currency.lower() != CURRENCY:
            raise UnexpectedShape(
                f"OpenAI sent an amount in {quoted(amount.currency, 60)!r}; only US dollars are understood."
            )


def _check_numbers(day: int, results: list[CostResult]) -> None:
    """Raise `LossyValue` for an amount that cannot be stored exactly."""
    for number, result in enumerate(results):
        if result.amount is None:
            continue
        try:
            parse_amount(bytes(result.amount.value))
        except AmountError as error:
            raise LossyValue(
                f"OpenAI sent an amount that is not understood: {quoted(str(error)).rstrip('.')} "
                f"(data[{day}].results[{number}].amount.value)."
            ) from None


def _odd_quantities(day: int, results: list[CostResult]) -> Iterator[str]:
    for number, result in enumerate(results):
        if _quantity(result.quantity) is None and bytes(result.quantity) not in (b"", b"null"):
            yield place_of(day, number, "quantity", result.quantity)


def _quantity(raw: msgspec.Raw) -> Decimal | None:
    """A quantity, or None if it is missing or not understood."""
    try:
        return parse_amount(bytes(raw), MOST_QUANTITY)
    except AmountError:
        return None


def _decode(
    decoder: msgspec.json.Decoder[PageT], loosely: Callable[[Row], Any], body: bytes
) -> tuple[PageT, tuple[str, ...], bool]:
    """The page, its left out values, and whether all values had their documented types."""
    left_out: list[str] = []
    is_exact = True
    try:
        try:
            page = decoder.decode(body)
        except msgspec.ValidationError as error:
            page = decode_loosely(decoder, loosely, body, left_out, error)
            is_exact = False
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if body.lstrip()[:1] == b"<":
            raise UnreadableResponse(
                "OpenAI's answer is not a page of daily buckets but a web page: a proxy or firewall may have "
                "sent it."
            ) from None
        kind = UnexpectedShape if isinstance(error, msgspec.ValidationError) else UnreadableResponse
        raise kind(f"OpenAI's answer is not a page of daily buckets: {quoted(str(error))}.") from None
    if page.object != "page":
        raise UnexpectedShape(f"OpenAI's answer is a {quoted(page.object, 60)!r} instead of a page.")
    for bucket in page.data:
        if bucket.start_time % SECONDS_PER_DAY:
            raise UnexpectedShape(f"OpenAI sent a bucket that starts within a day ({bucket.start_time}).")
    return page, tuple(left_out[:LEFT_OUT_NAMED]), is_exact
