"""finora refresh: the Dagster job in this process; finora backfill: the same by the daemon, for many days."""

import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
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

# A table that a person reads: failed users first, then as many others.
ROWS_SHOWN = 40
_day = click.DateTime(["%Y-%m-%d"])


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
    """Read OpenAI and bring facts, metrics and the published file up to date.

    Runs the same Dagster job as the schedules, in this process; the run shows in the Dagster UI. Without
    options every connection that is due is read. A connection that has never been read gets the whole
    history of its plan. Exit code 0 means that every user was read.

    \b
      finora refresh
      finora refresh --plan growth --from 2026-11-01 --to 2026-11-15
      finora refresh --user acme --history
    """
    if history and (not users or first or last or plan):
        raise click.UsageError("--history goes with --user alone.")
    from finora_pipeline.accounts.model import AccountsError
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.cli import runs
    from finora_pipeline.ingest.selection import select_connections
    from finora_pipeline.settings import Settings

    settings = Settings.from_environment()
    with plain_errors():
        accounts = accounts_of(settings)
        chosen = select_connections(accounts, plan=plan, user_ids=users)
        asked = accounts.connections.all(plan=plan, user_ids=users or None)
        waiting = [c for c in asked if c.status == "needs attention" and c not in chosen]
        if not chosen:
            raise AccountsError(
                "Every connection needs attention and was tried within a day: finora status says why."
                if waiting
                else "There is no connection to refresh: finora connect makes one."
            )
        window = None if history else _window(first, last)

        def watch(run_id: str) -> AbstractContextManager[None]:
            return fetch_progress(accounts, run_id, len(chosen))

        if window is None:
            results = runs.load_history(settings, users, watch=watch)
        else:
            results = [runs.refresh(settings, window, plan=plan, users=users, watch=watch)]
    rows = [_row_of(refresh) for result in results for refresh in result.refreshes]
    errors = [error for result in results for error in result.errors]
    succeeded = all(result.succeeded for result in results)
    failed = sum(len(result.failed_users) for result in results)
    read = {row["user"] for row in rows}
    left_out = [c.user_id for c in chosen if c.user_id not in read]
    run_ids = [result.run_id for result in results]
    if as_json:
        print_json(
            {
                "run_ids": run_ids,
                "succeeded": succeeded,
                "errors": errors,
                "users": rows,
                "not_read": left_out + [c.user_id for c in waiting],
            }
        )
    else:
        _print_rows(rows)
        messages.print(f"Run {', '.join(run_ids)}: {failed} of {len(rows)} users failed.")
        if left_out and succeeded:
            _tell_left_out(len(left_out), len(chosen))
        if waiting:
            messages.print(
                f"{len(waiting)} more need attention and are tried once a day: finora status says why."
            )
        for error in errors:
            messages.print(error, style="red", markup=False)
    if not succeeded or failed or left_out or waiting:
        sys.exit(1)


@click.command()
@click.option("--from", "first", type=_day, required=True, help="First UTC day, YYYY-MM-DD.")
@click.option("--to", "last", type=_day, help="Last UTC day, YYYY-MM-DD.  [default: today]")
@click.option("--plan", type=plan_choice, help="Only users of this plan.")
@click.option("--user", "users", multiple=True, help="Only this user; repeatable.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Stay until it is over.")
@json_option
def backfill(
    first: datetime,
    last: datetime | None,
    plan: str | None,
    users: tuple[str, ...],
    wait: bool,
    as_json: bool,
) -> None:
    """Have the running installation read days again, behind its refreshes.

    Hands a Dagster backfill to the daemon of finora up: the UI shows it under Runs → Backfills, where it can
    be cancelled. It waits whenever a refresh of a plan is due, and Ctrl-C here leaves it going. A run that is
    killed is repeated and goes on with the users it had not read.

    \b
      finora backfill --from 2026-01-01 --plan scale
      finora backfill --from 2026-11-01 --to 2026-11-15 --user acme
    """
    import time

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
        chosen = select_connections(accounts, plan=plan, user_ids=users)
        if not chosen:
            raise AccountsError("There is no connection to read: finora status says why.")
        backfill_id = backfills.launch_backfill(settings, window, plan=plan, users=users)
    is_served = daemon_is_alive()
    if not is_served:
        messages.print("It begins when finora up runs.")
    state = backfills.backfill_state(accounts, backfill_id)
    if wait and is_served:
        with progress(f"Backfill {backfill_id}: {len(chosen)} users, {window.days} days") as on_progress:
            while not state.is_over:
                time.sleep(1)
                state = backfills.backfill_state(accounts, backfill_id)
                on_progress(state.users_read, len(chosen), state.users_failed)
    left_out = len(chosen) - state.users_read
    if as_json:
        print_json({"backfill_id": backfill_id, "users": len(chosen), "days": window.days, **asdict(state)})
    else:
        read = f"{state.users_read - state.users_failed} of {len(chosen)} users read"
        messages.print(f"Backfill {backfill_id} of {window.days} days: {state.status}, {read}.")
        if state.is_over and state.succeeded and left_out > 0:
            _tell_left_out(left_out, len(chosen))
    if state.is_over and (not state.succeeded or state.users_failed or left_out > 0):
        sys.exit(1)


def _tell_left_out(count: int, chosen: int) -> None:
    messages.print(
        f"{count} of {chosen} users were not read: their plans keep none of these days, or their keys were "
        "changed meanwhile."
    )


def _window(first: datetime | None, last: datetime | None) -> Any:
    from finora_pipeline.assets.partitions import FIRST_PARTITION
    from finora_pipeline.ingest.windows import TRAILING_DAYS
    from finora_pipeline.openai_admin.pages import Window

    today = datetime.now(UTC).date()
    end: date = last.date() if last else today
    start: date = first.date() if first else end - timedelta(days=TRAILING_DAYS)
    if start > end:
        raise click.UsageError(f"--from {start} is after --to {end}.")
    if end > today:
        raise click.UsageError(f"--to {end} is in the future; today is {today} in UTC.")
    if start < FIRST_PARTITION:
        raise click.UsageError(f"--from {start} is before {FIRST_PARTITION}; use --history for older days.")
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
