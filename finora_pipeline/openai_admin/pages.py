"""A page of costs or usage: its documented shape, checked and typed, and the window it was asked for.

1. Undocumented keys are not decoded (the live API sends several).
2. Numbers stay the text OpenAI sent: no float is ever made of them. A count may be written `10`, `10.0`,
   `1e1` or `"10"`. Only an amount that would lose a digit, or of a foreign currency, refuses its page.
3. Whatever else has another type than documented costs only itself: a name becomes text, a count that is not
   whole becomes unknown, and `PageHead.left_out` says where.
4. Names hold neither NULs nor lone surrogates, which neither DuckDB, Postgres nor Parquet can keep.
5. Of a key that an object has twice the last counts, for SQL as well: such a page is read in its `canonical`
   form, like every page that SQL would read otherwise than we do.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec

from finora_pipeline.openai_admin.amounts import (
    MOST_QUANTITY,
    AmountError,
    add_exactly,
    parse_amount,
    parse_count,
    round_to_total,
)
from finora_pipeline.openai_admin.endpoints import Endpoint, Listing
from finora_pipeline.openai_admin.errors import (
    AnswerTooLarge,
    LossyValue,
    UnexpectedShape,
    UnreadableResponse,
    quoted,
)

SECONDS_PER_DAY = 86_400
CURRENCY = "usd"
# Results that one page may have; a setting of the client may allow others.
ROWS_PER_PAGE = 200_000
LEFT_OUT_NAMED = 20
_LATEST = 253_402_300_799
# Escapes that stand for no text: a NUL, and half of a character beyond U+FFFF without its other half.
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])").search
_ESCAPES = re.compile(
    rb"(?P<kept>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\(?!u(?:0000|[dD][89a-fA-F])).)|\\u[0-9a-fA-F]{4}",
    re.DOTALL,
)
# What nearly all amounts and quantities of a day look like, joined by commas: a decimal128 text with at most
# 18 places before its trailing zeros, and a number that a double holds.
# Possessive throughout: a pattern that may go back would do so for every amount before an odd one.
_CANONICAL_AMOUNTS = re.compile(rb'(?:(?>"-?\d{1,10}+\.\d{1,18}+0*+"|"0E-6176"|null)?+(?:,|$))*+').fullmatch
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
    read it as it stands (`canonical` otherwise), the line items it names, and id and name of the organization
    whose costs they are. `left_out` names values that could not be understood, such as
    `data[2].results[0].images: 1.5`, the first few of them."""

    has_more: bool
    next_page: str | None
    starts: list[int]
    is_canonical: bool = True
    line_items: frozenset[str] = frozenset()
    organization: tuple[str, str | None] | None = None
    left_out: tuple[str, ...] = ()


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


class UsageResult(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
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
    results: list[CostResult]


class UsageBucket(msgspec.Struct, frozen=True, gc=False):
    """One UTC day of usage."""

    start_time: int
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


class _LooseBucket(msgspec.Struct, gc=False):
    start_time: msgspec.Raw
    results: list[dict[str, msgspec.Raw]]


class _LoosePage(msgspec.Struct, gc=False):
    object: str
    data: list[_LooseBucket]
    has_more: bool
    next_page: str | None = None


class _ListPage(msgspec.Struct, gc=False):
    data: list[msgspec.Raw]
    has_more: bool = False
    last_id: str | None = None


class _UncheckedBucket(msgspec.Struct, gc=False):
    start_time: int
    results: msgspec.Raw


class _UncheckedPage(msgspec.Struct, gc=False):
    data: list[_UncheckedBucket]


_COST_DECODER = msgspec.json.Decoder(_CostPage)
_USAGE_DECODER = msgspec.json.Decoder(_UsagePage)
_LIST_DECODER = msgspec.json.Decoder(_ListPage)
_LOOSE_DECODER = msgspec.json.Decoder(_LoosePage)
_UNCHECKED_DECODER = msgspec.json.Decoder(_UncheckedPage)
_RESULTS_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_KEYS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEYS_OF_EACH = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])

PageT = TypeVar("PageT", _CostPage, _UsagePage)


def decode_costs(body: bytes) -> _CostPage:
    """A page of the costs endpoint, its amounts not yet checked. Raises `UnreadableResponse`."""
    return _decode(_COST_DECODER, _loose_cost, clean_text(body))[0]


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
            "quantity": _text(*round_to_total([_quantities(result.quantity for result in grain)])),
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


def _total(amounts: Iterable[msgspec.Raw]) -> Decimal | None:
    """The exact sum of the amounts that are there; None without any."""
    values = [value for amount in amounts if (value := parse_amount(bytes(amount))) is not None]
    return add_exactly(values) if values else None


