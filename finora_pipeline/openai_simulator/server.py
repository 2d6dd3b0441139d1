"""Serves a simulator on loopback, in a thread of this process or until Ctrl-C."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from finora_pipeline.openai_simulator.app import Simulator

HOST = "127.0.0.1"


def _server(simulator: Simulator) -> uvicorn.Server:
    config = uvicorn.Config(
        simulator,  # type: ignore[arg-type]
        log_level="critical",
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def listen(port: int = 0) -> socket.socket:
    """A listening loopback socket; port 0 means any free port. Raises `OSError` if it is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
    except OSError:
        bound.close()
        raise
    bound.listen(1024)
    return bound


def base_url(bound: socket.socket) -> str:
    """The `OPENAI_BASE_URL` of the simulator on this socket."""
    return f"http://{HOST}:{bound.getsockname()[1]}/v1"


def serve(simulator: Simulator, bound: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    _server(simulator).run(sockets=[bound])


@contextmanager
def running(simulator: Simulator) -> Iterator[str]:
    """Serve in a thread for the length of the `with` block; yields the base address."""
    bound = listen()
    server = _server(simulator)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        # The socket listens already: requests wait in its backlog until the server is up.
        yield base_url(bound)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        bound.close()
