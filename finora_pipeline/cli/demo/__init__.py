"""finora demo: the whole installation on simulated data, as started by `make run`."""

import click


@click.command()
@click.option("--once", is_flag=True, help="Stop after the summary.")
@click.option(
    "--real/--simulated", "real", default=None, help="If OPENAI_ADMIN_KEY is set: which OpenAI to use."
)
@click.option("--port", type=int, default=3000, show_default=True, help="Loopback port of the Dagster UI.")
def demo(once: bool, real: bool | None, port: int) -> None:
    """Set up a demo, fetch 90 days, print a summary and serve the Dagster UI until Ctrl-C.

    Starts the OpenAI simulator on loopback and connects one user per plan. A later call reuses them. If
    OPENAI_ADMIN_KEY is set, it offers to connect that organization instead.
    """
    from finora_pipeline.cli.demo.run import run_demo
    from finora_pipeline.cli.terminal import plain_errors

    with plain_errors():
        run_demo(once=once, real=real, ui_port=port)
