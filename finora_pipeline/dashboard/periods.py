"""The days a page shows, as its address says them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from urllib.parse import urlencode

from finora_pipeline.openai_admin.provider import FIRST_DAY
from finora_pipeline.plans import Plan

LENGTHS = {"7d": 7, "30d": 30, "90d": 90}
DEFAULT = "30d"
# Bars of a chart that still can be told apart.
MOST_DAYS = 92
MOST_WEEKS = 400


class BadPeriod(ValueError):
    """An address asks for days that cannot be shown; the message says why."""


@dataclass(frozen=True, slots=True)
class View:
    """What a page shows: UTC days, both ends included, and what they are compared with; a model or project.

    `clipped_from` is the day that was asked for where the plan does not keep it.
    """

    period: str
    first: date
    last: date
    previous_first: date
    previous_last: date
    model: str | None
    project_id: str | None
    clipped_from: date | None = None

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    @property
    def bucket(self) -> str:
        """What one bar of a chart is: a day, a week or a month."""
        return "day" if self.days <= MOST_DAYS else "week" if self.days <= MOST_WEEKS else "month"

    def query(self, **changes: str | None) -> str:
        """The address of this view, or of one that differs by `changes`."""
        told: dict[str, str | None] = {"period": self.period, "model": self.model, "project": self.project_id}
        if self.period == "custom":
            told |= {"from": self.first.isoformat(), "to": self.last.isoformat()}
        told |= changes
        return "?" + urlencode({name: value for name, value in told.items() if value})


def view_of(query: Mapping[str, str], plan: Plan, today: date) -> View:
    """The view that an address asks for, within what the plan keeps. Raises `BadPeriod`."""
    period = query.get("period") or ("custom" if query.get("from") else DEFAULT)
    kept_from = plan.first_day_kept(today) or FIRST_DAY
    if period in LENGTHS:
        first, last = today - timedelta(days=LENGTHS[period] - 1), today
    elif period == "month":
        first, last = today.replace(day=1), today
    elif period == "custom":
        first, last = _day(query, "from", today), _day(query, "to", today)
        if first > last:
            raise BadPeriod(f"The period begins ({first}) after it ends ({last}).")
        if last > today:
            raise BadPeriod(f"{last} is in the future; today is {today} in UTC.")
        if last < kept_from:
            raise BadPeriod(f"The {plan.name} plan keeps costs from {kept_from} on.")
    else:
        raise BadPeriod(f"“{period[:20]}” is no period: take 7d, 30d, 90d, month, or from and to.")
    asked, first = first, max(first, kept_from)
    if period == "month":
        last_of_previous = first.replace(day=1) - timedelta(days=1)
        previous_first = last_of_previous.replace(day=min(first.day, last_of_previous.day))
        previous_last = last_of_previous.replace(day=min(last.day, last_of_previous.day))
    else:
        previous_last = first - timedelta(days=1)
        previous_first = previous_last - (last - first)
    return View(
        period,
        first,
        last,
        previous_first,
        previous_last,
        (query.get("model") or None),
        (query.get("project") or None),
        asked if asked < first else None,
    )


def _day(query: Mapping[str, str], name: str, default: date) -> date:
    text = query.get(name)
    if not text:
        return default
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadPeriod(f"“{text[:20]}” is no day: write it like 2026-11-24.") from None
    return max(day, FIRST_DAY)
