"""`python -m finora_pipeline` is the `finora` command."""

from finora_pipeline.cli import main

main(prog_name="finora")
