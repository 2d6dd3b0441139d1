"""Plays a case until Ctrl-C: `python -m tests.cases archived_project_400 --port 8080`."""

from pathlib import Path
from threading import Event

import click

from tests.cases.server import CaseServer, Organization, case_text, playing


@click.command()
@click.argument("file")
@click.option("--port", default=0, help="Port on loopback; 0 takes a free one.")
def main(file: str, port: int) -> None:
    """Serve FILE, a path or the name of a case in this folder, to any key."""
    path = Path(file)
    organization = Organization(path.read_text() if path.is_file() else case_text(path.stem))
    with playing(CaseServer({"*": organization}), port) as server:
        click.echo(f"export OPENAI_BASE_URL={server.base_url}")
        try:
            Event().wait()
        except KeyboardInterrupt:
            click.echo("Ended.")


if __name__ == "__main__":
    main()
