"""Slow, silent and idle clients of the HTTP server do not block others."""

import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from finora_pipeline.dashboard import http_server
from finora_pipeline.dashboard.http_server import BoundedConnection, most_connections, raise_file_limit
from finora_pipeline.openai_simulator.server import listen
from tests.dashboard.served import on_loopback

PATIENCE = 30
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Impatient(BoundedConnection):
    request_seconds = 0.1
    stalled_seconds = 0.1


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(await request.body() or b"ok")


async def refuse(_: Request) -> PlainTextResponse:
    return PlainTextResponse("no", 403)


async def endless(_: Request) -> StreamingResponse:
    def pieces() -> Iterator[bytes]:
        while True:
            yield b"x" * 1_000_000

    return StreamingResponse(pieces())


APP = Starlette(
    routes=[
        Route("/", echo, methods=["GET", "POST"]),
        Route("/refuse", refuse, methods=["POST"]),
        Route("/endless", endless),
    ]
)


@contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), PATIENCE) as client:
        yield client


def received(client: socket.socket) -> bytes:
    """Receive until the server closes the connection."""
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def send_for_ever(client: socket.socket, piece: bytes) -> None:
    while True:
        client.sendall(piece)


@pytest.fixture(scope="module")
def impatient() -> Iterator[str]:
    with on_loopback(APP, listen(), http=Impatient, timeout_keep_alive=PATIENCE) as url:
        yield url


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"", 0),
        (b"G", 0),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", 0),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n", 0),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", 0),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 0),
        # The complete request is answered, with or without half of the next.
        (GET + b"GET / HT", 1),
        (GET + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", 1),
        (GET + GET + b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", 2),
    ],
)
def test_a_half_sent_request_times_out(sent: bytes, answers: int, impatient: str):
    with connected(impatient) as client:
        client.sendall(sent)
        assert received(client).count(b"HTTP/1.1 200") == answers


def test_a_dripping_body_times_out(impatient: str):
    with connected(impatient) as client:
        client.sendall(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        # Each byte is in time; the whole is not.
        with pytest.raises(ConnectionError):
            send_for_ever(client, b"x")


def test_an_unread_response_times_out(impatient: str):
    with connected(impatient) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        with pytest.raises(ConnectionError):
            send_for_ever(client, b"\r\n")


def test_an_idle_connection_stays_for_the_next_request(impatient: str):
    with connected(impatient) as client:
        for _ in range(3):
            client.sendall(GET)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_idle_connections_close_for_new_ones():
    with on_loopback(APP, listen(), limit_concurrency=8) as url, ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(30)]
        for client in idle:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for _ in range(3):
            with httpx.Client(timeout=PATIENCE) as client:
                assert client.get(url).text == "ok"
        # The oldest connection was closed.
        assert received(idle[0]) == b""


def test_two_host_headers_are_refused():
    with on_loopback(APP, listen()) as url, connected(url) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nHost: evil.example\r\n\r\n")
        answer = received(client)
    assert answer.startswith(b"HTTP/1.1 400")
    for header in (b"content-security-policy: default-src 'none'", b"x-frame-options: DENY"):
        assert header in answer


def test_the_limit_of_open_files_is_raised_to_the_machines():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raise_file_limit() >= soft
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
    assert (most_connections(256), most_connections(64), most_connections(10_000)) == (156, 16, 1_000)
    # In another process with a lowered limit.
    program = (
        "import resource; from finora_pipeline.dashboard.http_server import raise_file_limit; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512)); print(raise_file_limit(), "
        "resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "512 (512, 512)"
    assert http_server.config(APP).limit_concurrency == most_connections(raise_file_limit())
