"""finora up: one process that starts and supervises the dashboard and Dagster's three processes.

Those are the code server, the daemon and the web server. It serves /health and /metrics itself. All bind the
loopback address behind the dashboard's guard, except the code server: its socket is a file that only this
account can open.
"""

import asyncio
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.dashboard.security.access import TOKEN_FILE, Access
from finora_pipeline.data_folder.private_files import open_lock, secure_home
from finora_pipeline.instance.config import drift
from finora_pipeline.instance.home import EVENT_BATCHES, LOCATION, check_record, prepare_instance
from finora_pipeline.instance.processes import code_server_command, daemon_command
from finora_pipeline.server.child import Child
from finora_pipeline.server.dagster_ui import PUBLIC_PATH
from finora_pipeline.server.health import page_server
from finora_pipeline.settings import ACCESS_TOKEN, DOCS_URL, Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.rebuild import bring_up_to_date

LOOPBACK = "127.0.0.1"
CODE_SERVER = "code-server"
START_SECONDS = 90.0
# The shortest limit of the supported systems, macOS's, less its final NUL.
LONGEST_SOCKET_PATH = 103
_log = logging.getLogger("finora.up")


class AlreadyServed(Exception):
    """Another process serves this data folder; Dagster allows one daemon per instance."""


class PortTaken(Exception):
    """A port is in use; the message says which."""


