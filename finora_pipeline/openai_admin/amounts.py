"""OpenAI's amounts as exact decimals for `DECIMAL(38,18)` columns, never through a float.

The live API sends decimal128 text in a JSON string: 34 significant digits with trailing zeros, and zero as
`"0E-6176"`; older answers have JSON numbers. Both are parsed from their characters.

Our columns keep 18 decimal places. OpenAI's text amounts are list price × quantity and have fewer; the JSON
numbers of older answers can have more. If an amount has more, the amounts of its page are rounded such that
their sum is the page's exact sum rounded once (`round_to_total`), not a sum of rounded parts.
"""

from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation

SCALE = 18
_UNIT = Decimal(1).scaleb(-SCALE)
# USD per row and day: a billion rows of this size still fit into DECIMAL(38,18).
MOST_USD = Decimal(10) ** 10
# Tokens, characters, seconds or bytes per row and day: a million such rows still fit into our columns.
MOST_QUANTITY = Decimal(10) ** 14
# Wide enough to add any number of 34-digit amounts with any exponent in our range without rounding.
_EXACT = Context(prec=6400, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999)


class AmountError(ValueError):
    """The text is not a finite decimal number, or the number is too large for our columns."""


def parse_amount(raw: bytes, most: Decimal = MOST_USD) -> Decimal | None:
    """The exact value of an amount's JSON text (`1.5`, `"0E-6176"`); None if empty or `null`.

    Raises `AmountError` for anything but a finite number below `most`.
    """
    if raw in (b"", b"null"):
        return None
    text = raw.strip(b'"').decode("ascii", "replace")
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise AmountError(f"{text[:60]!r} is not a decimal number.") from None
    # Decimal also accepts underscores and surrounding blanks, which no amount has.
    if not value.is_finite() or not text.isprintable() or "_" in text or text != text.strip():
        raise AmountError(f"{text[:60]!r} is not a decimal number.")
    # `abs` would round or overflow.
    if value.copy_abs() >= most:
        raise AmountError(f"{text[:60]!r} is too large.")
    return value


def parse_count(raw: bytes, most: int) -> int | None:
    """The whole number of a count's JSON text (`10`, `1e1`, `"10.0"`); None if empty or `null`.

    Raises `AmountError` for anything but a whole number within ±`most`.
    """
    value = parse_amount(raw, Decimal(most) + 1)
    if value is None:
        return None
    # Comparing works with an exponent of -6176; expanding it would be slow.
    if value and value != value.to_integral_value():
        raise AmountError(f"{raw[:60].decode('ascii', 'replace')} is not a whole number.")
    return int(value)


def add_exactly(values: Iterable[Decimal]) -> Decimal:
    """The exact sum of amounts, without rounding."""
    total = Decimal(0)
    for value in values:
        # A zero with the exponent -6176 would carry thousands of digits through the sum.
        total = _EXACT.add(total, value or Decimal(0))
    return total


def round_to_total(values: Sequence[Decimal | None]) -> list[Decimal | None]:
    """Round values to 18 decimals such that their sum is the exact sum rounded once.

    Rounds half to even. No value changes by more than 10^-18; if none needs rounding, none changes. None
    stays None.
    """
    exact = rounded = Decimal(0)
    result: list[Decimal | None] = []
    for value in values:
        if value is None:
            result.append(None)
            continue
        exact = add_exactly((exact, value))
        target = exact.quantize(_UNIT, context=_EXACT)
        result.append(_EXACT.subtract(target, rounded))
        rounded = target
    return result
