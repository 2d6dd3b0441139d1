"""OpenAI's amount texts as exact decimals of our tables: `DECIMAL(38,18)`, never through a float.

The live API sends decimal128 text in a JSON string: 34 significant digits with trailing zeros, and zero as
`"0E-6176"`; older answers hold JSON numbers. Both are read from their own characters.

Our columns keep 18 decimals. OpenAI's text amounts are list price × quantity and end before that; the JSON
numbers of older answers do not. Where an amount has more, the amounts of its page are rounded so that they
add up to the page's exact sum, rounded once (`round_to_total`), and not to a sum of rounded parts.
"""

from collections.abc import Iterable, Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation

SCALE = 18
_UNIT = Decimal(1).scaleb(-SCALE)
# No row of a day costs ten billion dollars, and a billion such rows add up within DECIMAL(38,18).
MOST_USD = Decimal(10) ** 10
# Tokens, characters, seconds or bytes of a row of a day; a million such rows add up within our columns.
MOST_QUANTITY = Decimal(10) ** 14
# Wide enough to add any number of 34-digit amounts of any exponent within our range without rounding.
_EXACT = Context(prec=6400, rounding=ROUND_HALF_EVEN, Emin=-999_999, Emax=999_999)


class AmountError(ValueError):
    """A text that is not a finite decimal number, or a number too large for our columns."""


def parse_amount(raw: bytes, most: Decimal = MOST_USD) -> Decimal | None:
    """The exact value of an amount's JSON text (`1.5`, `"0E-6176"`), or None where there is none (`null`).

    Raises `AmountError` for anything but a finite number below `most`.
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
    # Unlike `abs`, this neither rounds nor overflows.
    if value.copy_abs() >= most:
        raise AmountError(f"{text[:60]!r} is too large.")
    return value


def parse_count(raw: bytes, most: int) -> int | None:
    """The whole number of a count's JSON text (`10`, `10.0`, `1e1`, `"10"`), or None where there is none.

    Raises `AmountError` for anything but a whole number within ±`most`.
    """
    value = parse_amount(raw, Decimal(most) + 1)
    if value is None:
        return None
    # An exponent of -6176 costs nothing to compare and much to expand.
    if value and value != value.to_integral_value():
        raise AmountError(f"{raw[:60].decode('ascii', 'replace')} is not a whole number.")
    return int(value)


def add_exactly(values: Iterable[Decimal]) -> Decimal:
    """The sum of amounts, without rounding."""
    total = Decimal(0)
    for value in values:
        # A zero with the exponent -6176 would drag thousands of digits through the sum.
        total = _EXACT.add(total, value or Decimal(0))
    return total


def round_to_total(values: Sequence[Decimal | None]) -> list[Decimal | None]:
    """Each value at 18 decimals, such that they sum to their exact sum rounded once (half to even).

    No value moves by more than 10^-18, and values that need no rounding stay as they are if all do.
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
