"""finora connect, update, remove, status and plan."""

import asyncio
import csv
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from finora_pipeline.cli.terminal import (
    json_option,
    messages,
    moment,
    output,
    plain_errors,
    print_json,
    progress,
    row,
    standard_input,
)
from finora_pipeline.openai_admin.keys import redact
from finora_pipeline.plans import PLANS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from finora_pipeline.accounts.model import Connection, PartFailure
    from finora_pipeline.accounts.onboarding import NewConnection

plan_choice = click.Choice(list(PLANS), case_sensitive=False)
user_option = click.option("--user", "user_id", required=True, help="Your own id of the user, e.g. acme.")
base_url_option = click.option(
    "--base-url",
    help="Address of OpenAI's API for this key, such as https://eu.api.openai.com/v1. The key is sent to no "
    "other.  [default: OpenAI's own]",
)
replace_option = click.option(
    "--replace-organization",
    is_flag=True,
    help="Switch to the key's organization: the old one's days before today stay, the new one is fetched "
    "from today on.",
)


@click.command()
@click.option("--user", "user_id", help="Your own id of the user, e.g. acme.")
@click.option("--plan", type=plan_choice, help="Sets refresh interval and history.  [default: trial]")
@click.option("--email", help="Contact email for this connection.")
@click.option("--many", is_flag=True, help="Read lines user,plan,key from the standard input.")
@base_url_option
@replace_option
@json_option
def connect(
    user_id: str | None,
    plan: str | None,
    email: str | None,
    many: bool,
    base_url: str | None,
    replace_organization: bool,
    as_json: bool,
) -> None:
    """Connect a user's OpenAI organization.

    Prompts for the Admin key without showing it, or reads it from the standard input; never pass it as an
    argument. OpenAI checks the key before it is stored, encrypted. An Owner or Admin of the organization
    creates one under Settings → Organization → Admin keys.

    \b
      finora connect --user acme --plan growth
      pass show openai/admin | finora connect --user acme --plan growth
      finora connect --many < users.csv
    """
    if many:
        if user_id or plan or email or replace_organization:
            raise click.UsageError(
                "--many reads users, plans and keys from the standard input. "
                "Omit --user, --plan, --email and --replace-organization."
            )
        _connect_many(standard_input(), base_url, as_json)
        return
    if not user_id:
        raise click.UsageError("Missing --user ID (or --many for many).")
    options = {"plan": plan, "email": email, "replace_organization": replace_organization}
    with plain_errors():
        connection = _connect(user_id, _read_key(), base_url, options)
    _report(connection, "Connected", as_json)


def _connect(user_id: str, key_text: str, base_url: str | None, options: dict[str, Any]) -> "Connection":
    from finora_pipeline.accounts import onboarding

    async def run(accounts: Any, client: Any) -> "Connection":
        return await onboarding.connect(accounts, client, user_id, key_text, **options)

    return _with_openai(run, base_url, user_id)


@click.command()
@user_option
@base_url_option
@click.option("--keep-key", is_flag=True, help="Check and bind the stored key instead of a new one.")
@replace_option
@json_option
def update(
    user_id: str, base_url: str | None, keep_key: bool, replace_organization: bool, as_json: bool
) -> None:
    """Replace a user's Admin key with a new one of the same organization.

    The old key stays in use until the new one has been checked and stored.
    """
    if keep_key and not base_url:
        raise click.UsageError("--keep-key binds the stored key to an address. Give it with --base-url.")
    key_text = None if keep_key else _read_key()
    with plain_errors():
        from finora_pipeline.accounts import onboarding

        async def run(accounts: Any, client: Any) -> "Connection":
            text = key_text
            if text is None:
                text = accounts.connections.key_ring([user_id]).key_of(user_id).reveal()
            return await onboarding.update(
                accounts, client, user_id, text, replace_organization=replace_organization
            )

        connection = _with_openai(run, base_url, user_id)
    _report(connection, "Updated", as_json)


@click.command()
@user_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(user_id: str, yes: bool, as_json: bool) -> None:
    """Delete a user's stored key. Past cost data stays."""
    from finora_pipeline.accounts.model import AccountsError

    with plain_errors():
        accounts = _accounts()
        known = accounts.connections.get(user_id)
        if known is None or known.status == "removed":
            raise AccountsError(f"User {user_id} has no OpenAI connection to remove.")
        if not yes:
            click.confirm(
                f"Delete the stored OpenAI key of {user_id}? This cannot be undone; past cost data stays.",
                abort=True,
                err=True,
            )
        connection = accounts.connections.remove(user_id)
    _report(connection, "Removed", as_json)


