"""finora up: the dashboard and Dagster's code server, daemon and web server under one process, watched and
started again.

Beside them a small page of the process's own: /health and /metrics. All bind the loopback address and stand
behind the guard of the pages, but for the code server: its socket is a file that this account alone can open.
"""

import asyncio
import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.dashboard import http_server
from finora_pipeline.dashboard.security.access import TOKEN_FILE, Access
from finora_pipeline.dashboard.security.guard import Guard, Names
from finora_pipeline.data_folder.private_files import open_lock, secure_home
from finora_pipeline.instance.config import drift
from finora_pipeline.instance.home import EVENT_BATCHES, LOCATION, check_record, prepare_instance
from finora_pipeline.instance.processes import code_server_command, daemon_command, daemon_is_alive
from finora_pipeline.server.dagster_ui import PUBLIC_PATH
from finora_pipeline.server.docs_site import docs_routes
from finora_pipeline.server.metrics import metrics_page
from finora_pipeline.settings import ACCESS_TOKEN, DOCS_URL, Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.rebuild import bring_up_to_date

LOOPBACK = "127.0.0.1"
LOG_BYTES = 10_000_000
LOGS_KEPT = 5
# A child that ends by itself is started again after this long, doubled each time up to the most.
FIRST_PAUSE_SECONDS = 1.0
MOST_PAUSE_SECONDS = 60.0
# A child that has run for so long has recovered.
STEADY_SECONDS = 120.0
START_SECONDS = 90.0
STOP_SECONDS = 20.0
MOST_WAIT_SECONDS = 120.0
# The shortest limit of the systems that this runs on, macOS's, less its final NUL.
LONGEST_SOCKET_PATH = 103
_log = logging.getLogger("finora.up")


class AlreadyServed(Exception):
    """Another process serves this data folder; Dagster allows one daemon an instance."""


class PortTaken(Exception):
    """A port is in use; the message says which."""


@contextmanager
def only_one(dagster_home: Path) -> Iterator[None]:
    """Holds the right to run a daemon on this instance. Raises `AlreadyServed`."""
    dagster_home.mkdir(parents=True, exist_ok=True)
    descriptor = open_lock(dagster_home / "serve.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise AlreadyServed("Another finora up or finora demo serves this data folder already.") from None
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
                f"Port {port} of {LOOPBACK} is in use: end what uses it, or choose another."
            ) from None
        return probe.getsockname()[1]


@contextmanager
def code_socket(folder: Path) -> Iterator[Path]:
    """Where the code server listens: in the private folder, or one of its own where that path is too long.

    It runs whatever it is asked to, without a question: no other account may reach it.
    """
    socket_file = folder / "code.sock"
    if len(os.fsencode(socket_file)) <= LONGEST_SOCKET_PATH:
        yield socket_file
        return
    with TemporaryDirectory(prefix="finora-") as short:
        yield Path(short) / "code.sock"


def environment_of(settings: Settings) -> dict[str, str]:
    """What Dagster's processes need to find the same installation; no access token."""
    own = {name: value for name, value in os.environ.items() if name not in (ACCESS_TOKEN, TOKEN_FILE)}
    return (
        own
        | EVENT_BATCHES
        | {
            "DAGSTER_HOME": str(settings.dagster_home),
            "FINORA_HOME": str(settings.home),
            "OPENAI_BASE_URL": settings.openai_base_url,
            # Dagster announces successors of its commands that are not installed here.
            "PYTHONWARNINGS": "ignore",
            "PYTHONUNBUFFERED": "1",
        }
    )


async def serve(
    settings: Settings,
    ui_port: int,
    health_port: int,
    dashboard: tuple[str, ...],
    announce: Callable[[str, str], None],
) -> None:
    """Serves until SIGINT or SIGTERM; then ends every process it started.

    `dashboard` are the options of finora dashboard, with which the web pages are served. `announce` gets the
    name and the address of each server, which may hold the access token. Raises `SettingsError`.
    """
    access = Access.from_environment()
    secure_home(settings, whole=True)
    prepare_instance(settings)
    check_record(settings)
    accounts = accounts_of(settings)
    _upgrade(settings)
    with code_socket(settings.dagster_home) as code:
        await _serve(settings, accounts, access, ui_port, health_port, dashboard, announce, code)


