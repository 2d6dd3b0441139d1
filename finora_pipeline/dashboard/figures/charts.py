"""Charts as SVG, drawn on the server; colours come from the page's style, by class.

Bars stretch with their box; labels are HTML around them, which keeps its size on a phone. The text of a bar
is in `data-tip`, for the pointer, the arrow keys and a screen reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from markupsafe import Markup, escape

WIDTH = 1000
HEIGHT = 240
# The share of a bar's slot that stays empty.
GAP = 0.18
_HATCH = Markup(
    '<defs><pattern id="hatch" width="8" height="8" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="3" height="8"/></pattern></defs>'
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its label, the sizes of its parts from the bottom, and the text of its tip.

    The place of a bar that is not known is hatched.
    """

    label: str
    parts: Sequence[Decimal]
    tip: str
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class Scale:
    """The ends of an axis: round numbers with zero between them or at one of them."""

    top: Decimal
    bottom: Decimal

    @property
    def steps(self) -> tuple[Decimal, Decimal, Decimal]:
        """The labels from the top: both ends and the middle, zero if values have both signs."""
        return self.top, (self.top + self.bottom) / 2, self.bottom

    def y(self, value: Decimal) -> float:
        """The distance of a value from the top of the drawing."""
        return float((self.top - value) / (self.top - self.bottom)) * HEIGHT


def scale_of(values: Sequence[Decimal]) -> Scale:
    """The axis for the values, zero included."""
    most = max(values, default=Decimal(0))
    least = min(values, default=Decimal(0))
    if least >= 0:
        return Scale(_round_up(most) if most else Decimal(1), Decimal(0))
    if most <= 0:
        return Scale(Decimal(0), -_round_up(-least))
    size = _round_up(max(most, -least))
    return Scale(size, -size)


def stacked_bars(bars: Sequence[Bar], title: str) -> Markup:
    """Draw bars stacked of parts; the n-th part of each has the class `s<n>`.

    A bar ends at the sum of its parts, below zero if credits exceed the rest. Otherwise credits shorten the
    other parts in proportion; the tip and the table have the exact parts.
    """
    scale = scale_of([_sum(bar.parts) for bar in bars])
    zero = scale.y(Decimal(0))
    room = WIDTH / max(1, len(bars))
    width = room * (1 - GAP)
    shapes: list[str] = []
    for number, bar in enumerate(bars):
        left = number * room + room * GAP / 2
        shapes.append(
            f'<g class="bar" data-tip="{escape(bar.tip)}">'
            f'<rect class="room" x="{number * room:.2f}" y="0" width="{room:.2f}" height="{HEIGHT}"/>'
        )
        if not bar.is_known:
            shapes.append(
                f'<rect class="unknown" x="{left:.2f}" y="0" width="{width:.2f}" height="{HEIGHT}"/>'
            )
        whole = _sum(bar.parts)
        drawn = _sum([part for part in bar.parts if part * whole > 0])
        level = zero
        for part, size in enumerate(bar.parts):
            if size * whole <= 0:
                continue
            height = abs(float(size / drawn) * (zero - scale.y(whole)))
            top = level - height if whole > 0 else level
            level = top if whole > 0 else level + height
            shapes.append(
                f'<rect class="s{part}" x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" '
                f'height="{height:.2f}"/>'
            )
        shapes.append("</g>")
    return Markup(
        f'<svg class="bars" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'tabindex="0" aria-label="{escape(title)}">'
        f"{'' if all(bar.is_known for bar in bars) else _HATCH}{''.join(shapes)}</svg>"
    )


def _sum(parts: Sequence[Decimal]) -> Decimal:
    return sum(parts, Decimal(0))


def _round_up(size: Decimal) -> Decimal:
    magnitude = Decimal(10) ** size.adjusted()
    return next(
        step * magnitude
        for step in map(Decimal, ("1", "2", "3", "4", "5", "6", "8", "10"))
        if step * magnitude >= size
    )


def sparkline(values: Sequence[Decimal | None], title: str) -> Markup:
    """Draw the line of a few days; days without a figure are gaps."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return Markup("")
    low, high = min(known), max(known)
    span = float(high - low) or 1.0
    step = 100 / (len(values) - 1)
    pieces, is_drawn = [], False
    for number, value in enumerate(values):
        if value is None:
            is_drawn = False
            continue
        height = 22 - 20 * float(value - low) / span if high > low else 12.0
        pieces.append(f"{'L' if is_drawn else 'M'}{number * step:.1f} {height:.1f}")
        is_drawn = True
    return Markup(
        f'<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(title)}"><path d="{"".join(pieces)}"/></svg>'
    )


def lines(series: Sequence[tuple[str, Sequence[Decimal | None]]], tips: Sequence[str], title: str) -> Markup:
    """Draw lines over common positions; the n-th line has the class `l<n>`.

    The n-th position shows the n-th of `tips`. A single point between gaps is a short dash.
    """
    known = [value for _, values in series for value in values if value is not None]
    if not known:
        return Markup("")
    scale = scale_of(known)
    count = max(len(values) for _, values in series)
    step = WIDTH / max(1, count)
    shapes = [
        f'<g class="bar" data-tip="{escape(tip)}">'
        f'<rect class="room" x="{number * step:.2f}" y="0" width="{step:.2f}" height="{HEIGHT}"/></g>'
        for number, tip in enumerate(tips)
    ]
    for number, (_, values) in enumerate(series):
        path, before = [], False
        for position, value in enumerate(values):
            if value is None:
                before = False
                continue
            x, y = (position + 0.5) * step, scale.y(value)
            after = position + 1 < len(values) and values[position + 1] is not None
            if not before and not after:
                path.append(f"M{x - step / 4:.1f} {y:.1f}H{x + step / 4:.1f}")
            else:
                path.append(f"{'L' if before else 'M'}{x:.1f} {y:.1f}")
            before = True
        shapes.append(f'<path class="line l{number}" d="{"".join(path)}"/>')
    return Markup(
        f'<svg class="bars" viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'tabindex="0" aria-label="{escape(title)}">{"".join(shapes)}</svg>'
    )


def share_bar(share: Decimal) -> Markup:
    """Draw a share of a whole as a thin bar under a row."""
    width = max(0.0, min(100.0, float(share) * 100))
    return Markup(
        '<svg class="share" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.2f}" height="4"/></svg>'
    )
