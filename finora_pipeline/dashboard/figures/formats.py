"""Figures, dates and spans of time as the pages show them: American, rounded.

Exact amounts are in the title attributes of the page. A missing figure is a dash.
"""

from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_UP, Context, Decimal

# Enough digits for any sum of DECIMAL(38, 18) without rounding.
_EXACT = Context(prec=76)
_SMALLEST = Decimal("1e-18")
# Formats that templates call.
IN_TEMPLATES = (
    "usd",
    "price",
    "exact",
    "count",
    "percent",
    "moment",
    "day",
    "day_range",
    "interval",
    "history",
)
_UNITS = ((Decimal(10) ** 12, "T"), (Decimal(10) ** 9, "B"), (Decimal(10) ** 6, "M"), (Decimal(10) ** 3, "K"))


def total(amounts: "list[Decimal | None]") -> Decimal:
    """The exact sum; None counts as zero."""
    added = Decimal(0)
    for amount in amounts:
        if amount is not None:
            added = _EXACT.add(added, amount)
    return added


def ratio(part: Decimal | int | None, whole: Decimal | int | None, per: int = 1) -> Decimal | None:
    """part × per ÷ whole, cut after the 18th decimal as in user_metrics.

    None unless `whole` is above zero.
    """
    if part is None or not whole or whole < 0:
        return None
    quotient = _EXACT.divide(_EXACT.multiply(Decimal(part), Decimal(per)), Decimal(whole))
    return quotient.quantize(_SMALLEST, ROUND_DOWN, _EXACT)


def usd(amount: Decimal | None) -> str:
    """USD to the cent; amounts below one cent to three significant digits."""
    if amount is None:
        return "–"
    size = abs(amount)
    sign = "−" if amount < 0 else ""
    if size == 0 or size >= Decimal("0.01"):
        return f"{sign}${size.quantize(Decimal('0.01'), ROUND_HALF_UP, _EXACT):,f}"
    rounded = Context(prec=3, rounding=ROUND_HALF_UP).plus(size)
    return f"{sign}${rounded:f}"


def axis_usd(amount: Decimal | None) -> str:
    """USD of an axis: without cents from $10 up, in thousands and more with a letter."""
    if amount is None or abs(amount) < 10:
        return usd(amount)
    return f"{'−' if amount < 0 else ''}${count(abs(amount))}"


def price(amount: Decimal | None) -> str:
    """A price in USD to four significant digits, and at least to the cent."""
    if amount is None:
        return "–"
    if abs(amount) >= 10:
        return usd(amount)
    rounded = Context(prec=4, rounding=ROUND_HALF_UP).plus(abs(amount)).normalize()
    whole, _, fraction = f"{rounded:f}".partition(".")
    return f"{'−' if amount < 0 else ''}${whole}.{fraction:0<2}"


def exact(amount: Decimal | None) -> str:
    """All significant digits, without thousands separators."""
    if amount is None:
        return ""
    whole, _, fraction = f"{amount:f}".partition(".")
    fraction = fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def count(number: int | Decimal | None) -> str:
    """A number of tokens to three significant digits: 1.24M."""
    if number is None:
        return "–"
    value = Decimal(number)
    three = Context(prec=3, rounding=ROUND_HALF_UP)
    for unit, letter in _UNITS:
        if abs(three.plus(value)) >= unit:
            return f"{three.divide(value, unit):f}{letter}"
    return f"{value.quantize(Decimal(1), ROUND_HALF_UP):f}"


def percent(share: Decimal | None, signed: bool = False) -> str:
    """A share or change in percent with one decimal, without decimals from 1,000% up."""
    if share is None:
        return "–"
    hundredfold = _EXACT.multiply(share, Decimal(100))
    digits = Decimal(1) if abs(hundredfold) >= 1000 else Decimal("0.1")
    rounded = hundredfold.quantize(digits, ROUND_HALF_UP, _EXACT)
    sign = "−" if rounded < 0 else "+" if signed and rounded > 0 else ""
    return f"{sign}{abs(rounded):,f}%"


def points(change: Decimal | None) -> str:
    """The difference of two shares in points with one decimal: +1.0 points."""
    if change is None:
        return "–"
    rounded = _EXACT.multiply(change, Decimal(100)).quantize(Decimal("0.1"), ROUND_HALF_UP, _EXACT)
    sign = "−" if rounded < 0 else "+" if rounded > 0 else ""
    return f"{sign}{abs(rounded):,f} points"


def duration(span: timedelta) -> str:
    """A span of time in the largest unit that fits: 7 min, 3 h, 2 days."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 60:
        return "less than a minute"
    for size, unit in ((86_400, "day"), (3_600, "h"), (60, "min")):
        if seconds >= size * (2 if unit == "day" else 1):
            number = seconds // size
            return f"{number} {unit}s" if unit == "day" else f"{number} {unit}"
    return "a moment"


def moment(at: datetime | None) -> str:
    """A moment in UTC, with the year unless it is the current one: Nov 27, 22:12 UTC."""
    if at is None:
        return "–"
    at = at.astimezone(UTC)
    at_day = short_day(at) if at.year == datetime.now(UTC).year else day(at)
    return f"{at_day}, {at:%H:%M} UTC"


def short_day(at: date) -> str:
    """A day without its year: Nov 27."""
    return f"{at:%b} {at.day}"


def day(at: date) -> str:
    """A day: Nov 27, 2026."""
    return f"{short_day(at)}, {at.year}"


def day_range(first: date, last: date, *, with_year: bool = True) -> str:
    """Days from the first to the last: Nov 1–26, 2026."""
    year = f", {last.year}" if with_year else ""
    if first == last:
        return f"{short_day(first)}{year}"
    if (first.year, first.month) == (last.year, last.month):
        return f"{short_day(first)}–{last.day}{year}"
    start = day(first) if with_year and first.year != last.year else short_day(first)
    return f"{start} – {short_day(last)}{year}"


def interval(span: timedelta) -> str:
    """How often a plan refreshes: daily, hourly, every 15 min."""
    named = {timedelta(days=1): "daily", timedelta(hours=1): "hourly"}
    return named.get(span) or f"every {duration(span)}"


def history(days: int | None) -> str:
    """How many days a plan keeps: 90 days, or unlimited."""
    return "unlimited" if days is None else f"{days} days"