@click.command()
@click.argument("user_id")
@click.argument("plan_name", metavar="PLAN", type=plan_choice)
def plan(user_id: str, plan_name: str) -> None:
    """Move a user to another plan: trial, growth, scale or enterprise."""
    with plain_errors():
        chosen = _accounts().users.set_plan(user_id, plan_name)
    kept = f"{chosen.history_days} days" if chosen.history_days else "all"
    output.print(f"{user_id} is on {chosen.name}: refreshed {chosen.interval_text}, {kept} of history kept.")


@click.command()
@click.option("--user", "user_id", help="Only this user.")
@click.option("--attention", is_flag=True, help="Only connections that need attention.")
@json_option
def status(user_id: str | None, attention: bool, as_json: bool) -> None:
    """Show the connections: state, last and next refresh, and what to do if one needs attention."""
    with plain_errors():
        accounts = _accounts()
        found = accounts.connections.all(user_ids=[user_id] if user_id else None)
        shown = [c for c in found if not attention or c.status == "needs attention"]
        last_failures = accounts.refreshes.last_failures([c.user_id for c in shown])
        parts = accounts.refreshes.part_failures([c.user_id for c in shown])
        _print_conditions()
    if user_id and not found:
        raise click.ClickException(f"User {user_id} has no connection. finora connect creates one.")
    if as_json:
        print_json(
            [
                _as_json(c)
                | {
                    "last_failure": last_failures.get(c.user_id),
                    "parts_not_given": [asdict(part) for part in parts.get(c.user_id, ())],
                }
                for c in shown
            ]
        )
    elif shown:
        _print_connections(shown, last_failures, parts)
    else:
        output.print(
            "No connections yet. finora connect creates one."
            if not found
            else "No connection needs attention."
        )


def _print_connections(
    shown: "Sequence[Connection]",
    last_failures: "Mapping[str, str]",
    parts: "Mapping[str, Sequence[PartFailure]]",
) -> None:
    table = Table("User", "Plan", "State", "Key", "Refreshed (UTC)", "Next by (UTC)", box=SIMPLE_HEAD)
    todos = Table("User", "What to do", box=SIMPLE_HEAD)
    notes = Table("User", "Not returned by OpenAI", "Since (UTC)", "Next try (UTC)", box=SIMPLE_HEAD)
    now = datetime.now(UTC)
    colors = {"active": "green", "needs attention": "yellow", "removed": "dim"}
    for c in shown:
        todo = c.status_reason or last_failures.get(c.user_id) or c.expiry_warning(now) or ""
        for part in parts.get(c.user_id, ()):
            notes.add_row(*row(c.user_id, part.message, moment(part.since), moment(part.retry_at)))
        state = f"[{colors[c.status]}]{c.status}[/]"
        key = "deleted" if c.status == "removed" else c.key_hint
        moments = row(moment(c.last_refresh_at), moment(c.next_refresh_at))
        table.add_row(*row(c.user_id, c.plan.name), state, *row(key), *moments)
        if todo:
            todos.add_row(*row(c.user_id, todo))
    output.print(table)
    if todos.rows:
        output.print(todos)
    if notes.rows:
        output.print(notes)


def _print_conditions() -> None:
    """Print the conditions of the data folder on the standard error output."""
    from finora_pipeline.alerts.conditions import of_installation
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.database import Warehouse

    settings = Settings.from_environment()
    for condition in of_installation(Warehouse(settings.home), settings.dagster_home, datetime.now(UTC)):
        messages.print(condition.message, style="yellow", markup=False)


