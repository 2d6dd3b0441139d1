"""finora purge, which deletes a user's data, and finora rebuild, which checks facts against raw pages."""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
from rich.table import Table

from finora_pipeline.cli.dashboard import keep_a_login, last_login_option
from finora_pipeline.cli.terminal import (
    json_option,
    messages,
    output,
    plain_errors,
    print_json,
    progress,
    row,
)

if TYPE_CHECKING:
    from finora_pipeline.accounts.store import Accounts
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.rebuild import Rebuilt

ROWS_SHOWN = 40
_day = click.DateTime(["%Y-%m-%d"])


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """The result of a purge: deleted rows by place, raw files, log lines, and rows left by place."""

    rows: dict[str, int]
    files_removed: int
    files_rewritten: int
    log_lines: int
    left: dict[str, int]


@click.command()
@click.option("--user", "user_id", required=True, help="The user to purge.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@last_login_option
@json_option
def purge(user_id: str, yes: bool, removes_last: bool, as_json: bool) -> None:
    """Delete all data of a user: key, facts, raw pages, published rows, log lines; show that none is left.

    This cannot be undone. Only one row of the audit trail records it. Dagster's own record of past runs may
    name the user until those runs are deleted.
    """
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.settings import Settings

    settings = Settings.from_environment()
    with plain_errors():
        accounts = accounts_of(settings)
        if not removes_last:
            keep_a_login(accounts.logins, lambda login: login.user_id == user_id)
        if not yes:
            click.confirm(f"Delete all data of {user_id}? This cannot be undone.", abort=True, err=True)
        report = _purge(settings, accounts, user_id)
    if as_json:
        files = {"removed": report.files_removed, "rewritten": report.files_rewritten}
        counts = {"rows_deleted": report.rows, "raw_files": files, "log_lines": report.log_lines}
        print_json(counts | {"left": report.left})
    else:
        table = Table("Place", "Rows deleted", "Rows left")
        for place in sorted({*report.rows, *report.left}):
            counts = (f"{report.rows.get(place, 0):,}", f"{report.left.get(place, 0):,}")
            table.add_row(*row(place, *counts))
        output.print(table)
        messages.print(
            f"{report.files_removed} raw files removed, {report.files_rewritten} rewritten without "
            f"{user_id}, {report.log_lines} log lines removed."
        )
    if any(report.left.values()):
        raise click.ClickException("Some rows are left. If a refresh of the user was running, purge again.")


def _purge(settings: "Settings", accounts: "Accounts", user_id: str) -> PurgeReport:
    from finora_pipeline.cli import runs
    from finora_pipeline.ingest import run_log
    from finora_pipeline.ingest.publish import publish_refreshes
    from finora_pipeline.warehouse import retention
    from finora_pipeline.warehouse.database import Warehouse
    from finora_pipeline.warehouse.raw import RawPages

    warehouse = Warehouse(settings.home)
    # Pages that a run has fetched for the user but not landed yet no longer land after this.
    with RawPages(warehouse.raw).landing(alone=True):
        deleted = accounts.purge(user_id)
    removed = retention.purge(warehouse, user_id)
    runs.delete_partition(settings, user_id)
    if warehouse.database.exists():
        publish_refreshes(accounts, warehouse)
    return PurgeReport(
        rows={f"accounts.{table}": count for table, count in deleted.items()} | removed.rows,
        files_removed=removed.files_removed,
        files_rewritten=removed.files_rewritten,
        log_lines=run_log.delete_user_lines(settings.home, user_id),
        left=retention.count_user_rows(warehouse, user_id),
    )


@click.command()
@click.option("--user", "user_id", help="Only this user.")
@click.option("--from", "first", type=_day, help="First UTC day, YYYY-MM-DD.")
@click.option("--to", "last", type=_day, help="Last UTC day, YYYY-MM-DD.")
@click.option("--replace", is_flag=True, help="Replace the warehouse with the result, and publish it.")
@json_option
def rebuild(
    user_id: str | None, first: datetime | None, last: datetime | None, replace: bool, as_json: bool
) -> None:
    """Build the facts again from the raw pages, without OpenAI, and report any difference.

    Nothing is changed without --replace, which is for a damaged warehouse or one of another version of
    finora. Exit code 0 means no difference.
    """
    if replace:
        if user_id or first or last:
            raise click.UsageError("--replace builds everything. Omit --user, --from and --to.")
        _replace(as_json)
        return
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.database import Warehouse
    from finora_pipeline.warehouse.rebuild import rebuild as rebuild_facts

    warehouse = Warehouse(Settings.from_environment().home)
    if not warehouse.database.exists():
        raise click.ClickException("There is nothing to rebuild yet. finora refresh fetches it first.")
    with plain_errors(), progress("Loading raw files") as show:
        rebuilt = rebuild_facts(
            warehouse,
            user_id=user_id,
            first=first and first.date(),
            last=last and last.date(),
            on_progress=lambda done, total: show(done, total, 0),
        )
    if as_json:
        _print_rebuilt_json(rebuilt)
    else:
        _print_rebuilt(rebuilt)
    if rebuilt.differences:
        sys.exit(1)


def _print_rebuilt_json(rebuilt: "Rebuilt") -> None:
    names = ("table", "user", "date", "rows_only_held", "rows_only_raw")
    differences = [
        dict(zip(names, (d.table, d.user_id, d.date, d.rows_only_held, d.rows_only_raw), strict=True))
        for d in rebuilt.differences
    ]
    unloadable = [{"raw_file": one.file, "reason": one.reason} for one in rebuilt.unloadable]
    counts = {"raw_files": rebuilt.files, "rows": rebuilt.rows}
    print_json(counts | {"differences": differences, "not_loaded": unloadable})


def _print_rebuilt(rebuilt: "Rebuilt") -> None:
    if rebuilt.differences:
        table = Table("Table", "User", "Day", "Rows only in the warehouse", "Rows only in raw pages")
        for d in rebuilt.differences[:ROWS_SHOWN]:
            counts = (str(d.rows_only_held), str(d.rows_only_raw))
            table.add_row(*row(d.table, d.user_id, str(d.date), *counts))
        output.print(table)
    if rebuilt.unloadable:
        table = Table("Raw file that cannot be loaded", "Reason")
        for one in rebuilt.unloadable[:ROWS_SHOWN]:
            table.add_row(*row(one.file, one.reason))
        output.print(table)
    output.print(
        f"{rebuilt.rows:,} rows built from {rebuilt.files:,} raw files; "
        f"{len(rebuilt.differences) or 'no'} user-days differ."
    )


def _replace(as_json: bool) -> None:
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.ingest.publish import publish_refreshes
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.database import Warehouse
    from finora_pipeline.warehouse.rebuild import replace_warehouse
    from finora_pipeline.warehouse.retention import prune

    settings = Settings.from_environment()
    warehouse = Warehouse(settings.home)
    with plain_errors():
        accounts = accounts_of(settings)
        with progress("Loading raw files") as show:
            files = replace_warehouse(warehouse, lambda done, total: show(done, total, 0))
        prune(warehouse, lambda: accounts.users.kept_from(datetime.now(UTC)))
        publish_refreshes(accounts, warehouse)
    if as_json:
        print_json({"raw_files": files})
    else:
        output.print(f"The warehouse was built again from {files:,} raw files and published.")
