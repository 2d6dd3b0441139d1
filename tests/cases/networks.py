"""A company's network for tests: a web proxy, and a server with a private certificate."""

import asyncio
import ssl
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cases.server import CaseServer, listen


@dataclass(frozen=True)
class Certificates:
    """Files: a private authority's certificate, a server's certificate and its key."""

    authority: Path
    server: Path
    key: Path


def certificates(folder: Path, host: str) -> Certificates:
    """Create a private authority and its certificate for the host."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Private authority of a test")])
    now = datetime.now(UTC)

    def certificate(subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    root = (
        certificate(name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
    leaf = (
        certificate(subject, server_key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    files = Certificates(folder / "authority.pem", folder / "server.pem", folder / "server.key")
    folder.mkdir(parents=True, exist_ok=True)
    files.authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    files.server.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@contextmanager
def playing_over_tls(server: CaseServer, files: Certificates) -> Iterator[int]:
    """Serve with that certificate on loopback for the length of the block; yield the port."""
    with listen() as bound:
        config = uvicorn.Config(
            server,  # type: ignore[arg-type]
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=files.server,
            ssl_keyfile=files.key,
            ssl_version=ssl.PROTOCOL_TLS_SERVER,
        )
        serving = uvicorn.Server(config)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            serving.should_exit = True
            thread.join(timeout=10)


@dataclass
class Proxy:
    """A web proxy: its address, and the first line of every request it received."""

    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def proxy(names: dict[str, int]) -> Iterator[Proxy]:
    """Open tunnels (CONNECT) from host names to loopback ports for the length of the block."""
    with listen() as bound:
        found = Proxy(f"http://127.0.0.1:{bound.getsockname()[1]}")

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            found.requests.append(head.partition("\r\n")[0])
            method, target, *_ = head.split()
            port = names.get(target.rpartition(":")[0])
            if method != "CONNECT" or port is None:
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))
            writer.close()

        loop = asyncio.new_event_loop()

        async def serve() -> None:
            async with await asyncio.start_server(answer, sock=bound):
                await ended.wait()

        ended = asyncio.Event()
        thread = threading.Thread(target=_run, args=(loop, serve()), daemon=True)
        thread.start()
        try:
            yield found
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(timeout=10)


def _run(loop: asyncio.AbstractEventLoop, main: Coroutine[Any, Any, None]) -> None:
    asyncio.set_event_loop(loop)
    loop.run_until_complete(main)


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward bytes until the connection ends, in whatever way."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.close()
