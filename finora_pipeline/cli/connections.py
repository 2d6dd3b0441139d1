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
    from finora_pipeline.accounts.model import Connection
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
    help="Take the key of another organization: the old one's days before today stay, the new one is read "
    "from today on.",
)


@click.command()
@click.option("--user", "user_id", help="Your own id of the user, e.g. acme.")
@click.option("--plan", type=plan_choice, help="Sets pace and history.  [default: trial]")
@click.option("--email", help="Whom to write to about this connection.")
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

    Asks for the Admin key without showing it, or reads it from the standard input; never give it as an
    argument. The key is checked with OpenAI before it is stored, encrypted. An Owner or Admin of the
    organization creates one under Settings → Organization → Admin keys.

    \b
      finora connect --user acme --plan growth
      pass show openai/admin | finora connect --user acme --plan growth
      finora connect --many < users.csv
    """
    if many:
        if user_id or plan or email or replace_organization:
            raise click.UsageError(
                "--many reads users, plans and keys from the standard input: "
                "leave out --user, --plan, --email and --replace-organization."
            )
        _connect_many(standard_input(), base_url, as_json)
        return
    if not user_id:
        raise click.UsageError("Say whose organization it is: --user ID (or --many for many).")
    key_text = _read_key()
    with plain_errors():
        from finora_pipeline.accounts import onboarding as connections

        async def run(accounts: Any, client: Any) -> "Connection":
            return await connections.connect(
                accounts,
                client,
                user_id,
                key_text,
                plan=plan,
                email=email,
                replace_organization=replace_organization,
            )

        connection = _with_openai(run, base_url, user_id)
    _tell(connection, "Connected", as_json)


@click.command()
@user_option
@base_url_option
@click.option("--keep-key", is_flag=True, help="Check and bind the stored key; asks for none.")
@replace_option
@json_option
def update(
    user_id: str, base_url: str | None, keep_key: bool, replace_organization: bool, as_json: bool
) -> None:
    """Replace a user's Admin key by a fresh one of the same organization.

    The old key keeps working until the new one has been checked and stored.
    """
    if keep_key and not base_url:
        raise click.UsageError("--keep-key binds the stored key to an address: give it with --base-url.")
    key_text = None if keep_key else _read_key()
    with plain_errors():
        from finora_pipeline.accounts import onboarding as connections

        async def run(accounts: Any, client: Any) -> "Connection":
            text = key_text
            if text is None:
                text = accounts.connections.key_ring([user_id]).key_of(user_id).reveal()
            return await connections.update(
                accounts, client, user_id, text, replace_organization=replace_organization
            )

        connection = _with_openai(run, base_url, user_id)
    _tell(connection, "Updated", as_json)


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
                f"Delete the stored OpenAI key of {user_id}? It is gone for good; past cost data stays.",
                abort=True,
                err=True,
            )
        connection = accounts.connections.remove(user_id)
    _tell(connection, "Removed", as_json)


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
    """Show the connections: state, last and next refresh, and what to do where one needs attention."""
    with plain_errors():
        accounts = _accounts()
        found = accounts.connections.all(user_ids=[user_id] if user_id else None)
        shown = [c for c in found if not attention or c.status == "needs attention"]
        last_failure = accounts.refreshes.last_failures([c.user_id for c in shown])
        parts = accounts.refreshes.part_failures([c.user_id for c in shown])
        _print_conditions()
    if user_id and not found:
        raise click.ClickException(f"User {user_id} has no connection; finora connect makes one.")
    if as_json:
        print_json(
            [
                _as_json(c)
                | {
                    "last_failure": last_failure.get(c.user_id),
                    "parts_not_given": [asdict(part) for part in parts.get(c.user_id, ())],
                }
                for c in shown
            ]
        )
        return
    if not shown:
        output.print(
            "No connections yet: finora connect makes one." if not found else "None needs attention."
        )
        return
    table = Table("User", "Plan", "State", "Key", "Refreshed (UTC)", "Next by (UTC)", box=SIMPLE_HEAD)
    todos = Table("User", "What to do", box=SIMPLE_HEAD)
    notes = Table("User", "Not given by OpenAI", "Since (UTC)", "Next try (UTC)", box=SIMPLE_HEAD)
    now = datetime.now(UTC)
    colors = {"active": "green", "needs attention": "yellow", "removed": "dim"}
    for c in shown:
        todo = c.status_reason or last_failure.get(c.user_id) or c.expiry_warning(now) or ""
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
    """What the data folder itself needs, beside the results."""
    from finora_pipeline.alerts.conditions import of_installation
    from finora_pipeline.settings import Settings
    from finora_pipeline.warehouse.database import Warehouse

    settings = Settings.from_environment()
    for condition in of_installation(Warehouse(settings.home), settings.dagster_home, datetime.now(UTC)):
        messages.print(condition.message, style="yellow", markup=False)


def _connect_many(lines: TextIO, base_url: str | None, as_json: bool) -> None:
    from finora_pipeline.accounts import onboarding as connections

    wanted, outcomes = _read_lines(lines)

    async def run(accounts: Any, client: Any) -> None:
        checked = failed = 0
        with progress("Checking keys") as show:
            done = connections.connect_many(accounts, client, list(wanted.values()))
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
        print_json([dict(zip(names, (n, *told), strict=True)) for n, told in sorted(outcomes.items())])
    else:
        table = Table("Line", "User", "Outcome", "")
        for number, (user_id, state, detail) in sorted(outcomes.items()):
            color = "red" if state == "failed" else "green"
            table.add_row(*row(str(number), user_id), f"[{color}]{state}[/]", *row(detail))
        output.print(table)
    messages.print(f"{len(outcomes) - bad} connected, {bad} left out.")
    if bad:
        sys.exit(1)


def _read_lines(lines: TextIO) -> tuple[dict[int, "NewConnection"], dict[int, tuple[str, str, str]]]:
    """The well-formed lines by number, and an outcome for each that is not. Never repeats a line's text."""
    from finora_pipeline.accounts.onboarding import NewConnection

    wanted: dict[int, NewConnection] = {}
    outcomes: dict[int, tuple[str, str, str]] = {}
    for number, line in enumerate(lines, 1):
        # Line by line: an open quotation mark must not swallow those that follow.
        try:
            (fields,) = csv.reader([line.removeprefix("\ufeff")])
        except csv.Error:
            outcomes[number] = ("?", "failed", "A line must be user,plan,key; this one is no CSV.")
            continue
        cells = [field.strip() for field in fields]
        if not any(cells) or cells[0].startswith("#") or cells == ["user", "plan", "key"]:
            continue
        if len(cells) != 3:
            outcomes[number] = ("?", "failed", "A line must be user,plan,key with just two commas.")
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
    """Runs a coroutine function of the accounts and a client of OpenAI at the address for the user's key."""
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
        raise OtherOrganization(f"{error} The option --replace-organization does that.") from None


def _tell(connection: "Connection", verb: str, as_json: bool) -> None:
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
        f"[dim]A running pipeline reads it at once; else: finora refresh --user {connection.user_id}[/]"
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
