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
    `cron`: the UTC ticks at which connections are looked through; most find none that is due.
    `lead`: how long before its interval is over a connection is due: the time until the next tick, and
    enough for a run that is late, slow or waits for another.
    `history_days`: how many UTC days of cost are kept, today included; None keeps all there is.
    `csv_exports`: whether the dashboard gives its figures as CSV files.
    """

    name: str
    refresh_interval: timedelta
    cron: str
    lead: timedelta
    history_days: int | None
    csv_exports: bool = True

    def first_day_kept(self, today: date) -> date | None:
        """The oldest UTC day this plan keeps, or None if it keeps everything."""
        return None if self.history_days is None else today - timedelta(days=self.history_days - 1)

    def next_refresh(self, last_refresh: datetime) -> datetime:
        """The moment until which the plan promises the next refresh."""
        return last_refresh + self.refresh_interval

    def is_due(self, last_refresh: datetime, now: datetime) -> bool:
        """Whether the promise could be broken by waiting for the next tick."""
        return now >= self.next_refresh(last_refresh) - self.lead

    def may_join(self, last_refresh: datetime, now: datetime) -> bool:
        """Whether to be refreshed along with one that is due, so that few runs serve all of a plan."""
        return now >= last_refresh + (self.refresh_interval - self.lead) / 2

    def keeps_more_than(self, other: "Plan") -> bool:
        """Whether this plan keeps older days than the other."""
        if other.history_days is None:
            return False
        return self.history_days is None or self.history_days > other.history_days

    @property
    def history_text(self) -> str:
        """How much is kept, in words: '90 days', 'everything'."""
        return "everything" if self.history_days is None else f"{self.history_days} days"

    @property
    def interval_text(self) -> str:
        """The cadence in words: 'every 24 h', 'every 15 min'."""
        minutes = int(self.refresh_interval.total_seconds() // 60)
        return f"every {minutes // 60} h" if minutes % 60 == 0 else f"every {minutes} min"


# Ticks are closer than intervals, so that what a failure or an outage has delayed is caught up within the
# promise where that can be. The daily plans tick apart from each other.
PLANS: dict[str, Plan] = {
    plan.name: plan
    for plan in (
        Plan(
            "trial", timedelta(hours=24), "35 * * * *", timedelta(hours=2, minutes=30), 7, csv_exports=False
        ),
        Plan("growth", timedelta(hours=24), "5 * * * *", timedelta(hours=2, minutes=30), 90),
        Plan("scale", timedelta(hours=1), "*/10 * * * *", timedelta(minutes=15), 365),
        Plan("enterprise", timedelta(minutes=15), "*/5 * * * *", timedelta(minutes=7), None),
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
