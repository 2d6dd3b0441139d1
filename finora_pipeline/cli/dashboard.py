"""finora dashboard, which serves the web pages, and finora login, which manages their logins."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from rich.table import Table

from finora_pipeline.accounts.actors import OPERATORS
from finora_pipeline.cli.terminal import (
    json_option,
    messages,
    moment,
    output,
    plain_errors,
    print_json,
    standard_input,
)
from finora_pipeline.cli.terminal import row as text_row
from finora_pipeline.dashboard import DEFAULT_PORT

if TYPE_CHECKING:
    from finora_pipeline.accounts.logins import Login, Logins
    from finora_pipeline.accounts.store import Accounts

# The second name is that of earlier versions, for scripts.
last_login_option = click.option(
    "--last-login",
    "--opens-pages",
    "removes_last",
    is_flag=True,
    help="Allow removing the last login, after which only the start link opens the pages.",
)


def keep_a_login(logins: "Logins", is_removed: "Callable[[Login], bool]") -> None:
    """Raise `ClickException` if removing these logins would leave none."""
    known = logins.all()
    if known and all(map(is_removed, known)):
        raise click.ClickException(
            "This is the last login. Without one, only the start link on this machine opens the pages. "
            "Add --last-login to remove it."
        )


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), default=DEFAULT_PORT, show_default=True, help="Port to bind."
)
@click.option(
    "--public-url", help="Address that browsers use (https://…) if a proxy forwards to this server."
)
def dashboard(host: str, port: int, public_url: str | None) -> None:
    """Serve the web pages: Settings → API Keys, Overview, Plan.

    The printed link opens them on this machine as an operator. Others sign in (finora login add). For other
    machines the pages need --public-url and a login, or an OpenID Connect provider: FINORA_OIDC_ISSUER,
    FINORA_OIDC_CLIENT_ID, FINORA_OIDC_CLIENT_SECRET. finora up serves them too.
    """
    from finora_pipeline.cli.terminal import log_to_terminal, print_link
    from finora_pipeline.dashboard.security.access import Access
    from finora_pipeline.dashboard.server import DashboardRefused, serve
    from finora_pipeline.settings import Settings

    log_to_terminal()
    access = Access.from_environment()
    print_link("Dashboard", public_url or access.link(f"http://{host}:{port}"))
    with plain_errors():
        try:
            serve(Settings.from_environment(), host, port, public_url, access)
        except DashboardRefused as error:
            raise click.ClickException(str(error)) from None


@click.group()
def login() -> None:
    """Manage logins of the web pages: add, list, totp, sign-out, remove."""


@login.command()
@click.argument("name")
@click.option("--user", "user_id", help="Sees this user's pages.")
@click.option("--operator", is_flag=True, help="Sees every user's pages and may change plans.")
@click.option("--no-password", is_flag=True, help="Signs in only through the identity provider.")
def add(name: str, user_id: str | None, operator: bool, no_password: bool) -> None:
    """Create a login NAME (an e-mail address), or replace it; its open sessions end.

    The password comes from a hidden prompt or the standard input.
    """
    if bool(user_id) == operator:
        raise click.UsageError("Give either --user ID or --operator.")
    with plain_errors():
        accounts = _accounts()
        password = None if no_password else _password()
        if user_id:
            user_id = accounts.users.add(user_id)
        made = accounts.logins.save(name, user_id=user_id, password=password)
    messages.print(f"{made.name} may sign in and sees {made.user_id or 'every user'}.", markup=False)


@login.command("list")
@json_option
def list_logins(as_json: bool) -> None:
    """List the logins."""
    with plain_errors():
        found = _accounts().logins.all()
    if as_json:
        print_json(
            [{"name": one.name, "user": one.user_id, "operator": one.is_operator,
              "password": one.has_password, "second_factor": one.has_second_factor,
              "created_at": one.created_at} for one in found]
        )  # fmt: skip
        return
    table = Table("Name", "Sees", "Signs in by", "Since")
    for one in found:
        by = "password" if one.has_password else "identity provider"
        by += " and code" if one.has_second_factor else ""
        table.add_row(*text_row(one.name, one.user_id or "every user", by, moment(one.created_at)))
    output.print(table)


@login.command()
@click.argument("name")
@last_login_option
def remove(name: str, removes_last: bool) -> None:
    """Remove a login and end its sessions."""
    with plain_errors():
        logins = _accounts().logins
        if not removes_last:
            keep_a_login(logins, lambda one: one.name == name.strip().lower())
        logins.remove(name)
    messages.print(f"{name} can no longer sign in.", markup=False)


@login.command()
@click.argument("name")
@click.option("--off", is_flag=True, help="Turn codes off, for example after a lost phone.")
def totp(name: str, off: bool) -> None:
    """Require a code of an authenticator app in addition to the password; open sessions end.

    Prints the secret once. Enter it into the app, or scan the address as a QR code.
    """
    with plain_errors():
        accounts = _accounts()
        found = accounts.logins.get(name)
        if found is None:
            raise click.ClickException(f"No login is named {name}.")
        second_factor = accounts.second_factor
        if off:
            second_factor.turn_off(found.name)
            accounts.audit.note(found.user_id or OPERATORS, "second factor off", found.name)
            messages.print(f"{found.name} signs in without a code.", markup=False)
            return
        made = second_factor.turn_on(found.name)
        accounts.audit.note(found.user_id or OPERATORS, "second factor on", found.name)
    click.echo(f"Secret: {made.secret}")
    click.echo(f"Address: {made.address}")
    messages.print(f"{found.name} signs in with password and code.", markup=False)


@login.command("sign-out")
@click.argument("name")
def sign_out(name: str) -> None:
    """End every open session of a login."""
    with plain_errors():
        logins = _accounts().logins
        if logins.get(name) is None:
            raise click.ClickException(f"No login is named {name}.")
        ended = logins.close_sessions(name)
    messages.print(f"Ended {ended} sessions of {name}.", markup=False)


def _accounts() -> "Accounts":
    from finora_pipeline.accounts.store import accounts_of
    from finora_pipeline.settings import Settings

    return accounts_of(Settings.from_environment())


def _password() -> str:
    lines = standard_input()
    if lines.isatty():
        return click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    password = lines.readline().rstrip("\r\n")
    if "\N{REPLACEMENT CHARACTER}" in password:
        raise click.ClickException("The password is not valid UTF-8.")
    return password
