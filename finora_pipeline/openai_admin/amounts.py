"""OpenAI's amount texts as exact decimals of our tables: `DECIMAL(38,18)`, never through a float.

The live API sends decimal128 text in a JSON string: 34 significant digits with trailing zeros, and zero as
`"0E-6176"`; older answers hold JSON numbers. Both are read from their own characters.

Our columns keep 18 decimals. OpenAI's own amounts are list price × quantity and end long before; should
an amount have more, the amounts of one day are rounded so that their sum is the day's exact sum rounded
once (`round_to_total`), not a sum of rounded parts.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc

SCALE = 18
PRECISION = 38
AMOUNT_TYPE = pa.decimal128(PRECISION, SCALE)
_UNIT = Decimal(1).scaleb(-SCALE)
_LIMIT = Decimal(10) ** (PRECISION - SCALE)
# Wide enough to add any number of 34-digit amounts of any exponent within our range without rounding.
_EXACT = Context(prec=6400, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999)


class AmountError(ValueError):
    """A text that is no finite decimal number within ±10^20."""


def parse_amount(raw: bytes) -> Decimal | None:
    """The exact value of an amount's JSON text (`1.5`, `"0E-6176"`), or None where there is none (`null`).

    Raises `AmountError` for anything that is no finite number or too large for our columns.
    """
    if raw in (b"", b"null"):
        return None
    text = raw.strip(b'"').decode("ascii", "replace")
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise AmountError(f"{text[:60]!r} is not a decimal number.") from None
    # Decimal also reads digits with underscores and blanks around them, which no amount has.
    if not value.is_finite() or not text.isprintable() or "_" in text or text != text.strip():
        raise AmountError(f"{text[:60]!r} is not a decimal number.")
    if abs(value) >= _LIMIT:
        raise AmountError(f"{text[:60]!r} is too large.")
    return value


def add_exactly(values: Iterable[Decimal]) -> Decimal:
    """The sum of amounts, without rounding."""
    total = Decimal(0)
    for value in values:
        # A zero with the exponent -6176 would drag thousands of digits through the sum.
        total = _EXACT.add(total, value or Decimal(0))
    return total


def amounts_to_arrow(raws: Sequence[bytes], days: Callable[[], Sequence[Hashable]]) -> pa.Array:
    """The JSON texts as `AMOUNT_TYPE`, null where there is no amount.

    `days()` names for each text the (user, day) whose sum must come out exact; it is asked only if an
    amount has more than 18 decimals. Texts are those that `parse_amount` takes.
    """
    texts = pc.utf8_trim(pa.array(raws, pa.binary()).cast(pa.string()), '"')  # type: ignore[attr-defined]
    texts = pc.if_else(pc.is_in(texts, pa.array(["", "null"])), None, texts)  # type: ignore[attr-defined]
    texts = pc.if_else(pc.equal(texts, "0E-6176"), "0", texts)  # type: ignore[attr-defined]
    plain = pc.match_substring_regex(texts, r"^-?\d+\.\d+$")  # type: ignore[attr-defined]
    texts = pc.if_else(plain, pc.utf8_rtrim(texts, "0"), texts)  # type: ignore[attr-defined]
    try:
        # Arrow's cast refuses to drop a digit, so that it is either exact or not done.
        return texts.cast(AMOUNT_TYPE)
    except pa.ArrowInvalid:
        values = [parse_amount(raw) for raw in raws]
        return pa.array(round_to_total(values, days()), AMOUNT_TYPE)


def round_to_total(values: Sequence[Decimal | None], groups: Sequence[Hashable]) -> list[Decimal | None]:
    """Each value at 18 decimals, such that every group sums to its exact sum rounded once (half to even).

    No value moves by more than 10^-18, and values of a group that needs no rounding stay as they are.
    """
    exact: dict[Hashable, Decimal] = {}
    rounded: dict[Hashable, Decimal] = {}
    result: list[Decimal | None] = []
    for value, group in zip(values, groups, strict=True):
        if value is None:
            result.append(None)
            continue
        total = add_exactly((exact.get(group, Decimal(0)), value))
        target = total.quantize(_UNIT, context=_EXACT)
        share = _EXACT.subtract(target, rounded.get(group, Decimal(0)))
        exact[group], rounded[group] = total, target
        result.append(share)
    return result
