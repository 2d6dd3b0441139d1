"""The selection of the connections that a run fetches."""

from collections.abc import Sequence
from datetime import UTC, datetime

from finora_pipeline.accounts.model import AccountsError, Connection
from finora_pipeline.accounts.store import Accounts
from finora_pipeline.ingest.windows import window_of
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_admin.provider import FIRST_DAY


def select_connections(
    accounts: Accounts,
    *,
    plan: str | None = None,
    user_ids: Sequence[str] | None = None,
    now: datetime | None = None,
    skip_missing: bool = False,
    only_due: bool = False,
) -> list[Connection]:
    """The connections of the named users, else all that may be fetched, of a single plan or all plans.

    With `only_due`: if any connection is due, it and those due soon; else none. Raises `AccountsError` for a
    named user without a connection, unless `skip_missing`: a removal between a run's request and its start
    must not fail the run for other users.
    """
    if user_ids:
        found = accounts.connections.all(plan=plan, user_ids=user_ids)
        active = [c for c in found if c.next_refresh_at is not None]
        missing = sorted(set(user_ids) - {c.user_id for c in active})
        if missing and not skip_missing:
            of_plan = f" on the plan {plan}" if plan else ""
            named = ", ".join(missing)
            raise AccountsError(f"No OpenAI connection{of_plan} to refresh for {named}.")
        return active
    moment = now or datetime.now(UTC)
    allowed = [c for c in accounts.connections.all(plan=plan) if c.may_be_fetched(moment)]
    if not only_due:
        return allowed
    return [c for c in allowed if c.may_join(moment)] if any(c.is_due(moment) for c in allowed) else []


def already_fetched(
    accounts: Accounts, run_id: str, connections: Sequence[Connection], asked: Window
) -> set[str]:
    """Users whose whole window an interrupted run has already fetched and landed."""
    today = datetime.now(UTC).date()
    windows = {c.user_id: window_of(c, asked, today) for c in connections}
    return {
        refresh.user_id
        for refresh in accounts.refreshes.of_run(run_id)
        if refresh.is_complete
        and (window := windows.get(refresh.user_id))
        # A whole history begins with the organization's first costs, which only the fetch finds.
        and (window.start == FIRST_DAY or refresh.window_start <= window.start)
        and refresh.window_end >= window.end
    }