async def _serve(
    settings: Settings,
    accounts: Accounts,
    access: Access,
    ui_port: int,
    health_port: int,
    dashboard: tuple[str, ...],
    announce: Callable[[str, str], None],
    code_socket: Path,
) -> None:
    workspace = settings.dagster_home / "workspace.yaml"
    location = {"socket": str(code_socket), "location_name": LOCATION}
    workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": location}]}))
    environment = environment_of(settings) | {DOCS_URL: f"http://{LOOPBACK}:{health_port}/docs"}
    logs = settings.home / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    code = code_server_command(code_socket, LOCATION)
    daemon = daemon_command(workspace)
    options = dict(zip(dashboard[::2], dashboard[1::2], strict=True))
    public_url = options.get("--public-url")
    web = ("finora_pipeline.server.dagster_ui", "--port", str(ui_port), "--workspace", str(workspace))
    web += ("--public-url", public_url) if public_url else ()
    token_file = settings.home / "access-token"
    access.write(token_file)
    for_web = environment | {TOKEN_FILE: str(token_file)}
    # Its other end is closed when this process ends, however it ends.
    followed, held = os.pipe()
    children = [
        Child("code-server", code, environment, logs, followed),
        Child("daemon", daemon, environment, logs, followed),
        Child("webserver", web, for_web, logs, followed),
        Child("dashboard", ("finora_pipeline", "dashboard", *dashboard), for_web, logs, followed),
    ]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    page = _page_server(settings, accounts, access, children, health_port)
    page_task = asyncio.create_task(page.serve())
    tasks: list[asyncio.Task[None]] = []
    try:
        for child in children:
            tasks.append(asyncio.create_task(child.keep_running()))
            if child.name == "code-server":
                await _until_listening(partial(asyncio.open_unix_connection, code_socket), stop)
        host, port = options.get("--host", LOOPBACK), options["--port"]
        # A link is printed once it can be opened.
        await asyncio.gather(
            _until_listening(
                partial(asyncio.open_connection, LOOPBACK if host == "0.0.0.0" else host, int(port)), stop
            ),
            _until_listening(partial(asyncio.open_connection, LOOPBACK, ui_port), stop),
        )
        local = f"http://{host}:{port}"
        announce("Dashboard", public_url or access.link(local))
        announce("Dagster UI", access.link(f"http://{LOOPBACK}:{ui_port}"))
        if public_url:
            announce("Dagster UI for others", public_url.rstrip("/") + PUBLIC_PATH)
        announce("Documentation", f"http://{LOOPBACK}:{health_port}/docs/")
        announce("Health and metrics", f"http://{LOOPBACK}:{health_port}/health, /metrics; logs: {logs}")
        await stop.wait()
    finally:
        _log.info("Stopping …")
        # The code server last: the others ask it until they have ended.
        for child, task in reversed(list(zip(children, tasks, strict=False))):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await child.stop()
        page.should_exit = True
        await page_task
        token_file.unlink(missing_ok=True)
        os.close(followed)
        os.close(held)


def _upgrade(settings: Settings) -> None:
    """Brings the data folder of an earlier version up to date, and logs where `dagster.yaml` differs."""
    for difference in drift(settings.dagster_home):
        _log.info("dagster.yaml has a value of its own: %s", difference)
    tenths = 0

    def report(done: int, total: int) -> None:
        nonlocal tenths
        if done * 10 // total > tenths:
            tenths = done * 10 // total
            _log.info("Building the warehouse of this version: %d of %d raw files", done, total)

    if bring_up_to_date(Warehouse(settings.home), report):
        _log.info("The warehouse is built; the next refresh publishes it.")