@contextmanager
def only_one(dagster_home: Path) -> Iterator[None]:
    """Hold the right to run a daemon on this instance within the block. Raises `AlreadyServed`."""
    dagster_home.mkdir(parents=True, exist_ok=True)
    descriptor = open_lock(dagster_home / "serve.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyServed("Another finora up or finora demo already serves this data folder.") from None
    try:
        yield
    finally:
        os.close(descriptor)


def check_port(port: int) -> int:
    """The port, if it can be bound on loopback. Raises `PortTaken`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            raise PortTaken(
                f"Port {port} of {LOOPBACK} is in use. Stop the program that uses it, or choose another port."
            ) from None
        return probe.getsockname()[1]


@contextmanager
def code_socket(folder: Path) -> Iterator[Path]:
    """The code server's socket: in the private folder, or in a temporary one if that path is too long.

    The code server executes any request without authentication, so no other account may reach it.
    """
    socket_file = folder / "code.sock"
    if len(os.fsencode(socket_file)) <= LONGEST_SOCKET_PATH:
        yield socket_file
        return
    with TemporaryDirectory(prefix="finora-") as short:
        yield Path(short) / "code.sock"


def environment_of(settings: Settings) -> dict[str, str]:
    """The environment in which child processes find this installation, without the access token."""
    own = {name: value for name, value in os.environ.items() if name not in (ACCESS_TOKEN, TOKEN_FILE)}
    return (
        own
        | EVENT_BATCHES
        | {
            "DAGSTER_HOME": str(settings.dagster_home),
            "FINORA_HOME": str(settings.home),
            "OPENAI_BASE_URL": settings.openai_base_url,
            # Dagster warns of successors of its commands that are not installed here.
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
    )


@dataclass(frozen=True, slots=True)
class DashboardOptions:
    """The options of `finora dashboard`, with which the pages are served."""

    port: int
    host: str = LOOPBACK
    public_url: str | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options as command-line arguments."""
        arguments = ("--host", self.host, "--port", str(self.port))
        return (*arguments, "--public-url", self.public_url) if self.public_url else arguments

    @property
    def reachable_host(self) -> str:
        """A host under which this machine reaches the pages."""
        return LOOPBACK if self.host == "0.0.0.0" else self.host


@dataclass(frozen=True, slots=True)
class Addresses:
    """Addresses of a running installation. The first two may hold the access token: never log them."""

    dashboard: str
    dagster_ui: str
    public_dagster_ui: str | None
    documentation: str
    health: str
    metrics: str
    logs: Path


async def serve(
    settings: Settings,
    ui_port: int,
    health_port: int,
    dashboard: DashboardOptions,
    announce: Callable[[Addresses], None],
) -> None:
    """Serve until SIGINT or SIGTERM, then stop every process started here.

    Calls `announce` once all servers respond. Raises `SettingsError` and `StorageError`.
    """
    access = Access.from_environment()
    secure_home(settings, whole=True)
    prepare_instance(settings)
    check_record(settings)
    accounts = accounts_of(settings)
    _upgrade(settings)
    stop = _stop_event()
    with (
        code_socket(settings.dagster_home) as code,
        _token_file(access, settings.home / "access-token") as token_file,
        _followed_pipe() as followed,
    ):
        children = _children(settings, ui_port, health_port, dashboard, code, token_file, followed)
        page = page_server(settings, accounts, access, children, health_port)
        page_task = asyncio.create_task(page.serve())
        tasks: list[asyncio.Task[None]] = []
        try:
            for child in children:
                tasks.append(asyncio.create_task(child.keep_running()))
                if child.name == CODE_SERVER:
                    await _until_listening(partial(asyncio.open_unix_connection, code), stop)
            # Links are announced once they can be opened.
            pages = partial(asyncio.open_connection, dashboard.reachable_host, dashboard.port)
            ui = partial(asyncio.open_connection, LOOPBACK, ui_port)
            await asyncio.gather(_until_listening(pages, stop), _until_listening(ui, stop))
            announce(_addresses(access, dashboard, ui_port, health_port, _logs(settings)))
            await stop.wait()
        finally:
            _log.info("Stopping …")
            await _stop(children, tasks)
            page.should_exit = True
            await page_task


def _stop_event() -> asyncio.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextmanager
def _token_file(access: Access, path: Path) -> Iterator[Path]:
    """Write the access token to a file, for the web servers, within the block."""
    access.write(path)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _followed_pipe() -> Iterator[int]:
    """The reading end of a pipe whose other end closes when this process exits or dies."""
    followed, held = os.pipe()
    try:
        yield followed
    finally:
        os.close(followed)
        os.close(held)


def _children(
    settings: Settings,
    ui_port: int,
    health_port: int,
    dashboard: DashboardOptions,
    code: Path,
    token_file: Path,
    followed: int,
) -> list[Child]:
    """The supervised processes in the order of their start."""
    workspace = settings.dagster_home / "workspace.yaml"
    location = {"socket": str(code), "location_name": LOCATION}
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": location}]}))
    logs = _logs(settings)
    logs.mkdir(parents=True, exist_ok=True)
    environment = environment_of(settings) | {DOCS_URL: f"http://{LOOPBACK}:{health_port}/docs"}
    for_web = environment | {TOKEN_FILE: str(token_file)}
    web = ("finora_pipeline.server.dagster_ui", "--port", str(ui_port), "--workspace", str(workspace))
    web += ("--public-url", dashboard.public_url) if dashboard.public_url else ()
    pages = ("finora_pipeline", "dashboard", *dashboard.arguments)
    return [
        Child(CODE_SERVER, code_server_command(code, LOCATION), environment, logs, followed),
        Child("daemon", daemon_command(workspace), environment, logs, followed),
        Child("webserver", web, for_web, logs, followed),
        Child("dashboard", pages, for_web, logs, followed),
    ]


def _addresses(
    access: Access, dashboard: DashboardOptions, ui_port: int, health_port: int, logs: Path
) -> Addresses:
    public_url = dashboard.public_url
    own = f"http://{LOOPBACK}:{health_port}"
    return Addresses(
        dashboard=public_url or access.link(f"http://{dashboard.host}:{dashboard.port}"),
        dagster_ui=access.link(f"http://{LOOPBACK}:{ui_port}"),
        public_dagster_ui=public_url.rstrip("/") + PUBLIC_PATH if public_url else None,
        documentation=f"{own}/docs/",
        health=f"{own}/health",
        metrics=f"{own}/metrics",
        logs=logs,
    )


async def _stop(children: Sequence[Child], tasks: Sequence[asyncio.Task[None]]) -> None:
    # The code server last: the others use it until they have exited.
    for child, task in reversed(list(zip(children, tasks, strict=False))):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await child.stop()


def _logs(settings: Settings) -> Path:
    return settings.home / "logs"


def _upgrade(settings: Settings) -> None:
    """Upgrade the data folder of an earlier version, and log where `dagster.yaml` differs."""
    for difference in drift(settings.dagster_home):
        _log.info("dagster.yaml has a value of its own: %s", difference)
    tenths = 0

    def report(done: int, total: int) -> None:
        nonlocal tenths
        if done * 10 // total > tenths:
            tenths = done * 10 // total
            _log.info("Building this version's warehouse: %d of %d raw files", done, total)

    if bring_up_to_date(Warehouse(settings.home), report):
        _log.info("The warehouse is built; the next refresh publishes it.")


async def _until_listening(
    connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]], stop: asyncio.Event
) -> None:
    """Wait until a server accepts connections, at most `START_SECONDS` or until `stop` is set."""
    loop = asyncio.get_running_loop()
    end = loop.time() + START_SECONDS
    while not stop.is_set() and loop.time() < end:
        try:
            _, writer = await connect()
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
