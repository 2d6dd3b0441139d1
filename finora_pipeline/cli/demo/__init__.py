"""finora demo: everything at once, from a simulated OpenAI to the Dagster UI; what `make run` runs."""

import click


@click.command()
@click.option("--once", is_flag=True, help="Stop after the summary.")
@click.option("--real/--simulated", "real", default=None, help="With OPENAI_ADMIN_KEY set: which OpenAI.")
@click.option("--port", type=int, default=3000, show_default=True, help="Loopback port of the Dagster UI.")
def demo(once: bool, real: bool | None, port: int) -> None:
    """Set up a demo, fetch 90 days, print a summary and serve the Dagster UI until Ctrl-C.

    Starts the OpenAI simulator on loopback and connects a user of each plan. Run again, it reuses what is
    there. With OPENAI_ADMIN_KEY set it offers to connect that organization instead.
    """
    from finora_pipeline.cli.demo.run import run_demo
    from finora_pipeline.cli.terminal import plain_errors

    with plain_errors():
        run_demo(once=once, real=real, ui_port=port)
