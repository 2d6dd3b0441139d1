"""The client on a company's network: proxies, certificates, and hosts that may get a key."""

import asyncio
import base64
import json
import ssl
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from finora_pipeline.openai_admin.addresses import AddressError, parse_address
from finora_pipeline.openai_admin.client import OpenAIAdminClient, open_client
from finora_pipeline.openai_admin.endpoints import COSTS
from finora_pipeline.openai_admin.errors import (
    CertificateRejected,
    ConnectionRefused,
    NameNotFound,
    OpenAIAdminError,
    ProxyFailed,
    Unreachable,
    WrongAddress,
)
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.network import NetworkError, proxy_for, trusted_certificates
from finora_pipeline.openai_admin.pages import Window, unix_seconds
from tests.conftest import QUICK

KEY = AdminKey("sk-admin-Zk3_9xQw-7LmN2pRtVbY4cD1")
DAY = Window(date(2026, 6, 14), date(2026, 6, 15))
# A name without DNS entry, so that only a proxy reaches it.
NAME = "openai.invalid"
ONCE = replace(QUICK, timeout_seconds=20, request_seconds=20, retry_seconds=0)
VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def no_network_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def page() -> bytes:
    start = unix_seconds(DAY.start)
    buckets = [{"start_time": start, "end_time": start + 86_400, "results": []}]
    body = json.dumps({"object": "page", "data": buckets, "has_more": False, "next_page": None}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


@dataclass
class Certificates:
    """A private authority and a server certificate signed by it."""

    authority: Path
    server: Path


def make_certificates(folder: Path, names: list[str], days: int = 1) -> Certificates:
    now = datetime.now(UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        begun = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("Example Company CA"))
        times = begun.not_valid_before(now - timedelta(days=3)).not_valid_after(now + timedelta(days=days))
        return times.public_key(key.public_key()).serial_number(x509.random_serial_number())

    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = (
        builder("Example Company CA", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    server = (
        builder(names[0], server_key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    made = Certificates(folder / f"ca-{names[0]}-{days}.pem", folder / f"server-{names[0]}-{days}.pem")
    made.authority.write_bytes(authority.public_bytes(pem))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made.server.write_bytes(server.public_bytes(pem) + server_key.private_bytes(pem, *plain))
    return made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"), [NAME, "localhost"])


@asynccontextmanager
async def tls_server(certificates: Certificates, heard: list[bytes]) -> AsyncIterator[int]:
    """Serve OpenAI behind TLS; yield its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(page())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@dataclass
class ConnectProxy:
    """Requests that a proxy received; `answer` replaces its own response."""

    answer: bytes = b""
    heard: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def connect_proxy(proxy: ConnectProxy, target: int) -> AsyncIterator[str]:
    """Serve a proxy that leads every name to one local port; yield its address."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65_536):
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.heard.append(await reader.readuntil(b"\r\n\r\n"))
        if proxy.answer:
            writer.write(proxy.answer)
            await writer.drain()
            writer.close()
            return
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, to_writer), pump(to_reader, writer))

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read_costs(base_url: str, bound_to: str | None = None) -> int:
    async with open_client(base_url, ONCE) as client:
        return len(await client.organization(KEY, bound_to).fetch(COSTS, DAY))


def failure(base_url: str) -> OpenAIAdminError:
    """Return the error of a fetch, which names no key, password or driver."""
    with pytest.raises(OpenAIAdminError) as caught:
        asyncio.run(read_costs(base_url))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert KEY.reveal() not in shown
    assert "hunter2" not in shown
    message = str(caught.value)
    assert message.endswith(".")
    assert not any(word in message for word in ("aiohttp", "httpx", "Error", "errno", "[", "ssl:"))
    return caught.value


def through_proxy(
    proxy: ConnectProxy, certificates: Certificates, monkeypatch: pytest.MonkeyPatch, user: str = ""
) -> list[bytes]:
    """Fetch from a host that only the proxy reaches; return what the host received."""
    heard: list[bytes] = []

    async def run() -> None:
        async with tls_server(certificates, heard) as port, connect_proxy(proxy, port) as address:
            monkeypatch.setenv("HTTPS_PROXY", address.replace("//", f"//{user}"))
            assert await read_costs(f"https://{NAME}/v1") == 1

    asyncio.run(run())
    return heard


def test_the_environments_proxy_forwards_but_sees_no_key(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ConnectProxy()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))

    heard = through_proxy(proxy, certificates, monkeypatch)

    assert proxy.heard[0].startswith(f"CONNECT {NAME}:443 ".encode())
    assert b"sk-admin" not in b"".join(proxy.heard)
    assert b"authorization" not in b"".join(proxy.heard).lower()
    assert f"Bearer {KEY.reveal()}".encode() in heard[0]


def test_a_proxys_name_and_password_go_to_the_proxy_alone(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = ConnectProxy()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))

    heard = through_proxy(proxy, certificates, monkeypatch, user="ada:hunter2@")

    assert b"proxy-authorization: basic" in proxy.heard[0].lower()
    assert b"proxy-authorization" not in heard[0].lower()


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_company_certificate_is_trusted_where_the_environment_names_it(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(certificates.authority))
    heard: list[bytes] = []

    async def run() -> int:
        async with tls_server(certificates, heard) as port:
            return await read_costs(f"https://localhost:{port}/v1")

    assert asyncio.run(run()) == 1
    assert len(heard) == 1


def test_an_unknown_certificate_is_reported_and_gets_no_key(certificates: Certificates) -> None:
    heard: list[bytes] = []

    async def run() -> OpenAIAdminError:
        async with tls_server(certificates, heard) as port:
            with pytest.raises(CertificateRejected) as caught:
                await read_costs(f"https://localhost:{port}/v1")
            assert f"localhost:{port}" in str(caught.value)
            return caught.value

    error = asyncio.run(run())
    assert "SSL_CERT_FILE" in str(error)
    assert not error.is_permanent
    assert heard == []


@pytest.mark.parametrize(
    ("names", "days", "words"), [(["other.example"], 1, "another name"), (["localhost"], -1, "has expired")]
)
def test_a_certificate_error_states_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], days: int, words: str
) -> None:
    wrong = make_certificates(tmp_path, names, days)
    monkeypatch.setenv("SSL_CERT_FILE", str(wrong.authority))

    async def run() -> None:
        async with tls_server(wrong, []) as port:
            with pytest.raises(CertificateRejected, match=words):
                await read_costs(f"https://localhost:{port}/v1")

    asyncio.run(run())


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_unreadable_certificates_raise_one_sentence(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/nowhere/at/all")
    error = failure(f"https://{NAME}/v1")
    assert isinstance(error, CertificateRejected)
    assert variable in str(error)
    with pytest.raises(NetworkError):
        trusted_certificates()
    # Without TLS no certificate is needed.
    assert isinstance(failure("http://127.0.0.1:9/v1"), ConnectionRefused)


def test_a_proxy_that_needs_a_password_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"

    async def run(answer: bytes) -> tuple[OpenAIAdminError, str]:
        async with connect_proxy(ConnectProxy(answer), 9) as address:
            monkeypatch.setenv("HTTPS_PROXY", address)
            with pytest.raises(ProxyFailed) as caught:
                await read_costs(f"https://{NAME}/v1")
            return caught.value, address.removeprefix("http://")

    error, proxy = asyncio.run(run(refusal))
    assert proxy in str(error)
    assert "name and password" in str(error)
    error, proxy = asyncio.run(run(refusal.replace(b"407 Proxy Authentication Required", b"403 Forbidden")))
    assert f"the proxy {proxy} answered 403 and refuses to connect to {NAME}" in str(error)


def test_an_unreachable_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://ada:hunter2@127.0.0.1:9")
    error = failure(f"https://{NAME}/v1")
    assert isinstance(error, ProxyFailed)
    assert "the proxy 127.0.0.1:9 does not answer" in str(error)

    monkeypatch.setenv("HTTPS_PROXY", "http://ada:hunter2@proxy.invalid:3128")
    assert "the proxy's name proxy.invalid could not be resolved" in str(failure(f"https://{NAME}/v1"))


@pytest.mark.parametrize(
    ("url", "words"),
    [("socks5://127.0.0.1:9", "SOCKS"), ("nonsense://x", "HTTPS_PROXY must be"), ("http://[", "must be")],
)
def test_a_proxy_of_an_unsupported_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch, url: str, words: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", url)
    error = failure(f"https://{NAME}/v1")
    assert isinstance(error, ProxyFailed)
    assert words in str(error)


def test_each_kind_of_failure_names_its_host() -> None:
    missing = failure(f"https://{NAME}/v1")
    assert isinstance(missing, NameNotFound)
    assert f"the name {NAME} could not be resolved" in str(missing)
    refused = failure("http://127.0.0.1:9/v1")
    assert isinstance(refused, ConnectionRefused)
    assert "127.0.0.1:9 refused the connection" in str(refused)

    async def without_tls() -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(page())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(Unreachable) as caught:
                await read_costs(f"https://127.0.0.1:{port}/v1")
            assert f"127.0.0.1:{port}" in str(caught.value)
            return str(caught.value)

    assert "TLS" in asyncio.run(without_tls())


OPENAI = parse_address("https://api.openai.com/v1")


@pytest.mark.parametrize(
    ("environment", "address", "proxy"),
    [
        ({}, OPENAI, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, OPENAI, "proxy:3128"),
        ({"https_proxy": "http://lower:3128", "HTTPS_PROXY": "http://upper:3128"}, OPENAI, "lower:3128"),
        ({"HTTPS_PROXY": "proxy.example.com:3128"}, OPENAI, "proxy.example.com:3128"),
        ({"HTTPS_PROXY": "https://proxy"}, OPENAI, "proxy:443"),
        ({"ALL_PROXY": "http://all"}, OPENAI, "all:80"),
        ({"HTTPS_PROXY": "http://proxy", "ALL_PROXY": "http://all"}, OPENAI, "proxy:80"),
        ({"HTTP_PROXY": "http://proxy"}, OPENAI, None),
        ({"HTTPS_PROXY": ""}, OPENAI, None),
        *(
            ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": excepted}, OPENAI, None)
            for excepted in (
                "*",
                "api.openai.com",
                "API.OpenAI.com",
                ".openai.com",
                "openai.com",
                "*.openai.com",
                "localhost, api.openai.com:443",
            )
        ),
        *(
            ({"HTTPS_PROXY": "http://proxy", "no_proxy": excepted}, OPENAI, "proxy:80")
            for excepted in ("", "ai.com", "pi.openai.com", "api.openai.com:8443", "10.0.0.0/8", ",")
        ),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, parse_address("https://10.1.2.3/v1"), None),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "10.0.0.0/8"}, parse_address("https://11.1.2.3/v1"), "p:80"),
        # Requests to this machine never use a proxy.
        ({"HTTP_PROXY": "http://p", "ALL_PROXY": "http://p"}, parse_address("http://127.0.0.1:1/v1"), None),
        ({"HTTPS_PROXY": "http://p"}, parse_address("https://localhost/v1"), None),
    ],
)
def test_which_proxy_leads_to_an_address(environment: dict[str, str], address, proxy: str | None) -> None:
    found = proxy_for(address, environment)
    assert (found and found.authority) == proxy


