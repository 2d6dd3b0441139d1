"""finora simulate-openai: the built-in OpenAI simulator by itself."""

from datetime import UTC, datetime, timedelta

import click
from rich.table import Table

from finora_pipeline.cli.terminal import json_option, output, print_json

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
@click.option("--seed", type=int, default=7, show_default=True, help="Other numbers, other companies.")
@click.option("--amounts", type=click.Choice(["text", "number"]), default="text", show_default=True)
@click.option("--freeze-clock", is_flag=True, help="Keep the time of the start: answers never change.")
@click.option(
    "--latency",
    type=click.FloatRange(0, 60),
    default=0.0,
    show_default=True,
    help="Seconds before each answer, as of a far network.",
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
    """Serve OpenAI's organization API over made-up organizations, until Ctrl-C.

    Point finora or the official SDK to it with OPENAI_BASE_URL. The side door
    /_simulator/organizations lists the organizations with their keys.
    """
    from finora_pipeline.openai_simulator import OrganizationSpec, Simulator
    from finora_pipeline.openai_simulator.server import base_url, listen, serve

    now = datetime.now(UTC)
    first = since.date() if since else now.date() - timedelta(days=days - 1)
    if first > now.date():
        raise click.BadParameter(f"{first} has not come yet.", param_hint="--since")
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
        raise click.ClickException(f"Port {port} is taken: give another with --port, or 0.") from None
    if as_json:
        print_json({"base_url": base_url(bound), "organizations": users, "since": first})
    else:
        table = Table("Organization", "Admin key (simulated)")
        for organization in simulator.organizations[:KEYS_SHOWN]:
            table.add_row(organization.name, organization.admin_key)
        output.print(table)
        if users > KEYS_SHOWN:
            output.print(f"… and {users - KEYS_SHOWN} more: {base_url(bound)[:-3]}/_simulator/organizations")
        output.print(
            f"Simulated OpenAI since {first}: [bold]OPENAI_BASE_URL={base_url(bound)}[/]  (Ctrl-C ends)"
        )
    serve(simulator, bound)
