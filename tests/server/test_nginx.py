"""The pages and Dagster's UI behind nginx, as documented and with nginx's defaults."""

import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.cli.test_up import PATIENCE, Served, free_port, served_up
from tests.conftest import Installation

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
HOST = "finora.example.com"
OPERATOR, USER, PASSWORD = "ops@finora.example", "ada@acme.example", "correct horse battery"
BARE = "location / {{ proxy_pass {upstream}; }}"


@pytest.fixture(autouse=True)
def nginx_is_here() -> None:
    if NGINX is None:
        reason = "nginx is missing on this machine: install Debian's package nginx-light."
        if os.environ.get("FINORA_TEST_EVERYTHING"):
            pytest.fail(reason)
        pytest.skip(reason)


def make_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


@contextmanager
def running_nginx(folder: Path, servers: str, port: int) -> Iterator[None]:
    """Run nginx with these server blocks for the length of the block."""
    assert NGINX is not None
    folder.mkdir(exist_ok=True)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        "events {}\n"
        f"http {{ access_log off;\n{temporary}{servers}\n}}\n"
    )
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    with subprocess.Popen(command) as process:
        try:
            wait_for_port(process, port, folder / "error.log")
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    transport = httpx.HTTPTransport(retries=8)
    with httpx.Client(transport=transport) as client:
        client.get(f"http://127.0.0.1:{port}/")
    assert process.poll() is None, log.read_text()


def documented() -> str:
    """The configuration of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    (found,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    return found


def test_strangers_behind_a_default_nginx_get_no_operator_access(start_openai, install, tmp_path: Path):
    installation: Installation = install(start_openai(days=1))
    installation.accounts.users.add("acme", "growth")
    with served_up(installation) as served:
        for name, paths in (
            ("Dashboard", ("/", "/users", "/users/acme/overview.csv", "/users/acme/settings/keys")),
            ("Dagster UI", ("/", "/graphql?query={version}", "/server_info")),
        ):
            port = free_port()
            servers = (
                f"server {{ listen 127.0.0.1:{port}; " + BARE.format(upstream=served.address(name)) + " }"
            )
            with (
                running_nginx(tmp_path / f"nginx-{port}", servers, port),
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as stranger,
            ):
                for path in paths:
                    answer = stranger.get(path)
                    assert answer.status_code in (303, 401), path
                    assert answer.headers.get("location", "/sign-in").startswith("/sign-in")
                # With a forged Origin, too: by default nginx sends the upstream's address as Host.
                own = {"Origin": served.address(name)}
                for path in ("/users/acme/plan", "/graphql"):
                    answer = stranger.post(path, data={"plan": "scale"}, headers=own)
                    assert answer.status_code in (401, 404), path
        assert installation.accounts.users.plans()["acme"].name == "growth"


@pytest.fixture
def public(start_openai, install, tmp_path: Path) -> Iterator[tuple[Served, httpx.Client]]:
    installation: Installation = install(start_openai(days=1))
    installation.accounts.users.add("acme", "growth")
    people = installation.accounts.logins
    people.save(OPERATOR, user_id=None, password=PASSWORD)
    people.save(USER, user_id="acme", password=PASSWORD)
    make_certificate(tmp_path)
    port, plain = free_port(), free_port()
    with served_up(
        installation, "--public-url", f"https://{HOST}", FINORA_TRUSTED_PROXIES="127.0.0.1"
    ) as served:
        ui = served.address("Dagster UI").rpartition(":")[2]
        dashboard_port = served.process.args[served.process.args.index("--dashboard-port") + 1]  # type: ignore[index,union-attr]
        servers = documented()
        for shown, real in (
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/ssl/finora.pem", f"{tmp_path}/cert.pem"),
            ("/etc/ssl/finora.key", f"{tmp_path}/key.pem"),
            ("127.0.0.1:8000", f"127.0.0.1:{dashboard_port}"),
            ("127.0.0.1:3000", f"127.0.0.1:{ui}"),
        ):
            assert shown in servers
            servers = servers.replace(shown, real)
        servers += f"server {{ listen 127.0.0.1:{plain}; return 204; }}"
        context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        context.check_hostname = False
        with (
            running_nginx(tmp_path / "nginx", servers, plain),
            httpx.Client(
                base_url=f"https://127.0.0.1:{port}",
                headers={"Host": HOST, "Accept": "text/html"},
                verify=context,
                timeout=PATIENCE,
            ) as client,
        ):
            yield served, client


def test_the_documented_nginx_serves_both_uis_after_sign_in(public: tuple[Served, httpx.Client]):
    served, client = public
    own = {"Origin": f"https://{HOST}"}

    def session_of(name: str) -> dict[str, str]:
        answer = client.post("/sign-in", data={"name": name, "password": PASSWORD}, headers=own)
        assert answer.status_code == 303, answer.text
        client.cookies.clear()
        return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}

    # Strangers see the sign-in, whatever headers they send.
    for path in ("/", "/users", "/dagster", "/dagster/", "/dagster/runs"):
        for headers in (
            {},
            {"X-Forwarded-For": "127.0.0.1"},
            served.bearer,
            {"Host": HOST, "Authorization": served.bearer["Authorization"]},
        ):
            answer = client.get(path, headers=headers)
            assert answer.status_code in (301, 303), path
            location = httpx.URL(answer.headers["location"])
            assert (location.path, location.host) in (("/sign-in", ""), ("/dagster/", HOST)), path
    assert client.get("/dagster/server_info", headers={"Accept": "*/*"}).status_code == 401
    assert "set-cookie" not in client.get("/dagster/", params={"token": served.token}).headers

    user, operator = session_of(USER), session_of(OPERATOR)
    assert client.get("/users/acme/overview", headers=user).status_code == 200
    assert client.get("/dagster/server_info", headers=user).status_code == 403
    assert client.get("/users", headers=operator).status_code == 200
    page = client.get("/dagster/runs", headers=operator)
    assert page.status_code == 200
    assert "max-age" in page.headers["strict-transport-security"]
    # The page loads its assets under the same path.
    (script,) = re.findall(r'src="(/dagster/[^"]*main[^"]*\.js|/dagster/[^"]*webpack[^"]*\.js)"', page.text)[
        :1
    ]
    assert client.get(script, headers=operator).status_code == 200
    query = {"query": "{ version }"}
    assert client.post("/dagster/graphql", json=query, headers=operator).status_code == 403
    answer = client.post("/dagster/graphql", json=query, headers=operator | own)
    assert answer.json()["data"]["version"]
    evil = operator | {"Origin": "https://evil.example"}
    assert client.post("/dagster/graphql", json=query, headers=evil).status_code == 403
    mutation = "mutation { reloadWorkspace { __typename } }"
    assert client.get("/dagster/graphql", params={"query": mutation}, headers=operator).status_code == 405
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "graphql-ws",
    }
    for headers, status in ((operator | own, 101), (operator, 403), (own, 401)):
        with client.stream("GET", "/dagster/graphql", headers=handshake | headers) as answer:
            assert answer.status_code == status
    # On this machine the start link still opens Dagster's UI.
    with httpx.Client(base_url=served.address("Dagster UI"), timeout=PATIENCE) as local:
        opened = local.get("/", params={"token": served.token})
        assert opened.headers["location"] == "/"
        assert local.get("/dagster/server_info").status_code == 200
        assert (
            local.get("/dagster/server_info", headers={"X-Forwarded-For": "203.0.113.7"}).status_code == 421
        )
    # A session that has ended opens neither.
    assert client.post("/sign-out", headers=operator | own).status_code == 303
    assert client.get("/dagster/server_info", headers=operator).status_code == 303
