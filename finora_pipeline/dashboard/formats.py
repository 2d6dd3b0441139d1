"""Figures as a person reads them: rounded; what they round stands in the titles of the page, exact."""

from datetime import datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal

# Adds up any amounts of DECIMAL(38, 18) without rounding.
_EXACT = Context(prec=76)
_SMALLEST = Decimal("1e-18")
_UNITS = ((Decimal(10) ** 12, "T"), (Decimal(10) ** 9, "B"), (Decimal(10) ** 6, "M"), (Decimal(10) ** 3, "K"))


def total(amounts: "list[Decimal | None]") -> Decimal:
    """The exact sum."""
    added = Decimal(0)
    for amount in amounts:
        if amount is not None:
            added = _EXACT.add(added, amount)
    return added


def minus(left: Decimal, right: Decimal) -> Decimal:
    """The exact difference."""
    return _EXACT.subtract(left, right)


def ratio(part: Decimal | int | None, whole: Decimal | int | None, per: int = 1) -> Decimal | None:
    """part × per ÷ whole, cut after the 18th decimal as in user_metrics; None without a denominator."""
    if part is None or not whole or whole < 0:
        return None
    quotient = _EXACT.divide(_EXACT.multiply(Decimal(part), Decimal(per)), Decimal(whole))
    return quotient.quantize(_SMALLEST, ROUND_DOWN, _EXACT)


def usd(amount: Decimal | None) -> str:
    """To the cent from one cent up; below, to three digits that count."""
    if amount is None:
        return "–"
    size = abs(amount)
    sign = "−" if amount < 0 else ""
    if size == 0 or size >= Decimal("0.01"):
        return f"{sign}${size.quantize(Decimal('0.01'), ROUND_HALF_UP, _EXACT):,f}"
    rounded = Context(prec=3, rounding=ROUND_HALF_UP).plus(size)
    return f"{sign}${rounded:f}"


def price(amount: Decimal | None) -> str:
    """A price, to four digits that count and at least to the cent."""
    if amount is None:
        return "–"
    if abs(amount) >= 10:
        return usd(amount)
    rounded = Context(prec=4, rounding=ROUND_HALF_UP).plus(abs(amount)).normalize()
    whole, _, fraction = f"{rounded:f}".partition(".")
    return f"{'−' if amount < 0 else ''}${whole}.{fraction:0<2}"


def exact(amount: Decimal | None) -> str:
    """All digits that count."""
    if amount is None:
        return ""
    whole, _, fraction = f"{amount:f}".partition(".")
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def count(number: int | Decimal | None) -> str:
    """Tokens and the like, to three digits that count: 1.24M."""
    if number is None:
        return "–"
    value = Decimal(number)
    three = Context(prec=3, rounding=ROUND_HALF_UP)
    for unit, letter in _UNITS:
        if abs(three.plus(value)) >= unit:
            return f"{three.divide(value, unit):f}{letter}"
    return f"{value.quantize(Decimal(1), ROUND_HALF_UP):f}"


def percent(share: Decimal | None, signed: bool = False) -> str:
    """A share or a change with one decimal, none from ten times up."""
    if share is None:
        return "–"
    hundredfold = _EXACT.multiply(share, Decimal(100))
    digits = Decimal(1) if abs(hundredfold) >= 1000 else Decimal("0.1")
    rounded = hundredfold.quantize(digits, ROUND_HALF_UP, _EXACT)
    sign = "−" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):,f} %"


def duration(span: timedelta) -> str:
    """How long, in the largest unit that fits: 7 min, 3 h, 2 days."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 60:
        return "less than a minute"
    for size, unit in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if seconds >= size * (2 if unit == "day" else 1):
            number = seconds // size
            return f"{number} {unit}s" if unit == "day" else f"{number} {unit}"
    return "a moment"


def moment(at: datetime | None) -> str:
    """A moment in UTC."""
    return f"{at:%Y-%m-%d %H:%M} UTC" if at else "–"
