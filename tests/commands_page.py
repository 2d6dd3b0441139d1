"""Print the reference of all commands from their `--help`; `make docs` stores it."""

import click
from click.testing import CliRunner

from finora_pipeline.cli import main

INTRODUCTION = """\
# Commands

The `--help` of every command, written by `make docs` and kept true by a test.
"""


def page() -> str:
    parts = [INTRODUCTION]
    for name in ("", *main.list_commands(click.Context(main))):
        arguments = [name, "--help"] if name else ["--help"]
        text = CliRunner().invoke(main, arguments, prog_name="finora", terminal_width=100).output
        title = f"finora {name}".strip()
        parts.append(f"## {title}\n\n```\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
