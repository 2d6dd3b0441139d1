"""finora purge and finora rebuild: a user's data gone, and the facts proved by the raw pages."""

import sys
from datetime import UTC, datetime

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

_day = click.DateTime(["%Y-%m-%d"])


@click.command()
@click.option("--user", "user_id", required=True, help="The user to forget.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@last_login_option
@json_option
def purge(user_id: str, yes: bool, removes_last: bool, as_json: bool) -> None:
    """Delete all data of a user: key, facts, raw pages, published rows, log lines; show that none is left.

    It is for good. Only a note in the audit trail says that it was done. Dagster's own record of past runs
    may name the user until those runs are deleted.
    """
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.cli import runs
    from finora_pipeline.ingest import run_log
    from finora_pipeline.ingest.publish import publish_refreshes
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse import retention
    from finora_pipeline.warehouse.database import Warehouse
    from finora_pipeline.warehouse.raw import RawPages

    settings = Settings.from_environment()
    warehouse = Warehouse(settings.home)
    with plain_errors():
        accounts = accounts_of(settings)
        if not removes_last:
            keep_a_login(accounts.logins, lambda login: login.user_id == user_id)
        if not yes:
            click.confirm(f"Delete all data of {user_id} for good?", abort=True, err=True)
        # What a run has read of the user and not landed yet, does not land any more.
        with RawPages(warehouse.raw).landing(alone=True):
            deleted = accounts.purge(user_id)
        removed = retention.purge(warehouse, user_id)
        runs.delete_partition(settings, user_id)
        if warehouse.database.exists():
            publish_refreshes(accounts, warehouse)
        log_lines = run_log.delete_user_lines(settings.home, user_id)
        left = retention.count_user_rows(warehouse, user_id)
    rows = {f"accounts.{table}": count for table, count in deleted.items()} | removed.rows
    if as_json:
        files = {"removed": removed.files_removed, "rewritten": removed.files_rewritten}
        print_json({"rows_deleted": rows, "raw_files": files, "log_lines": log_lines, "left": left})
    else:
        table = Table("Place", "Rows deleted", "Rows left")
        for place in sorted({*rows, *left}):
            table.add_row(*row(place, f"{rows.get(place, 0):,}", f"{left.get(place, 0):,}"))
        output.print(table)
        messages.print(
            f"{removed.files_removed} raw files removed, {removed.files_rewritten} rewritten without "
            f"{user_id}, {log_lines} log lines removed."
        )
    if any(left.values()):
        raise click.ClickException("Something is left: was a refresh of the user going? Purge again.")


@click.command()
@click.option("--user", "user_id", help="Only this user.")
@click.option("--from", "first", type=_day, help="First UTC day, YYYY-MM-DD.")
@click.option("--to", "last", type=_day, help="Last UTC day, YYYY-MM-DD.")
@click.option("--replace", is_flag=True, help="Put what was built in the warehouse's place, and publish it.")
@json_option
def rebuild(
    user_id: str | None, first: datetime | None, last: datetime | None, replace: bool, as_json: bool
) -> None:
    """Build the facts again from the raw pages, without OpenAI, and report any difference.

    Nothing is changed, unless --replace is given: for a warehouse of another version of finora, or a damaged
    one. Exit code 0 means that there is no difference.
    """
    if replace:
        if user_id or first or last:
            raise click.UsageError("--replace builds everything: leave out --user, --from and --to.")
        _replace(as_json)
        return
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.database import Warehouse
    from finora_pipeline.warehouse.rebuild import rebuild as rebuild_facts

    warehouse = Warehouse(Settings.from_environment().home)
    if not warehouse.database.exists():
        raise click.ClickException("There is nothing to rebuild yet: finora refresh reads it first.")
    with plain_errors(), progress("Loading raw files") as show:
        rebuilt = rebuild_facts(
            warehouse,
            user_id=user_id,
            first=first and first.date(),
            last=last and last.date(),
            on_progress=lambda done, total: show(done, total, 0),
        )
    if as_json:
        names = ("table", "user", "date", "rows_only_held", "rows_only_raw")
        told = [
            dict(zip(names, (d.table, d.user_id, d.date, d.rows_only_held, d.rows_only_raw), strict=True))
            for d in rebuilt.differences
        ]
        unloadable = [{"raw_file": one.file, "reason": one.reason} for one in rebuilt.unloadable]
        print_json(
            {
                "raw_files": rebuilt.files,
                "rows": rebuilt.rows,
                "differences": told,
                "not_loaded": unloadable,
            }
        )
    else:
        if rebuilt.differences:
            table = Table("Table", "User", "Day", "Rows held only", "Rows in raw pages only")
            for d in rebuilt.differences[:40]:
                counts = (str(d.rows_only_held), str(d.rows_only_raw))
                table.add_row(*row(d.table, d.user_id, str(d.date), *counts))
            output.print(table)
        if rebuilt.unloadable:
            table = Table("Raw file that is not loaded", "Why")
            for one in rebuilt.unloadable[:40]:
                table.add_row(*row(one.file, one.reason))
            output.print(table)
        output.print(
            f"{rebuilt.rows:,} rows built from {rebuilt.files:,} raw files; "
            f"{len(rebuilt.differences) or 'no'} user-days differ."
        )
    if rebuilt.differences:
        sys.exit(1)


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
        output.print(f"The warehouse is built again from {files:,} raw files and published.")
