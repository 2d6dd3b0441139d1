"""finora simulate-openai: the built-in OpenAI simulator on its own."""

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import click
from rich.table import Table

from finora_pipeline.cli.terminal import json_option, output, print_json

if TYPE_CHECKING:
    from finora_pipeline.openai_simulator import Simulator

KEYS_SHOWN = 20


@click.command("simulate-openai")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8765,
    show_default=True,
    help="Loopback port; 0 takes a free one.",
)
@click.option("--users", type=click.IntRange(1, 100_000), default=4, show_default=True, help="Organizations.")
@click.option("--days", type=click.IntRange(1, 4_000), default=90, show_default=True, help="Days of history.")
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d"]), help="First day of the history, instead of --days."
)
@click.option("--seed", type=int, default=7, show_default=True, help="Seed of the simulated data.")
@click.option("--amounts", type=click.Choice(["text", "number"]), default="text", show_default=True)
@click.option(
    "--freeze-clock", is_flag=True, help="Keep the time of the start, so that responses never change."
)
@click.option(
    "--latency",
    type=click.FloatRange(0, 60),
    default=0.0,
    show_default=True,
    help="Seconds before each response.",
)
@click.option("--completions-only", is_flag=True, help="No other services, one API key a project.")
@json_option
def simulate_openai(
    port: int,
    users: int,
    days: int,
    since: datetime | None,
    seed: int,
    amounts: str,
    freeze_clock: bool,
    latency: float,
    completions_only: bool,
    as_json: bool,
) -> None:
    """Serve OpenAI's organization API for simulated organizations, until Ctrl-C.

    Set OPENAI_BASE_URL to use it with finora or the official SDK. The page /_simulator/organizations lists
    the organizations with their keys.
    """
    from finora_pipeline.openai_simulator import OrganizationSpec, Simulator
    from finora_pipeline.openai_simulator.server import base_url, listen, serve

    now = datetime.now(UTC)
    first = since.date() if since else now.date() - timedelta(days=days - 1)
    if first > now.date():
        raise click.BadParameter(f"{first} is in the future.", param_hint="--since")
    small = {"services": False, "keys_per_project": 1} if completions_only else {}
    specs = [OrganizationSpec(number, since=first, seed=seed, **small) for number in range(users)]
    simulator = Simulator(
        specs,
        now=now if freeze_clock else None,
        amounts_as_numbers=amounts == "number",
        latency=latency,
    )
    try:
        bound = listen(port)
    except OSError:
        raise click.ClickException(f"Port {port} is in use. Choose another with --port, or 0.") from None
    if as_json:
        print_json({"base_url": base_url(bound), "organizations": users, "since": first})
    else:
        _print_organizations(simulator, base_url(bound), first)
    serve(simulator, bound)


def _print_organizations(simulator: "Simulator", base_url: str, first: date) -> None:
    table = Table("Organization", "Admin key (simulated)")
    for organization in simulator.organizations[:KEYS_SHOWN]:
        table.add_row(organization.name, organization.admin_key)
    output.print(table)
    more = len(simulator.organizations) - KEYS_SHOWN
    if more > 0:
        output.print(f"… and {more} more: {base_url[:-3]}/_simulator/organizations")
    output.print(f"Simulated OpenAI since {first}: [bold]OPENAI_BASE_URL={base_url}[/]  (Ctrl-C stops it)")
