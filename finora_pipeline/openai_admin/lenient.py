"""Decodes pages with values of undocumented types, at the cost of only those values."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from finora_pipeline.openai_admin.amounts import AmountError, parse_count
from finora_pipeline.openai_admin.errors import LossyValue, quoted
from finora_pipeline.openai_admin.measures import MEASURES
from finora_pipeline.openai_admin.results import (
    MOST_COUNTED,
    Amount,
    CostPage,
    CostResult,
    UsageDimensions,
    UsagePage,
    UsageResult,
)

PageT = TypeVar("PageT", CostPage, UsagePage)
_LATEST = 253_402_300_799


class _LooseBucket(msgspec.Struct, gc=False):
    start_time: msgspec.Raw
    results: list[dict[str, msgspec.Raw]]


class _LoosePage(msgspec.Struct, gc=False):
    object: str
    data: list[_LooseBucket]
    has_more: bool
    next_page: str | None = None


_DECODER = msgspec.json.Decoder(_LoosePage)


def place_of(day: int, number: int, field: str, raw: msgspec.Raw) -> str:
    """The path of a value in its page, and the value, for a message."""
    return f"data[{day}].results[{number}].{field}: {quoted(bytes(raw).decode('utf-8', 'replace'), 40)}"


def decode_loosely(
    decoder: msgspec.json.Decoder[PageT],
    loosely: Callable[["Row"], Any],
    body: bytes,
    left_out: list[str],
    error: msgspec.ValidationError,
) -> PageT:
    """Decode a page value by value; values that are not understood are added to `left_out`.

    Raises `error` (the strict decoder's) for a bucket without a start, or another `msgspec.DecodeError`.
    """
    loose = _DECODER.decode(body)
    buckets: list[dict[str, Any]] = []
    for day, bucket in enumerate(loose.data):
        try:
            start = parse_count(bytes(bucket.start_time), _LATEST)
        except AmountError:
            start = None
        if start is None:
            raise error
        rows = [loosely(Row(day, number, row, left_out)) for number, row in enumerate(bucket.results)]
        buckets.append({"start_time": start, "results": rows})
    head = {"object": loose.object, "has_more": loose.has_more, "next_page": loose.next_page}
    return msgspec.convert(head | {"data": buckets}, decoder.type)


@dataclass(slots=True)
class Row:
    """One result with values of any type; `left_out` collects those that are not understood."""

    day: int
    number: int
    values: dict[str, msgspec.Raw]
    left_out: list[str]

    def text(self, field: str) -> str | None:
        """A name; a number or boolean becomes text as OpenAI wrote it."""
        raw = self.values.get(field)
        value = None if raw is None else _plain(raw)
        if value is None or isinstance(value, str):
            return value
        if isinstance(value, msgspec.Raw):
            return bytes(value).decode()
        return self._unknown(field)

    def flag(self, field: str) -> bool | None:
        """A boolean, also from text."""
        value = self.text(field)
        if value is None or value.lower() in ("true", "false"):
            return None if value is None else value.lower() == "true"
        return self._unknown(field)

    def count(self, field: str) -> int | None:
        """A whole number, in any spelling that `parse_count` knows."""
        try:
            return parse_count(bytes(self.values.get(field, b"")), MOST_COUNTED)
        except AmountError:
            return self._unknown(field)

    def raw(self, field: str) -> msgspec.Raw:
        """A value's JSON text; empty if it is missing."""
        return self.values.get(field, msgspec.Raw())

    def _unknown(self, field: str) -> None:
        self.left_out.append(place_of(self.day, self.number, field, self.values[field]))


def _plain(raw: msgspec.Raw) -> str | msgspec.Raw | list[Any] | None:
    """Text of a string, JSON of a number or boolean, None for null, [] for lists and objects."""
    first = bytes(raw)[:1]
    if first == b'"':
        return msgspec.json.decode(raw, type=str)
    if first in (b"{", b"["):
        return []
    return None if bytes(raw) == b"null" else raw


def cost_of(row: Row) -> CostResult:
    """A row of costs. Raises `LossyValue` for an amount that is not understood."""
    names: dict[str, Any] = {name: row.text(name) for name in _COST_NAMES}
    amount = row.raw("amount")
    if bytes(amount) in (b"", b"null"):
        return CostResult(quantity=row.raw("quantity"), **names)
    try:
        money = msgspec.json.decode(amount, type=Amount)
    except msgspec.ValidationError as error:
        raise LossyValue(
            f"OpenAI sent an amount that is not understood: {quoted(str(error))} "
            f"(data[{row.day}].results[{row.number}].amount)."
        ) from None
    return CostResult(amount=money, quantity=row.raw("quantity"), **names)


def usage_of(row: Row) -> UsageResult:
    """A row of usage."""
    names: dict[str, Any] = {name: row.text(name) for name in _USAGE_NAMES}
    counts: dict[str, Any] = {name: row.count(name) for name in _USAGE_COUNTS}
    return UsageResult(batch=row.flag("batch"), **names, **counts)


_COST_NAMES = tuple(f for f in CostResult.__struct_fields__ if f not in ("amount", "quantity"))
_USAGE_NAMES = tuple(f for f in UsageDimensions.__struct_fields__ if f != "batch")
_USAGE_COUNTS = tuple(measure.field for measure in MEASURES)