class Child:
    """A process that is started again whenever it ends by itself; its output goes to a rotated log file.

    It ends with this process, which holds the other end of the pipe `followed` (`server.parent_watch`).
    """

    def __init__(
        self,
        name: str,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        logs: Path,
        followed: int,
    ) -> None:
        self.name = name
        self.starts = 0
        self._arguments = arguments
        self._environment = environment
        self._followed = followed
        self._process: asyncio.subprocess.Process | None = None
        # Of this start and of earlier ones whose own children, as runs are, have not ended yet.
        self._outputs: dict[int, asyncio.Task[None]] = {}
        self._log = RotatingFileHandler(logs / f"{name}.log", maxBytes=LOG_BYTES, backupCount=LOGS_KEPT)
        self._log.setFormatter(logging.Formatter("%(message)s"))

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process and self.is_running else None

    async def keep_running(self) -> None:
        """Runs the process for ever."""
        pause = FIRST_PAUSE_SECONDS
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                self._process = await self._started()
            except OSError as error:
                ended = f"could not be started ({error.strerror})"
            else:
                ended = f"ended with code {await self._process.wait()}"
            if loop.time() - began >= STEADY_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            _log.warning("%s %s; starting it again in %.0f s.", self.name, ended, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, MOST_PAUSE_SECONDS)

    async def _started(self) -> asyncio.subprocess.Process:
        # A pipe of its own making: of asyncio's the end would be waited for, and runs that outlive their code
        # server hold it.
        output, written = os.pipe()
        try:
            # A group of its own: Ctrl-C at the terminal reaches this process alone, which ends all in order.
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "finora_pipeline.server.parent_watch",
                *self._arguments,
                env=dict(self._environment),
                stdin=self._followed,
                stdout=written,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(written)
        self.starts += 1
        self._outputs = {pid: copying for pid, copying in self._outputs.items() if not copying.done()}
        self._outputs[process.pid] = asyncio.create_task(self._copy(output))
        return process

    async def _copy(self, output: int) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(output, "rb", 0)
        )
        try:
            while chunk := await reader.read(1 << 16):
                for line in chunk.decode(errors="replace").splitlines():
                    self._log.emit(logging.LogRecord(self.name, logging.INFO, "", 0, line, None, None))
        finally:
            transport.close()

    async def stop(self) -> None:
        """Ends it as Ctrl-C would, its whole group if it does not listen, and what earlier starts left."""
        if self._process and self.is_running:
            self._process.send_signal(signal.SIGINT)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), STOP_SECONDS)
        for process_id, copying in self._outputs.items():
            # While somebody holds the output, the group's number is nobody else's.
            if not copying.done():
                with suppress(ProcessLookupError):
                    os.killpg(process_id, signal.SIGKILL)
        await asyncio.gather(*self._outputs.values(), return_exceptions=True)
        if self._process:
            await self._process.wait()
        self._log.close()


async def _until_listening(
    connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]], stop: asyncio.Event
) -> None:
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


class Health:
    """Whether all processes run and the daemon works, looked at once for all who ask at the same time."""

    def __init__(self, children: list[Child]) -> None:
        self._children = children
        self._look: asyncio.Task[bool] | None = None

    async def is_well(self) -> bool:
        if not all(child.is_running for child in self._children):
            return False
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(run_in_threadpool(daemon_is_alive))
        return await asyncio.shield(self._look)

    def processes(self) -> dict[str, dict[str, bool | int | None]]:
        return {
            child.name: {"running": child.is_running, "pid": child.process_id, "starts": child.starts}
            for child in self._children
        }


def _page_server(
    settings: Settings, accounts: Accounts, access: Access, children: list[Child], port: int
) -> uvicorn.Server:
    state = Health(children)

    async def health(request: Request) -> JSONResponse:
        loop = asyncio.get_running_loop()
        wait = request.query_params.get("wait", "0")
        end = loop.time() + (min(float(wait), MOST_WAIT_SECONDS) if wait.isdecimal() else 0)
        while not (well := await state.is_well()) and loop.time() < end:
            await asyncio.sleep(0.2)
        answer: dict[str, object] = {"status": "ok" if well else "failing"}
        # Under any host name, and so for any page, it answers nothing else.
        if access.has_bearer(request.headers):
            answer["processes"] = state.processes()
        return JSONResponse(answer, 200 if well else 503)

    async def metrics(_: Request) -> Response:
        page = await run_in_threadpool(metrics_page, settings, accounts)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    routes = [Route("/health", health), Route("/metrics", metrics), *docs_routes()]
    guard = Middleware(
        Guard,
        names=Names(allowed=settings.allowed_hosts),
        access=access,
        failure=lambda _: PlainTextResponse("It could not be answered. The log shows why.", 500),
        strict=True,
    )
    app = Starlette(routes=routes, middleware=[guard])
    server = uvicorn.Server(http_server.config(app, port=port))
    # Signals are this module's: uvicorn would end the page alone.
    server.capture_signals = _no_signals
    return server


@contextmanager
def _no_signals() -> Iterator[None]:
    yield