def _connect_many(lines: TextIO, base_url: str | None, as_json: bool) -> None:
    from finora_pipeline.accounts import onboarding

    wanted, outcomes = _read_lines(lines)

    async def run(accounts: Any, client: Any) -> None:
        checked = failed = 0
        with progress("Checking keys") as show:
            done = onboarding.connect_many(accounts, client, list(wanted.values()))
            numbers = list(wanted)
            async for index, outcome in done:
                line = wanted[numbers[index]]
                if isinstance(outcome, str):
                    failed += 1
                    outcomes[numbers[index]] = (redact(line.user_id), "failed", outcome)
                else:
                    outcomes[numbers[index]] = (line.user_id, "connected", outcome.key_hint)
                checked += 1
                show(checked, len(wanted), failed)

    with plain_errors():
        _with_openai(run, base_url)
    bad = sum(state == "failed" for _, state, _ in outcomes.values())
    if as_json:
        names = ("line", "user", "outcome", "detail")
        rows = [(number, *outcome) for number, outcome in sorted(outcomes.items())]
        print_json([dict(zip(names, cells, strict=True)) for cells in rows])
    else:
        table = Table("Line", "User", "Outcome", "")
        for number, (user_id, state, detail) in sorted(outcomes.items()):
            color = "red" if state == "failed" else "green"
            table.add_row(*row(str(number), user_id), f"[{color}]{state}[/]", *row(detail))
        output.print(table)
    messages.print(f"{len(outcomes) - bad} connected, {bad} skipped.")
    if bad:
        sys.exit(1)


def _read_lines(lines: TextIO) -> tuple[dict[int, "NewConnection"], dict[int, tuple[str, str, str]]]:
    """Well-formed lines by number, and an outcome for each other line, which never repeats its text."""
    from finora_pipeline.accounts.onboarding import NewConnection

    wanted: dict[int, NewConnection] = {}
    outcomes: dict[int, tuple[str, str, str]] = {}
    for number, line in enumerate(lines, 1):
        # Parsed line by line, so that an open quotation mark does not swallow later lines.
        try:
            (fields,) = csv.reader([line.removeprefix("\ufeff")])
        except csv.Error:
            outcomes[number] = ("?", "failed", "A line must be user,plan,key in CSV.")
            continue
        cells = [field.strip() for field in fields]
        if not any(cells) or cells[0].startswith("#") or cells == ["user", "plan", "key"]:
            continue
        if len(cells) != 3:
            outcomes[number] = ("?", "failed", "A line must be user,plan,key with exactly two commas.")
        else:
            wanted[number] = NewConnection(*cells)
    return wanted, outcomes


def _read_key() -> str:
    lines = standard_input()
    if lines.isatty():
        return click.prompt("OpenAI Admin key", hide_input=True, prompt_suffix=" (not shown): ")
    return lines.read()


def _accounts() -> Any:
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.settings import Settings

    return accounts_of(Settings.from_environment())


def _with_openai(run: Any, base_url: str | None, user_id: str | None = None) -> Any:
    """Run a coroutine function with the accounts and a client of OpenAI at the address of the user's key."""
    from finora_pipeline.accounts.model import OtherOrganization
    from finora_pipeline.accounts.onboarding import CHECK_LIMITS, address_to_check
    from finora_pipeline.openai_admin.client import open_client
    from finora_pipeline.settings import Settings

    accounts = _accounts()
    known = accounts.connections.get(user_id) if user_id else None
    address = address_to_check(base_url, known, Settings.from_environment().openai_base_url)

    async def main() -> Any:
        async with open_client(str(address), CHECK_LIMITS) as client:
            return await run(accounts, client)

    try:
        return asyncio.run(main())
    except OtherOrganization as error:
        raise OtherOrganization(f"{error} To switch, use --replace-organization.") from None


def _report(connection: "Connection", verb: str, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(connection))
        return
    if connection.status == "removed":
        output.print(f"{verb} {connection.user_id}: the key is deleted, past cost data stays.")
        return
    plan = connection.plan
    output.print(
        f"[green]{verb}[/] {connection.user_id} ({connection.key_hint}), plan {plan.name}: "
        f"refreshed {plan.interval_text}."
    )
    messages.print(
        f"[dim]finora up fetches it now; without it: finora refresh --user {connection.user_id}[/]"
    )


def _as_json(connection: "Connection") -> dict[str, Any]:
    return {
        "user_id": connection.user_id,
        "email": connection.email,
        "plan": connection.plan.name,
        "status": str(connection.status),
        "status_reason": connection.status_reason,
        "status_since": connection.status_since.isoformat(),
        "key_hint": None if connection.status == "removed" else connection.key_hint,
        "organization_id": connection.organization.organization_id,
        "base_url": connection.base_url,
        "key_expires_at": connection.key_expires_at,
        "given_from": connection.given_from,
        "connected_at": connection.connected_at.isoformat(),
        "history_from": connection.history_from,
        "last_refresh_at": connection.last_refresh_at,
        "next_refresh_at": connection.next_refresh_at,
    }
