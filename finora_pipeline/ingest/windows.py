"""The UTC days of a connection that a refresh fetches."""

from datetime import date, timedelta

from finora_pipeline.accounts.model import Connection
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_admin.provider import CLOSING_DAYS, FINAL_AFTER_DAYS, FIRST_DAY
from finora_pipeline.plans import PRUNE_GRACE

# Every refresh fetches the days that are not final again.
TRAILING_DAYS = FINAL_AFTER_DAYS


def trailing_window(today: date) -> Window:
    """The days that every refresh fetches again: today and the `TRAILING_DAYS` before."""
    return Window(today - timedelta(days=TRAILING_DAYS), today + timedelta(days=1))


def window_of(connection: Connection, asked: Window, today: date) -> Window | None:
    """The days to fetch: those asked for that the plan keeps, or the whole history if it is missing.

    None if the plan keeps none of them. A refresh up to today starts at the first day that was not final at
    the refresh before, so that no pause leaves a gap. OpenAI may restate a month until its invoice: the
    first complete refresh of a day also fetches each ended month that none has fetched since the
    `CLOSING_DAYS`th of the next month. Both reach back as far as days are shown, `PRUNE_GRACE` longer than
    the plan keeps them. A missing history of a plan without a limit starts at `FIRST_DAY`; the fetch finds
    the organization's first costs.
    """
    kept_from = connection.first_day(today) or FIRST_DAY
    if connection.read_until is None:
        # Always up to today, so that no gap is left before the trailing window.
        return Window(kept_from, max(asked.end, today + timedelta(days=1)))
    start = max(asked.start, kept_from)
    # A clock that ran ahead recorded days that had not come yet.
    read_until = min(connection.read_until, today + timedelta(days=1))
    if asked.end > today:
        not_final = read_until - timedelta(days=TRAILING_DAYS)
        not_closed = (read_until - timedelta(days=CLOSING_DAYS)).replace(day=1)
        if read_until <= today and not_closed < today.replace(day=1):
            not_final = min(not_final, not_closed)
        shown_from = connection.first_day(today, PRUNE_GRACE) or FIRST_DAY
        start = min(start, max(not_final, shown_from))
    return Window(start, asked.end) if start < asked.end else None
