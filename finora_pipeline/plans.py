"""The four plans: how often a connection is refreshed and how much history is kept.

This is the only place where a plan is described. Schedules, windows, status texts and the
documentation read it from here.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

# For so long after a day, or a plan, has ended nothing is removed.
PRUNE_GRACE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a user's plan promises.

    `refresh_interval`: a connection is refreshed at least this often.
    `cron`: the UTC ticks that keep this promise.
    `history_days`: how many UTC days of cost are kept, today included; None keeps all there is.
    """

    name: str
    refresh_interval: timedelta
    cron: str
    history_days: int | None

    def first_day_kept(self, today: date) -> date | None:
        """The oldest UTC day this plan keeps, or None if it keeps everything."""
        return None if self.history_days is None else today - timedelta(days=self.history_days - 1)

    def next_refresh(self, last_refresh: datetime) -> datetime:
        """The moment until which the plan promises the next refresh."""
        return last_refresh + self.refresh_interval

    def keeps_more_than(self, other: "Plan") -> bool:
        """Whether this plan keeps older days than the other."""
        if other.history_days is None:
            return False
        return self.history_days is None or self.history_days > other.history_days

    @property
    def interval_text(self) -> str:
        """The cadence in words: 'every 24 h', 'every 15 min'."""
        minutes = int(self.refresh_interval.total_seconds() // 60)
        return f"every {minutes // 60} h" if minutes % 60 == 0 else f"every {minutes} min"


# The daily plans tick apart from each other and after the hours in which OpenAI still books yesterday.
PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        Plan("trial", timedelta(hours=24), "30 6 * * *", 7),
        Plan("growth", timedelta(hours=24), "0 6 * * *", 90),
        Plan("scale", timedelta(hours=1), "5 * * * *", 365),
        Plan("enterprise", timedelta(minutes=15), "*/15 * * * *", None),
    )
}


class UnknownPlan(ValueError):
    """A plan's name that is not in the table of plans."""


def plan_named(name: str) -> Plan:
    """The plan of that name.

    Raises `UnknownPlan` with a sentence that lists the plans there are.
    """
    try:
        return PLANS[name.strip().lower()]
    except KeyError:
        raise UnknownPlan(f"There is no plan “{name}”; the plans are {', '.join(PLANS)}.") from None
