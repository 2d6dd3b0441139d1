"""The four plans: how often a connection is refreshed and how much history is kept.

No other module describes a plan: schedules, windows, status texts and the documentation use this one.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

# Grace period before expired days are deleted.
PRUNE_GRACE = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Plan:
    """The promises of a user's plan.

    `refresh_interval`: a connection is refreshed at least this often.
    `cron`: when (UTC) we check for due connections; most ticks find none.
    `lead`: how long before the end of its interval a connection is due: the time to the next tick, and
    enough for a run that is late, slow or queued.
    `history_days`: number of UTC days of costs kept, including today; None keeps all.
    `csv_exports`: whether the dashboard offers its figures as CSV files.
    """

    name: str
    refresh_interval: timedelta
    cron: str
    lead: timedelta
    history_days: int | None
    csv_exports: bool = True

    def first_day_kept(self, today: date) -> date | None:
        """The oldest UTC day this plan keeps; None if it keeps everything."""
        return None if self.history_days is None else today - timedelta(days=self.history_days - 1)

    def next_refresh(self, last_refresh: datetime) -> datetime:
        """When the next refresh is due by the plan's promise."""
        return last_refresh + self.refresh_interval

    @property
    def late_after(self) -> timedelta:
        """The age from which data is late: the interval plus the lead, in which a missed tick is made up."""
        return self.refresh_interval + self.lead

    def is_due(self, last_refresh: datetime, now: datetime) -> bool:
        """Whether the promise would break by waiting for the next tick."""
        return now >= self.next_refresh(last_refresh) - self.lead

    def may_join(self, last_refresh: datetime, now: datetime) -> bool:
        """Whether to refresh together with a due connection, so that few runs serve a whole plan."""
        return now >= last_refresh + (self.refresh_interval - self.lead) / 2

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


# Ticks are closer than intervals, so that most delays by failures are made up within the promise. The ticks
# of the daily plans do not coincide.
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
    """The name of a plan that does not exist."""


def plan_named(name: str) -> Plan:
    """The plan of that name, ignoring case. Raises `UnknownPlan` with a sentence that lists the plans."""
    try:
        return PLANS[name.strip().lower()]
    except KeyError:
        raise UnknownPlan(f"Unknown plan “{name}”. Plans: {', '.join(PLANS)}.") from None
