"""The view of a page: its days, model and project, as the query of the address sets them."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from urllib.parse import urlencode

from finora_pipeline.dashboard.figures import formats
from finora_pipeline.dashboard.known_days import KnownDays
from finora_pipeline.openai_admin.provider import FIRST_DAY
from finora_pipeline.plans import Plan
from finora_pipeline.warehouse.kpis import LENGTHS, MONTH, period_of, span_of

DEFAULT = "30d"
# The most bars of a chart that can be distinguished.
MOST_DAYS = 92
MOST_WEEKS = 400


class BadPeriod(ValueError):
    """The days of an address cannot be shown; the message says why."""


@dataclass(frozen=True, slots=True)
class View:
    """The UTC days of a page (both ends included), its previous period, and a model or project.

    `through` is the last complete day, with which every period ends at the latest. `clipped_from` is the
    first day of the address if the plan no longer keeps it, `clipped_to` the last if it is not complete yet.
    """

    period: str
    first: date
    last: date
    previous_first: date
    previous_last: date
    model: str | None
    project_id: str | None
    today: date
    through: date
    clipped_from: date | None = None
    clipped_to: date | None = None

    @property
    def days(self) -> int:
        return (self.last - self.first).days + 1

    @property
    def is_behind(self) -> bool:
        """Whether yesterday is not complete: in an outage, or before the day's first refresh."""
        return self.through < self.today - timedelta(days=1)

    @property
    def month_label(self) -> str:
        """The name of the period `month`, which on the 1st is the month that has ended."""
        is_this = (self.through.year, self.through.month) == (self.today.year, self.today.month)
        return "This month" if is_this else f"{self.through:%B}"

    def no_spend_text(self, known_days: int) -> str:
        """Why a part of the page is empty, by how many days of the view are known."""
        if not known_days:
            return "No day of this period is known"
        return f"No spend {'in' if known_days == self.days else 'on the known days of'} this period"

    @property
    def bucket(self) -> str:
        """The span of a chart's bar: `day`, `week` or `month`."""
        return "day" if self.days <= MOST_DAYS else "week" if self.days <= MOST_WEEKS else "month"

    def query(self, **changes: str | None) -> str:
        """The query of this view, with `changes` applied."""
        values: dict[str, str | None] = {
            "period": self.period,
            "model": self.model,
            "project": self.project_id,
        }
        if self.period == "custom":
            values |= {"from": self.first.isoformat(), "to": self.last.isoformat()}
        values |= changes
        return "?" + urlencode({name: value for name, value in values.items() if value})


def view_of(query: Mapping[str, str], plan: Plan, today: date, known: KnownDays) -> View:
    """The view of an address, within the history that the plan keeps and the complete days.

    Without a complete day periods end with yesterday. Raises `BadPeriod`.
    """
    through = known.through or today - timedelta(days=1)
    period = query.get("period") or ("custom" if query.get("from") else DEFAULT)
    kept_from = _first_day_shown(plan, today, through, known.since)
    if period in (*LENGTHS, MONTH):
        wanted, shown = period_of(period, through), period_of(period, through, kept_from)
    elif period == "custom":
        wanted = span_of(*_custom_days(query, today))
        if wanted.last < kept_from:
            raise BadPeriod(f"The {plan.name} plan keeps costs since {formats.day(kept_from)}.")
        if wanted.first > through:
            raise BadPeriod(_not_complete(known.through))
        last = min(wanted.last, through)
        shown = span_of(min(max(wanted.first, kept_from), last), last)
    else:
        raise BadPeriod(f"Unknown period “{period[:20]}”. Use 7d, 30d, 90d, month, or from and to.")
    return View(
        period,
        shown.first,
        shown.last,
        shown.previous_first,
        shown.previous_last,
        query.get("model") or None,
        query.get("project") or None,
        today,
        through,
        wanted.first if wanted.first < shown.first else None,
        wanted.last if wanted.last > shown.last else None,
    )


def _first_day_shown(plan: Plan, today: date, through: date, known_since: date | None) -> date:
    """The first day that the plan shows."""
    kept_today, kept = plan.first_day_kept(today), plan.first_day_kept(through)
    if kept_today is None or kept is None:
        return FIRST_DAY
    # The plan counts today. An earlier day takes its place once it is known, so that 90 days are 90 complete
    # ones, as in user_metrics.
    return max(kept, min(kept_today, known_since or kept_today, through), FIRST_DAY)


def _not_complete(through: date | None) -> str:
    last = f"The last complete day is {formats.day(through)}." if through else "No day is complete yet."
    return f"These days are not complete. {last}"


def _custom_days(query: Mapping[str, str], today: date) -> tuple[date, date]:
    first, last = _day(query, "from", today), _day(query, "to", today)
    if first > last:
        raise BadPeriod(f"The first day ({formats.day(first)}) is after the last day ({formats.day(last)}).")
    if last > today:
        raise BadPeriod(f"{formats.day(last)} is in the future; today is {formats.day(today)} in UTC.")
    return first, last


def _day(query: Mapping[str, str], name: str, default: date) -> date:
    text = query.get(name)
    if not text:
        return default
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise BadPeriod(f"Invalid date “{text[:20]}”. Use YYYY-MM-DD.") from None
    return max(day, FIRST_DAY)
