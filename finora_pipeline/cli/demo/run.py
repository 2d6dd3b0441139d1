"""The demo: a simulated OpenAI, one user per plan, 90 days of history, the Dagster UI.

With a real Admin key in the environment it can connect the real organization instead.
"""

import asyncio
import json
import os
import shutil
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import click
from rich.panel import Panel
from rich.table import Table

from finora_pipeline.accounts import onboarding
from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.assets.metadata import dollars
from finora_pipeline.cli import runs
from finora_pipeline.cli.terminal import fetch_progress, log_to_terminal, messages, output, print_addresses
from finora_pipeline.dashboard import DEFAULT_PORT
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator import OrganizationSpec, SimulatedOrganization
from finora_pipeline.openai_simulator.process import in_own_process
from finora_pipeline.plans import PLANS
from finora_pipeline.reading import connect as connect_reader
from finora_pipeline.server.supervisor import (
    AlreadyServed,
    DashboardOptions,
    PortTaken,
    check_port,
    only_one,
    serve,
)
from finora_pipeline.settings import BASE_URL_FILE, Settings
from finora_pipeline.warehouse.kpis import DEFINITIONS

DEMO_DAYS = 90
KEY_VARIABLE = "OPENAI_ADMIN_KEY"
REAL_USER = "my-company"
# Records the first day of the demo's history, so that later calls simulate the same organizations.
MARKER = "demo.json"
QUESTION = (
    "SELECT model, sum(amount_usd) AS usd, sum(input_tokens + output_tokens) AS tokens "
    "FROM daily_model_costs GROUP BY model ORDER BY usd DESC"
)


def run_demo(*, once: bool, real: bool | None, ui_port: int) -> None:
    """Run the demo to its end. Raises `AccountsError` and the errors of a key check."""
    settings = Settings.from_environment()
    marker = settings.home / MARKER
    with ExitStack() as stack:
        if not once:
            try:
                stack.enter_context(only_one(settings.dagster_home))
            except AlreadyServed as error:
                raise click.ClickException(str(error)) from None
        if _wants_real(real):
            if marker.exists():
                raise AccountsError(
                    f"The data folder {settings.home} holds the demo. Set FINORA_HOME to another folder "
                    "for a real organization."
                )
            _connect_real(settings)
        else:
            if not marker.exists() and accounts_of(settings).connections.all():
                raise AccountsError(
                    f"The data folder {settings.home} holds real connections. Set FINORA_HOME to another "
                    "folder for the demo."
                )
            since = _since(marker)
            options = ("--since", since.isoformat(), "--users", str(len(PLANS)))
            base_url = stack.enter_context(in_own_process(*options))
            (settings.home / BASE_URL_FILE).write_text(base_url + "\n")
            settings = replace(settings, openai_base_url=base_url)
            _connect_demo_users(settings, since)
        result = _refresh(settings)
        _print_summary(settings)
        if not result.succeeded:
            raise click.ClickException(f"The run {result.run_id} failed. The Dagster UI shows where.")
        if not once:
            # The key is stored encrypted, so child processes must not inherit it.
            os.environ.pop(KEY_VARIABLE, None)
            log_to_terminal()
            dashboard = DashboardOptions(_free_port(DEFAULT_PORT))
            ports = (_free_port(ui_port), _free_port(ui_port + 1))
            asyncio.run(serve(settings, *ports, dashboard, print_addresses))


def _wants_real(real: bool | None) -> bool:
    if not os.environ.get(KEY_VARIABLE):
        if real:
            raise AccountsError(f"Set {KEY_VARIABLE} to the Admin key of your organization first.")
        return False
    if real is None and sys.stdin.isatty():
        return click.confirm(f"{KEY_VARIABLE} is set. Connect that organization instead of the demo?")
    if real is None:
        messages.print(f"{KEY_VARIABLE} is set, but this is the demo. Use ARGS=--real to connect it.")
    return bool(real)


