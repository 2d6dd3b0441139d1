"""finora up: everything that has to run, under one process."""

import click

from finora_pipeline.cli.terminal import log_to_terminal


@click.command()
@click.option("--port", default=3000, show_default=True, help="Loopback port of the Dagster UI.")
@click.option("--health-port", default=3001, show_default=True, help="Loopback port of /health and /metrics.")
def up(port: int, health_port: int) -> None:
    """Serve the installation: Dagster's UI, daemon and code server, with schedules on, until Ctrl-C.

    A process that ends by itself is started again. /health answers 200 while all is well and 503 otherwise
    (/health?wait=60 waits for it); /metrics is for Prometheus. Logs lie in $FINORA_HOME/logs, rotated.
    """
    import asyncio

    from finora_pipeline import up as serving
    from finora_pipeline.settings import Settings

    log_to_terminal()
    settings = Settings.from_environment()
    try:
        with serving.only_one(settings.dagster_home):
            asyncio.run(serving.serve(settings, serving.check_port(port), serving.check_port(health_port)))
    except (serving.AlreadyServed, serving.PortTaken) as error:
        raise click.ClickException(str(error)) from None
