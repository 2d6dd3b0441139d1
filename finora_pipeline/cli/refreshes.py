"""finora refresh, which runs the Dagster job in this process, and finora backfill, which the daemon runs."""

import sys
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from finora_pipeline.cli.connections import plan_choice
from finora_pipeline.cli.terminal import (
    fetch_progress,
    json_option,
    messages,
    output,
    plain_errors,
    print_json,
    progress,
)
from finora_pipeline.cli.terminal import row as text_row

if TYPE_CHECKING:
    from finora_pipeline.accounts.model import Refresh
    from finora_pipeline.accounts.store import Accounts
    from finora_pipeline.cli.backfills import BackfillState
    from finora_pipeline.openai_admin.pages import Window

# Longest table, failed users first.
ROWS_SHOWN = 40
_day = click.DateTime(["%Y-%m-%d"])


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """The result of a refresh: one row per user, and the users that were not fetched.

    `skipped` are chosen users without a row, `waiting` those that need attention and were tried recently.
    """

    run_ids: list[str]
    succeeded: bool
    errors: list[str]
    rows: list[dict[str, Any]]
    chosen: int
    skipped: list[str]
    waiting: list[str]

    @property
    def failed(self) -> int:
        """The number of failed users."""
        return sum(row["outcome"] != "complete" for row in self.rows)

    @property
    def is_complete(self) -> bool:
        """Whether every user was fetched and every step succeeded."""
        return self.succeeded and not (self.failed or self.skipped or self.waiting)


@click.command()
@click.option(
    "--user", "users", multiple=True, help="Only this user, even if it needs attention; repeatable."
)
@click.option("--plan", type=plan_choice, help="Only users of this plan.")
@click.option("--from", "first", type=_day, help="First UTC day, YYYY-MM-DD.  [default: 3 days ago]")
@click.option("--to", "last", type=_day, help="Last UTC day, YYYY-MM-DD.  [default: today]")
@click.option("--history", is_flag=True, help="Load the whole history of the given users again.")
@json_option
def refresh(
    users: tuple[str, ...],
    plan: str | None,
    first: datetime | None,
    last: datetime | None,
    history: bool,
    as_json: bool,
) -> None:
    """Fetch from OpenAI and update facts, metrics and the published file.

    Runs the same Dagster job as the schedules, in this process; the run shows in the Dagster UI. Without
    options every connection is fetched, and one that has no history yet gets the whole history of its plan.
    Exit code 0 means that every user was fetched.

    \b
      finora refresh
      finora refresh --plan growth --from 2026-11-01 --to 2026-11-15
      finora refresh --user acme --history
    """
    if history and (not users or first or last or plan):
        raise click.UsageError("--history needs --user, and no other option.")
    with plain_errors():
        report = _refresh(users, plan, None if history else _window(first, last))
    if as_json:
        print_json(
            {
                "run_ids": report.run_ids,
                "succeeded": report.succeeded,
                "errors": report.errors,
                "users": report.rows,
                "not_read": report.skipped + report.waiting,
            }
        )
    else:
        _print_report(report)
    if not report.is_complete:
        sys.exit(1)


def _refresh(users: tuple[str, ...], plan: str | None, window: "Window | None") -> RefreshReport:
    """Run the refresh of a window, or of whole histories without one. Raises `AccountsError`."""
    from finora_pipeline.accounts.model import AccountsError
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.cli import runs
    from finora_pipeline.ingest.selection import select_connections
    from finora_pipeline.settings import Settings

    settings = Settings.from_environment()
    accounts = accounts_of(settings)
    chosen = select_connections(accounts, plan=plan, user_ids=users)
    known = accounts.connections.all(plan=plan, user_ids=users or None)
    waiting = [c.user_id for c in known if c.status == "needs attention" and c not in chosen]
    if not chosen:
        raise AccountsError(
            "Every connection needs attention and was tried within a day. finora status shows why."
            if waiting
            else "No connection to refresh. finora connect creates one."
        )

    def watch(run_id: str) -> AbstractContextManager[None]:
        return fetch_progress(accounts, run_id, len(chosen))

    if window is None:
        results = runs.load_history(settings, users, watch=watch)
    else:
        results = [runs.refresh(settings, window, plan=plan, users=users, watch=watch)]
    rows = [_row_of(refresh) for result in results for refresh in result.refreshes]
    fetched = {row["user"] for row in rows}
    return RefreshReport(
        run_ids=[result.run_id for result in results],
        succeeded=all(result.succeeded for result in results),
        errors=[error for result in results for error in result.errors],
        rows=rows,
        chosen=len(chosen),
        skipped=[c.user_id for c in chosen if c.user_id not in fetched],
        waiting=waiting,
    )


def _print_report(report: RefreshReport) -> None:
    _print_rows(report.rows)
    messages.print(f"Run {', '.join(report.run_ids)}: {report.failed} of {len(report.rows)} users failed.")
    if report.skipped and report.succeeded:
        _print_skipped(len(report.skipped), report.chosen)
    if report.waiting:
        messages.print(
            f"{len(report.waiting)} more need attention and are tried once a day. finora status shows why."
        )
    for error in report.errors:
        messages.print(error, style="red", markup=False)