def _connect_real(settings: Settings) -> None:
    accounts = accounts_of(settings)
    if accounts.connections.get(REAL_USER):
        return
    key_text = os.environ[KEY_VARIABLE]

    async def connect() -> None:
        address = onboarding.address_to_check(None, None, settings.openai_base_url)
        async with open_client(str(address), onboarding.CHECK_LIMITS) as client:
            await onboarding.connect(accounts, client, REAL_USER, key_text, plan="growth")

    asyncio.run(connect())
    output.print(f"Connected your organization as user {REAL_USER}, plan growth.")


def _since(marker: Path) -> date:
    """The first day of the simulated history: chosen at the first run, kept afterwards."""
    if marker.exists():
        return date.fromisoformat(json.loads(marker.read_text())["since"])
    since = datetime.now(UTC).date() - timedelta(days=DEMO_DAYS - 1)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps({"since": since.isoformat()}) + "\n")
    return since


def _connect_demo_users(settings: Settings, since: date) -> None:
    accounts = accounts_of(settings)
    wanted = [
        onboarding.NewConnection(f"demo-{plan}", plan, organization.admin_key)
        for number, plan in enumerate(PLANS)
        if accounts.connections.get(f"demo-{plan}") is None
        for organization in [SimulatedOrganization(OrganizationSpec(number, since=since))]
    ]
    if not wanted:
        output.print("The demo's users are already connected.")
        return
    asyncio.run(_connect_all(accounts, settings.openai_base_url, wanted))


async def _connect_all(accounts: Accounts, base_url: str, wanted: list[onboarding.NewConnection]) -> None:
    async with open_client(base_url, onboarding.CHECK_LIMITS) as client:
        async for index, outcome in onboarding.connect_many(accounts, client, wanted):
            user_id = wanted[index].user_id
            if isinstance(outcome, str):
                raise click.ClickException(f"{user_id} could not be connected: {outcome}")
            output.print(f"Connected {user_id}, refreshed {outcome.plan.interval_text}.")


def _refresh(settings: Settings) -> runs.RunResult:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    window = Window(tomorrow - timedelta(days=DEMO_DAYS), tomorrow)
    accounts = accounts_of(settings)
    users = len(accounts.connections.all())
    return runs.refresh(settings, window, watch=lambda run_id: fetch_progress(accounts, run_id, users))


def _print_summary(settings: Settings) -> None:
    with connect_reader(settings.published_database) as connection:
        (users, days, rows, total, per_1k) = connection.execute(
            f"""
            SELECT
                count(DISTINCT user_id), count(DISTINCT date), count(*), coalesce(sum(amount_usd), 0),
                (
                    SELECT {DEFINITIONS["cost_per_1k_tokens"]}
                    FROM (
                        SELECT
                            sum(token_priced_usd) FILTER (tokens > 0) AS covered,
                            sum(tokens)::BIGINT AS unit_tokens
                        FROM (
                            SELECT *, coalesce(input_tokens, 0) + coalesce(output_tokens, 0) AS tokens
                            FROM daily_model_costs
                            WHERE cost_service <> 'moderation'
                        )
                    ) AS this
                )
            FROM daily_costs
            """
        ).fetchall()[0]
    table = Table.grid(padding=(0, 2))
    table.add_row("users", f"{users}")
    table.add_row("days", f"{days}")
    table.add_row("cost rows", f"{rows:,}")
    table.add_row("total", f"[bold]{dollars(total)}[/]")
    table.add_row("per 1k tokens", f"${per_1k:.6f}" if per_1k is not None else "–")
    table.add_row("DuckDB file", str(settings.published_database))
    output.print(Panel(table, title="Published", expand=False))
    # Not wrapped, so that it can be copied.
    output.print(f'Try: {_command()} sql "{QUESTION}"', soft_wrap=True)


def _command() -> str:
    """The command that calls `finora` in this shell: its name if it is on the path, else its file."""
    if shutil.which("finora"):
        return "finora"
    return os.path.relpath(Path(sys.executable).with_name("finora"))


def _free_port(wanted: int) -> int:
    """The wanted loopback port, or a free one if it is taken."""
    try:
        return check_port(wanted)
    except PortTaken:
        return check_port(0)