def _quantities(quantities: Iterable[msgspec.Raw]) -> Decimal | None:
    """The exact sum of the quantities that are understood; None without any."""
    values = [value for quantity in quantities if (value := _quantity(quantity)) is not None]
    return add_exactly(values) if values else None


def decode_usage(body: bytes) -> _UsagePage:
    """A page of any usage endpoint. Raises `UnreadableResponse` if it is not one."""
    return _decode(_USAGE_DECODER, _loose_usage, clean_text(body))[0]


def canonical_usage(body: bytes) -> bytes:
    """A checked page of usage in the one form that SQL reads as we do: plain counts, clean names."""
    return msgspec.json.encode({"data": decode_usage(body).data})


def canonical_list(body: bytes) -> bytes:
    """A checked page of a list in the one form that SQL reads as we do: only objects with an id."""
    return msgspec.json.encode({"data": [item for item in _objects(body) if item]})


def canonical(page: Page) -> bytes | None:
    """The text that SQL reads in place of a page's body; None where it reads the body itself."""
    if page.head.is_canonical:
        return None
    if isinstance(page.endpoint, Listing):
        return canonical_list(page.body)
    return canonical_costs(page.grouping, page.body) if page.endpoint.is_costs else canonical_usage(page.body)


def check_page(endpoint: Endpoint, body: bytes, most_rows: int = ROWS_PER_PAGE) -> PageHead:
    """Whether the text is a whole, typed page of that endpoint.

    Each amount must be a decimal in a JSON string or number, or null, in US dollars. Raises
    `UnreadableResponse` with what is wrong.
    """
    check_text(body)
    check_size(body, most_rows)
    text = clean_text(body)
    # Only an escape can hide a key's second spelling, a NUL or half a character from a search of the bytes.
    is_canonical = text is body and b"\\" not in body
    if not endpoint.is_costs:
        used, left_out, is_exact = _decode(_USAGE_DECODER, _loose_usage, text)
        rows = sum(len(bucket.results) for bucket in used.data)
        check_rows(rows, most_rows)
        is_canonical = is_canonical and is_exact and not _repeats_a_key(body, rows)
        starts = [bucket.start_time for bucket in used.data]
        return PageHead(used.has_more, used.next_page, starts, is_canonical, left_out=left_out)
    page, left_out, is_exact = _decode(_COST_DECODER, _loose_cost, text)
    rows = sum(len(bucket.results) for bucket in page.data)
    check_rows(rows, most_rows)
    is_canonical = is_canonical and is_exact
    money = 0
    grain_of = _grain_of(endpoint.group_by)
    line_items: set[str | None] = set()
    organization = None
    for day, bucket in enumerate(page.data):
        # A first read asks for years, most of them before the organization.
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
    is_canonical = is_canonical and not _repeats_a_key(body, rows, money)
    starts = [bucket.start_time for bucket in page.data]
    named = frozenset(text for text in line_items if text is not None)
    return PageHead(
        page.has_more, page.next_page, starts, is_canonical, named, organization, left_out[:LEFT_OUT_NAMED]
    )


