"""Dagster's own processes: their commands, the daemon's heartbeat, and the web server's app."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget
from dagster._daemon.controller import all_daemons_live
from dagster._utils.log import configure_loggers
from dagster_webserver.app import create_app_from_workspace_process_context
from dagster_webserver.version import __version__
from starlette.types import ASGIApp

# A working daemon sends a heartbeat every half minute.
HEARTBEAT_SECONDS = 120
# Dagster's defaults for a web server: limits of a statement and a connection, number of connections.
STATEMENT_MILLISECONDS = 15_000
CONNECTION_SECONDS = 3_600
MOST_CONNECTIONS = 20
POLL_MILLISECONDS = 2_000


def code_server_command(socket: Path, location: str) -> tuple[str, ...]:
    """Module and arguments of the process that executes the definitions.

    Not `dagster code-server`, which does not notice when its child process exits.
    """
    return (
        *("dagster", "api", "grpc", "--socket", str(socket), "-m", "finora_pipeline.definitions"),
        *("--location-name", location, "--use-python-environment-entry-point", "--log-format", "json"),
    )


def daemon_command(workspace: Path) -> tuple[str, ...]:
    """Module and arguments of the daemon: `dagster-daemon run`."""
    return ("dagster._daemon", "run", "-w", str(workspace), "--log-format", "json")


def daemon_is_alive() -> bool:
    """Whether every daemon of the instance sent a heartbeat within `HEARTBEAT_SECONDS`."""
    with dg.DagsterInstance.get() as instance:
        return all_daemons_live(instance, heartbeat_tolerance_seconds=HEARTBEAT_SECONDS)


@contextmanager
def web_app(
    workspace: Path, path_prefix: str, lifespan: Callable[[object], AbstractAsyncContextManager[None]]
) -> Iterator[ASGIApp]:
    """The app that `dagster-webserver` serves, within the block."""
    configure_loggers(formatter="json", log_level="INFO")
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(STATEMENT_MILLISECONDS, CONNECTION_SECONDS, MOST_CONNECTIONS)
        target = WorkspaceFileTarget([str(workspace)])
        with WorkspaceProcessContext(instance, target, version=__version__) as context:
            yield create_app_from_workspace_process_context(
                context, path_prefix, POLL_MILLISECONDS, lifespan=lifespan
            )
