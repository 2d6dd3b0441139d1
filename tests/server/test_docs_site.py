"""The documentation as `finora up` serves it: pages at /docs, no other files or hosts."""

import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from finora_pipeline.assets.metadata import docs
from finora_pipeline.server.docs_site import NOT_BUILT, docs_routes

SCRIPT = "document.title = new URL('..', location).pathname"
PAGE = f"""<!doctype html><title>no script ran</title>
<script>{SCRIPT}</script><script src="../assets/site.js"></script><p style="width: 1px">Analysts</p>"""


@contextmanager
def serving(site: Path) -> Iterator[str]:
    """Serve the documentation alone; yield the base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        config = uvicorn.Config(Starlette(routes=docs_routes(site)), log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def build(site: Path) -> None:
    """Write a site of two pages as mkdocs lays it out."""
    for folder in ("analysts", "decisions/0001-daily-partitions", "assets"):
        (site / folder).mkdir(parents=True)
    (site / "index.html").write_text("<h1>Start</h1>")
    (site / "404.html").write_text("<h1>Not found</h1><script>1</script>")
    (site / "analysts" / "index.html").write_text(PAGE)
    (site / "decisions/0001-daily-partitions" / "index.html").write_text("<h1>Partitions</h1>")
    (site / "assets" / "site.js").write_text("1")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("secret")
    build(tmp_path / "site")
    return tmp_path / "site"


@pytest.fixture
def client(site: Path) -> Iterator[httpx.Client]:
    with serving(site) as url, httpx.Client(base_url=url) as client:
        yield client


def hash_of(script: str) -> str:
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def test_pages_are_served_and_old_addresses_lead_to_them(client: httpx.Client):
    assert client.get("/docs/").text == "<h1>Start</h1>"
    assert client.get("/docs/analysts/").text == PAGE
    for old, new in (
        ("/docs/analysts.md", "/docs/analysts/"),
        ("/docs/index.md", "/docs/"),
        ("/docs/decisions/index.md", "/docs/decisions/"),
        ("/docs/decisions/0001-daily-partitions.md", "/docs/decisions/0001-daily-partitions/"),
        ("/docs//evil.example/x.md", "/docs//evil.example/x/"),
    ):
        answer = client.get(old)
        assert (answer.status_code, answer.headers["location"]) == (301, new)
    followed = client.get("/docs", follow_redirects=True)
    assert (followed.url.path, followed.text) == ("/docs/", "<h1>Start</h1>")
    assert client.post("/docs/").status_code == 405


def test_a_policy_allows_a_pages_own_scripts_and_no_other_host(client: httpx.Client):
    page = client.get("/docs/analysts/")
    policy = page.headers["content-security-policy"]
    assert f"script-src 'self' {hash_of(SCRIPT)};" in policy
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]
    unchanged = client.get("/docs/analysts/", headers={"If-None-Match": page.headers["etag"]})
    assert (unchanged.status_code, unchanged.headers["content-security-policy"]) == (304, policy)
    assert client.get("/docs/assets/site.js").headers["content-security-policy"] == policy.replace(
        f" {hash_of(SCRIPT)}", ""
    )
    missing = client.get("/docs/missing/")
    assert (missing.status_code, missing.text.startswith("<h1>Not found")) == (404, True)
    assert hash_of("1") in missing.headers["content-security-policy"]


def test_a_rebuilt_page_gets_its_new_hash(site: Path, client: httpx.Client):
    page = site / "analysts" / "index.html"
    client.get("/docs/analysts/")
    page.write_text("<script>rebuilt()</script>")
    assert hash_of("rebuilt()") in client.get("/docs/analysts/").headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    [
        b"/docs/../secret.txt",
        b"/docs/../../secret.txt",
        b"/docs/%2e%2e/secret.txt",
        b"/docs/..%2fsecret.txt",
        b"/docs/..\\secret.txt",
        b"/docs/analysts/../../secret.txt",
        b"/docs//etc/passwd",
        b"/docs/%00",
        b"/docs/link/secret.txt",
    ],
)
def test_nothing_outside_the_site_is_served(path: bytes, site: Path, client: httpx.Client):
    (site / "link").symlink_to(site.parent)
    # Sent unchanged: a client would resolve the dots.
    host, port = client.base_url.host, client.base_url.port
    assert port is not None
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in answer.partition(b"\r\n\r\n")[2]


def test_a_missing_site_is_reported_until_it_is_built(tmp_path: Path):
    with serving(tmp_path / "site") as url:
        for path in ("/docs/", "/docs/analysts/"):
            answer = httpx.get(url + path)
            assert (answer.status_code, answer.text) == (404, NOT_BUILT)
        assert "make site" in NOT_BUILT
        build(tmp_path / "site")
        assert httpx.get(url + "/docs/analysts/").text == PAGE


def test_assets_link_to_the_pages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FINORA_DOCS_URL", "http://127.0.0.1:3001/docs")
    assert docs("analysts")["docs"].value == "http://127.0.0.1:3001/docs/analysts/"
    monkeypatch.delenv("FINORA_DOCS_URL")
    assert docs("analysts") == {}
