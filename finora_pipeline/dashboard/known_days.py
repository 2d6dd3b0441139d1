"""Which UTC days of a user are known, as a page needs it: ends and gaps, without the days themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any


@dataclass(frozen=True, slots=True)
class DaySet:
    """The days from the first to the last, both included, without `gaps`; none if they are None."""

    first: date | None = None
    last: date | None = None
    gaps: frozenset[date] = frozenset()

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "DaySet":
        """The set of a struct of `span.sql`, which lists the days only if there are gaps."""
        first, last, dates = found["first_day"], found["last_day"], found["dates"]
        gaps = frozenset(days_between(first, last)).difference(dates) if dates else frozenset[date]()
        return cls(first, last, gaps)

    def number(self, first: date, last: date) -> int:
        """How many of some days are in the set."""
        if self.first is None or self.last is None:
            return 0
        first, last = max(first, self.first), min(last, self.last)
        return max(0, (last - first).days + 1) - sum(first <= day <= last for day in self.gaps)


@dataclass(frozen=True, slots=True)
class KnownDays:
    """The first known UTC day and the last complete one, None without any; and when today was read.

    `costs` and `usage` are all days whose costs and whose usage are known.
    """

    since: date | None
    through: date | None
    today_until: datetime | None
    costs: DaySet = DaySet()
    usage: DaySet = DaySet()

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "KnownDays":
        """The days in the row of `span.sql`."""
        through, today_until, costs, usage = row
        of_costs = DaySet.of(costs)
        return cls(of_costs.first, through, today_until, of_costs, DaySet.of(usage))


def days_between(first: date, last: date) -> list[date]:
    """UTC days, both ends included."""
    return [first + timedelta(days=number) for number in range((last - first).days + 1)]