def check_text(body: bytes) -> None:
    """Raises `UnreadableResponse` unless all of it is UTF-8: decoders pass over what they need not read."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError:
        raise UnreadableResponse("OpenAI's answer is not a text in UTF-8.") from None


class ObjectList(msgspec.Struct, frozen=True):
    """A checked page of a directory list: the ids of its objects, and whether and where it goes on."""

    ids: list[str]
    has_more: bool
    after: str | None
    is_canonical: bool


def check_list(body: bytes, most_rows: int = ROWS_PER_PAGE) -> ObjectList:
    """What a page of a directory list holds. Raises `UnreadableResponse` for what is no list.

    An object without an id is passed over: nothing could refer to it.
    """
    check_text(body)
    check_size(body, most_rows)
    try:
        head = _LIST_DECODER.decode(clean_text(body))
        objects = _objects(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kind = UnexpectedShape if isinstance(error, msgspec.ValidationError) else UnreadableResponse
        raise kind(f"OpenAI's answer is not a list of objects: {quoted(str(error))}.") from None
    check_rows(len(objects), most_rows)
    ids = [item["id"] for item in objects if item]
    again = msgspec.json.encode(msgspec.json.decode(clean_text(body)))
    is_canonical = len(ids) == len(objects) and b"\\" not in body and again.count(b'":') == body.count(b'":')
    return ObjectList(ids, head.has_more, head.last_id or (ids[-1] if ids else None), is_canonical)


def _objects(body: bytes) -> list[dict[str, Any]]:
    """The objects of a list with their ids as text; an empty one for what has no id."""
    found: list[dict[str, Any]] = []
    for item in _LIST_DECODER.decode(clean_text(body)).data:
        fields = msgspec.json.decode(item)
        known = fields.get("id") if isinstance(fields, dict) else None
        is_id = isinstance(known, str | int) and not isinstance(known, bool) and known != ""
        found.append(fields | {"id": str(known)} if is_id else {})
    return found


def clean_text(body: bytes) -> bytes:
    """The text with each escape of a NUL or of half a character as the replacement character: the body itself
    where it has none. Such escapes are legal JSON, and no text that could be stored."""
    if b"\\" not in body or not _UNSTORABLE(body):
        return body
    return _ESCAPES.sub(lambda found: found[0] if found["kept"] else rb"\ufffd", body)


def check_size(body: bytes, most_rows: int) -> None:
    """Raises `AnswerTooLarge` for a text with so many objects that decoding them would take too much memory.

    A row is one object or two; what holds several times more is nothing that OpenAI documents.
    """
    most = 4 * most_rows + 10_000
    if len(body) > 2 * most and body.count(b"{") > most:
        raise AnswerTooLarge(f"OpenAI sent a page of more than {most_rows:,} rows; none of it was used.")


def check_rows(rows: int, most_rows: int) -> None:
    """Raises `AnswerTooLarge` for a page of more rows than one may have."""
    if rows > most_rows:
        raise AnswerTooLarge(f"OpenAI sent a page of {rows:,} rows, over the limit of {most_rows:,}.")


def _repeats_a_key(body: bytes, rows: int, amounts: int | None = None) -> bool:
    """Whether an object may have a key twice: SQL would take the first, we the last.

    Rows of one page mostly have the same keys, so that their number follows from the first row; where it is
    another, all are counted. Money is not taken on the trust that rows are alike.
    """
    keys = body.count(b'":')
    are_alike = keys == _keys_if_alike(body, rows)
    if are_alike and (amounts is None or amounts == body.count(b'"amount"') == body.count(b'"value"')):
        return False
    return keys != _keys_within(msgspec.json.decode(body))


def _keys_if_alike(body: bytes, rows: int) -> int:
    page = _KEYS_DECODER.decode(body)
    buckets = _KEYS_OF_EACH.decode(page["data"])
    first = next((bucket["results"] for bucket in buckets if bytes(bucket["results"]) != b"[]"), None)
    of_row = _keys_within(msgspec.json.decode(_RESULTS_DECODER.decode(first)[0])) if first and rows else 0
    return len(page) + sum(map(len, buckets)) + rows * of_row


def _keys_within(value: Any) -> int:
    """How many keys a decoded value has, at any depth."""
    if isinstance(value, dict):
        return len(value) + sum(_keys_within(v) for v in value.values() if isinstance(v, dict | list))
    return sum(map(_keys_within, value)) if isinstance(value, list) else 0


def _check_currencies(amounts: list[Amount]) -> None:
    for amount in amounts:
        if amount.currency and amount.currency.lower() != CURRENCY:
            raise UnexpectedShape(
                f"OpenAI sent an amount in {quoted(amount.currency, 60)!r}; only US dollars are understood."
            )


def _check_numbers(day: int, results: list[CostResult]) -> None:
    """Raises `LossyValue` for an amount that cannot be kept."""
    for number, result in enumerate(results):
        if result.amount is None:
            continue
        try:
            parse_amount(bytes(result.amount.value))
        except AmountError as error:
            raise LossyValue(
                f"OpenAI sent an amount that is none: {quoted(str(error)).rstrip('.')} "
                f"(data[{day}].results[{number}].amount.value)."
            ) from None


def _odd_quantities(day: int, results: list[CostResult]) -> Iterator[str]:
    for number, result in enumerate(results):
        if _quantity(result.quantity) is None and bytes(result.quantity) not in (b"", b"null"):
            yield _place(day, number, "quantity", result.quantity)


def _quantity(raw: msgspec.Raw) -> Decimal | None:
    """A quantity, or None where there is none or none that can be understood."""
    try:
        return parse_amount(bytes(raw), MOST_QUANTITY)
    except AmountError:
        return None


def _place(day: int, number: int, field: str, raw: msgspec.Raw) -> str:
    return f"data[{day}].results[{number}].{field}: {quoted(bytes(raw).decode('utf-8', 'replace'), 40)}"


def _decode(
    decoder: msgspec.json.Decoder[PageT], loosely: Callable[["_Row"], Any], body: bytes
) -> tuple[PageT, tuple[str, ...], bool]:
    """The page, what was left out of it, and whether all was of its documented type."""
    left_out: list[str] = []
    is_exact = True
    try:
        try:
            page = decoder.decode(body)
        except msgspec.ValidationError as error:
            page = _decode_loosely(decoder, loosely, body, left_out, error)
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
        raise UnexpectedShape(f"OpenAI's answer is a {quoted(page.object, 60)!r} where a page was asked for.")
    for bucket in page.data:
        if bucket.start_time % SECONDS_PER_DAY:
            raise UnexpectedShape(f"OpenAI sent a bucket that starts within a day ({bucket.start_time}).")
    return page, tuple(left_out[:LEFT_OUT_NAMED]), is_exact


def _decode_loosely(
    decoder: msgspec.json.Decoder[PageT],
    loosely: Callable[["_Row"], Any],
    body: bytes,
    left_out: list[str],
    error: msgspec.ValidationError,
) -> PageT:
    """A page some of whose values have another type than documented. Raises `msgspec.DecodeError`."""
    loose = _LOOSE_DECODER.decode(body)
    buckets: list[dict[str, Any]] = []
    for day, bucket in enumerate(loose.data):
        try:
            start = parse_count(bytes(bucket.start_time), _LATEST)
        except AmountError:
            start = None
        if start is None:
            raise error
        rows = [loosely(_Row(day, number, row, left_out)) for number, row in enumerate(bucket.results)]
        buckets.append({"start_time": start, "results": rows})
    head = {"object": loose.object, "has_more": loose.has_more, "next_page": loose.next_page}
    return msgspec.convert(head | {"data": buckets}, decoder.type)


@dataclass(slots=True)
class _Row:
    """One result with values of any type, and where what is not understood is named."""

    day: int
    number: int
    values: dict[str, msgspec.Raw]
    left_out: list[str]

    def text(self, field: str) -> str | None:
        """A name: a number or boolean as it is written."""
        raw = self.values.get(field)
        value = None if raw is None else _plain(raw)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, msgspec.Raw):
            return bytes(value).decode()
        return self._unknown(field)

    def flag(self, field: str) -> bool | None:
        value = self.text(field)
        if value is None or value.lower() in ("true", "false"):
            return None if value is None else value.lower() == "true"
        return self._unknown(field)

    def count(self, field: str) -> int | None:
        try:
            return parse_count(bytes(self.values.get(field, b"")), _MOST_COUNTED)
        except AmountError:
            return self._unknown(field)

    def raw(self, field: str) -> msgspec.Raw:
        return self.values.get(field, msgspec.Raw())

    def _unknown(self, field: str) -> None:
        self.left_out.append(_place(self.day, self.number, field, self.values[field]))


def _plain(raw: msgspec.Raw) -> str | msgspec.Raw | list[Any] | None:
    """A JSON string as text, a number or boolean as its own characters, None for null; a list stands for
    everything that is composed."""
    first = bytes(raw)[:1]
    if first == b'"':
        return msgspec.json.decode(raw, type=str)
    if first in (b"{", b"["):
        return []
    return None if bytes(raw) == b"null" else raw


def _loose_cost(row: _Row) -> CostResult:
    names: dict[str, Any] = {name: row.text(name) for name in _COST_NAMES}
    amount = row.raw("amount")
    if bytes(amount) in (b"", b"null"):
        return CostResult(quantity=row.raw("quantity"), **names)
    try:
        money = msgspec.json.decode(amount, type=Amount)
    except msgspec.ValidationError as error:
        raise LossyValue(
            f"OpenAI sent an amount that is none: {quoted(str(error))} "
            f"(data[{row.day}].results[{row.number}].amount)."
        ) from None
    return CostResult(amount=money, quantity=row.raw("quantity"), **names)


def _loose_usage(row: _Row) -> UsageResult:
    names: dict[str, Any] = {name: row.text(name) for name in _USAGE_NAMES}
    counts: dict[str, Any] = {name: row.count(name) for name in _USAGE_COUNTS}
    return UsageResult(batch=row.flag("batch"), **names, **counts)


_COST_NAMES = tuple(f for f in CostResult.__struct_fields__ if f not in ("amount", "quantity"))
_USAGE_NAMES = ("project_id", "user_id", "api_key_id", "model", "service_tier")
_USAGE_COUNTS = tuple(f for f in UsageResult.__struct_fields__ if f not in (*_USAGE_NAMES, "batch"))