def test_a_proxys_password_is_not_shown() -> None:
    found = proxy_for(OPENAI, {"HTTPS_PROXY": "http://ada:hunter%212@proxy:3128"})
    assert found is not None
    assert found.url == "http://proxy:3128"
    assert found.authorization == f"Basic {base64.b64encode(b'ada:hunter!2').decode()}"
    assert "hunter" not in repr(found)
    assert str(found.authorization) not in repr(found)


@asynccontextmanager
async def listener(heard: list[bytes]) -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(page())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def test_a_key_goes_to_its_bound_address_not_the_clients() -> None:
    async def run() -> tuple[list[bytes], list[bytes]]:
        clients: list[bytes] = []
        bound: list[bytes] = []
        async with listener(clients) as one, listener(bound) as other:
            assert await read_costs(one, bound_to=other) == 1
        return clients, bound

    clients, bound = asyncio.run(run())
    assert clients == []
    assert len(bound) == 1


@pytest.mark.parametrize("host", ["müller.example", "[2001:db8::1]:8443"])
def test_an_ipv6_or_international_host_reaches_the_proxy_unchanged(host: str) -> None:
    proxy = ConnectProxy(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")

    async def run(monkeypatch: pytest.MonkeyPatch) -> None:
        async with connect_proxy(proxy, 9) as address:
            monkeypatch.setenv("HTTPS_PROXY", address)
            with pytest.raises(ProxyFailed, match="answered 503"):
                await read_costs(f"https://{host}/v1")

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(run(monkeypatch))
    assert parse_address(f"https://{host}/v1").host.encode() in proxy.heard[0]


@pytest.mark.parametrize("path", ["@HOST/organization/costs", "\\@HOST/x", "/../../x"])
def test_no_path_leads_a_key_to_another_host(path: str) -> None:
    async def run() -> list[bytes]:
        heard: list[bytes] = []
        async with listener(heard) as elsewhere, open_client(f"https://{NAME}/v1", ONCE) as client:
            host = elsewhere.removeprefix("http://").removesuffix("/v1")
            address = replace(parse_address(client.base_url), path="")
            with pytest.raises((WrongAddress, NameNotFound)):
                await ask(client, address, path.replace("HOST", host))
        return heard

    assert asyncio.run(run()) == []


async def ask(client: OpenAIAdminClient, address, path: str) -> bytes:
    return await client.get(
        address, path, (), KEY, lambda body, _: body, turns=asyncio.Semaphore(1), retry_seconds=0
    )


@pytest.mark.parametrize("address", ["http://api.openai.com/v1", "https://api.openai.com", "nonsense"])
def test_no_fetch_from_an_address_not_allowed_to_receive_keys(address: str) -> None:
    with pytest.raises(AddressError):
        asyncio.run(read_costs(address))
    with pytest.raises(AddressError):
        asyncio.run(read_costs("http://127.0.0.1:9/v1", bound_to=address))