@click.command()
@click.option("--from", "first", type=_day, required=True, help="First UTC day, YYYY-MM-DD.")
@click.option("--to", "last", type=_day, help="Last UTC day, YYYY-MM-DD.  [default: today]")
@click.option("--plan", type=plan_choice, help="Only users of this plan.")
@click.option("--user", "users", multiple=True, help="Only this user; repeatable.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it is over.")
@json_option
def backfill(
    first: datetime,
    last: datetime | None,
    plan: str | None,
    users: tuple[str, ...],
    wait: bool,
    as_json: bool,
) -> None:
    """Fetch past days again in the background.

    Requests a Dagster backfill from the daemon of finora up; the UI shows it under Runs → Backfills, where it
    can be canceled. Refreshes of plans go first, and Ctrl-C here does not stop it. A run whose process dies
    is retried and continues with the remaining users.

    \b
      finora backfill --from 2026-01-01 --plan scale
      finora backfill --from 2026-11-01 --to 2026-11-15 --user acme
    """
    from finora_pipeline.accounts.model import AccountsError
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.cli import backfills
    from finora_pipeline.ingest.selection import select_connections
    from finora_pipeline.instance.processes import daemon_is_alive
    from finora_pipeline.settings import Settings

    settings = Settings.from_environment()
    window = _window(first, last)
    with plain_errors():
        accounts = accounts_of(settings)
        chosen = len(select_connections(accounts, plan=plan, user_ids=users))
        if not chosen:
            raise AccountsError("No connection to fetch. finora status shows why.")
        backfill_id = backfills.launch_backfill(settings, window, plan=plan, users=users)
    is_served = daemon_is_alive()
    if not is_served:
        messages.print("It starts once finora up is running.")
    state = _backfill_state(accounts, backfill_id, window, chosen, until_over=wait and is_served)
    if as_json:
        print_json({"backfill_id": backfill_id, "users": chosen, "days": window.days, **asdict(state)})
    else:
        _print_backfill(backfill_id, state, window, chosen)
    is_complete = state.succeeded and not state.users_failed and state.users_read >= chosen
    if state.is_over and not is_complete:
        sys.exit(1)


def _backfill_state(
    accounts: "Accounts", backfill_id: str, window: "Window", chosen: int, *, until_over: bool
) -> "BackfillState":
    """The state of a backfill, now or when it is over, with a progress bar."""
    import time

    from finora_pipeline.cli.backfills import backfill_state

    state = backfill_state(accounts, backfill_id)
    if until_over:
        with progress(f"Backfill {backfill_id}: {chosen} users, {window.days} days") as show:
            while not state.is_over:
                time.sleep(1)
                state = backfill_state(accounts, backfill_id)
                show(state.users_read, chosen, state.users_failed)
    return state


def _print_backfill(backfill_id: str, state: "BackfillState", window: "Window", chosen: int) -> None:
    fetched = f"{state.users_read - state.users_failed} of {chosen} users fetched"
    messages.print(f"Backfill {backfill_id} of {window.days} days: {state.status}, {fetched}.")
    skipped = chosen - state.users_read
    if state.is_over and state.succeeded and skipped > 0:
        _print_skipped(skipped, chosen)


def _print_skipped(count: int, chosen: int) -> None:
    messages.print(
        f"{count} of {chosen} users were skipped: their plans keep none of these days, or their keys changed "
        "during the run."
    )


def _window(first: datetime | None, last: datetime | None) -> "Window":
    """The UTC days of the options. Raises `click.UsageError`."""
    from finora_pipeline.assets.partitions import FIRST_PARTITION
    from finora_pipeline.ingest.windows import TRAILING_DAYS
    from finora_pipeline.openai_admin.pages import Window

    today = datetime.now(UTC).date()
    end: date = last.date() if last else today
    start: date = first.date() if first else end - timedelta(days=TRAILING_DAYS)
    if start > end:
        raise click.UsageError(f"--from {start} is after --to {end}.")
    if end > today:
        raise click.UsageError(f"--to {end} is in the future. Today is {today} in UTC.")
    if start < FIRST_PARTITION:
        raise click.UsageError(f"--from {start} is before {FIRST_PARTITION}. Use --history for older days.")
    return Window(start, end + timedelta(days=1))


def _row_of(refresh: "Refresh") -> dict[str, Any]:
    return {
        "user": refresh.user_id,
        "from": refresh.window_start,
        "to": refresh.window_end - timedelta(days=1),
        "outcome": refresh.outcome,
        "pages": refresh.pages,
        "seconds": round((refresh.finished_at - refresh.started_at).total_seconds(), 3),
        "reason": refresh.reason,
        "message": refresh.message,
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table("User", "From", "To", "Outcome", "Pages", "Seconds", "Error")
    rows = sorted(rows, key=lambda row: (row["outcome"] == "complete", row["user"]))
    for row in rows[:ROWS_SHOWN]:
        color = "green" if row["outcome"] == "complete" else "red"
        table.add_row(
            *text_row(row["user"], str(row["from"]), str(row["to"])),
            f"[{color}]{row['outcome']}[/]",
            *text_row(str(row["pages"]), f"{row['seconds']:.2f}", row["message"] or ""),
        )
    output.print(table)
    if len(rows) > ROWS_SHOWN:
        output.print(f"… and {len(rows) - ROWS_SHOWN} more (--json lists all).")
