"""Which days of a connection a refresh reads."""

from datetime import date, timedelta

from finora_pipeline.accounts.model import Connection
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_admin.provider import CLOSING_DAYS, FINAL_AFTER_DAYS, FIRST_DAY
from finora_pipeline.plans import PRUNE_GRACE

# Every refresh fetches the days that are not final again.
TRAILING_DAYS = FINAL_AFTER_DAYS


def trailing_window(today: date) -> Window:
    """The days that every refresh reads again: today and the `TRAILING_DAYS` before."""
    return Window(today - timedelta(days=TRAILING_DAYS), today + timedelta(days=1))


def window_of(connection: Connection, asked: Window, today: date) -> Window | None:
    """The days to read: those asked for that the plan keeps, or the whole history if it is missing.

    A refresh up to today starts where the days of the one before were not final yet, so that no pause,
    however long, leaves a gap. OpenAI may restate a month until the invoice is made: the first complete
    refresh of a day also reads whole each ended month that none has read on the `CLOSING_DAYS`th of the next
    or later. Both reach as far back as days
    are still shown, which is `PRUNE_GRACE` longer than the plan keeps them. None if the plan keeps none of
    the days asked for. For a plan that keeps everything, missing history starts at `FIRST_DAY`; the caller
    looks where the organization's own begins.
    """
    kept_from = connection.first_day(today) or FIRST_DAY
    if connection.read_until is None:
        # Up to today, whatever was asked for: no gap may stay behind the trailing window.
        return Window(kept_from, max(asked.end, today + timedelta(days=1)))
    start = max(asked.start, kept_from)
    # A clock that ran ahead has read days that were not.
    read_until = min(connection.read_until, today + timedelta(days=1))
    if asked.end > today:
        unsettled = read_until - timedelta(days=TRAILING_DAYS)
        not_closed = (read_until - timedelta(days=CLOSING_DAYS)).replace(day=1)
        if read_until <= today and not_closed < today.replace(day=1):
            unsettled = min(unsettled, not_closed)
        shown_from = connection.first_day(today, PRUNE_GRACE) or FIRST_DAY
        start = min(start, max(unsettled, shown_from))
    return Window(start, asked.end) if start < asked.end else None
