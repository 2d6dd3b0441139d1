"""finora up: all servers of an installation, under one process."""

import click

from finora_pipeline.cli.terminal import log_to_terminal, plain_errors, print_addresses
from finora_pipeline.dashboard import DEFAULT_PORT

# 0 uses a free port.
_PORT = click.IntRange(0, 65_535)


@click.command()
@click.option("--port", type=_PORT, default=3000, show_default=True, help="Loopback port of the Dagster UI.")
@click.option(
    "--health-port",
    type=_PORT,
    default=3001,
    show_default=True,
    help="Loopback port of /health and /metrics.",
)
@click.option("--dashboard-host", default="127.0.0.1", show_default=True, help="As finora dashboard --host.")
@click.option(
    "--dashboard-port",
    type=_PORT,
    default=DEFAULT_PORT,
    show_default=True,
    help="As finora dashboard --port.",
)
@click.option("--public-url", help="As finora dashboard --public-url.")
def up(port: int, health_port: int, dashboard_host: str, dashboard_port: int, public_url: str | None) -> None:
    """Serve the installation: dashboard, Dagster's UI and daemon, with schedules on, until Ctrl-C.

    The printed links open the dashboard and Dagster's UI on this machine, as an operator. They hold a token
    that is new at every start, or FINORA_ACCESS_TOKEN.

    A process that exits is started again. /health returns 200 while everything works and 503 otherwise
    (/health?wait=60 waits for it); /metrics is for Prometheus. Logs are in $FINORA_HOME/logs, rotated.
    """
    import asyncio

    from finora_pipeline.dashboard.server import DashboardRefused, prepared
    from finora_pipeline.server import supervisor as serving
    from finora_pipeline.settings import Settings

    log_to_terminal()
    settings = Settings.from_environment()
    try:
        with serving.only_one(settings.dagster_home), plain_errors():
            if dashboard_host == serving.LOOPBACK:
                dashboard_port = serving.check_port(dashboard_port)
            # Checked here, so that the dashboard's process does not fail and restart repeatedly.
            prepared(settings, dashboard_host, dashboard_port, public_url)
            options = serving.DashboardOptions(dashboard_port, dashboard_host, public_url)
            ports = (serving.check_port(port), serving.check_port(health_port))
            if len({dashboard_port, *ports}) < 3:
                raise click.ClickException("--port, --health-port and --dashboard-port must differ.")
            asyncio.run(serving.serve(settings, *ports, options, print_addresses))
    except (serving.AlreadyServed, serving.PortTaken, DashboardRefused) as error:
        raise click.ClickException(str(error)) from None
