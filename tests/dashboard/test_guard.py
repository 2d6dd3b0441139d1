"""Cross-site requests, endless bodies, and the headers of every response."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from finora_pipeline.dashboard.security.guard import LONGEST_BODY
from finora_pipeline.settings import Settings
from tests.conftest import Installation
from tests.dashboard.served import OWN, PUBLIC_URL, Served, dashboard

POSTS = (
    "/users",
    "/users/acme/plan",
    "/users/acme/settings/keys",
    "/users/acme/settings/keys/remove",
    "/sign-in",
    "/sign-out",
)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "SAME-ORIGIN"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": PUBLIC_URL + ".evil.example"},
        {"Origin": PUBLIC_URL.replace("https", "http")},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Origin": PUBLIC_URL},
    ],
    ids=str,
)
def test_cross_site_requests_are_blocked(headers: dict[str, str], public: Served) -> None:
    session = public.signed_in("ops@finora.example")
    before = public.accounts.connections.get("acme"), public.accounts.users.plans()
    for path in POSTS:
        answer = public.browser.post(path, headers=session | headers, data={"plan": "trial", "user_id": "x"})
        assert answer.status_code == 403
        assert answer.text == "Blocked: cross-site request."
        assert "set-cookie" not in answer.headers
    for method in ("PUT", "PATCH", "DELETE"):
        assert public.browser.request(method, "/users", headers=session | headers).status_code == 403
    assert (public.accounts.connections.get("acme"), public.accounts.users.plans()) == before
    assert public.get("/", headers=session).status_code == 303


@pytest.mark.parametrize("headers", [OWN, {"Origin": PUBLIC_URL}, OWN | {"Origin": PUBLIC_URL}], ids=str)
def test_same_site_requests_are_accepted(headers: dict[str, str], public: Served) -> None:
    session = public.signed_in("ops@finora.example")
    answer = public.browser.post("/users/acme/plan", headers=session | headers, data={"plan": "growth"})
    assert answer.status_code == 303
    assert public.browser.get("/users", headers=session | {"Sec-Fetch-Site": "cross-site"}).status_code == 200


def test_a_foreign_host_name_is_refused(local: Served, public: Served) -> None:
    port = local.url.rpartition(":")[2]
    for host in (
        "evil.example",
        f"evil.example:{port}",
        f"127.0.0.1:{port}.evil.example",
        "localhost.evil.example",
    ):
        answer = local.get("/users/acme/overview", headers={"Host": host})
        assert (answer.status_code, answer.text) == (421, "This server does not answer to that host name.")
    # On this machine a tunnel may give the port another number.
    for host in (f"localhost:{port}", "127.0.0.1:9000", f"[::1]:{port}"):
        opened = local.by_link() | {"Host": host}
        assert local.get("/users/acme/overview", headers=opened).status_code == 200
    # Monitoring requests the server by its address.
    assert public.get("/health", headers={"Host": f"127.0.0.1:{port}"}).status_code == 200
    assert public.get("/users", headers={"Host": f"127.0.0.1:{port}"}).status_code == 421


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
def test_a_proxied_request_without_sign_in_is_refused(header: str, local: Served) -> None:
    answer = local.get("/users", headers={header: "203.0.113.7"})
    assert (answer.status_code, answer.text) == (
        421,
        "Behind a proxy, start Finora with --public-url.",
    )


def test_a_body_too_large_is_refused(local: Served) -> None:
    pieces = 8

    def body(size: int) -> Iterator[bytes]:
        yield b"user_id="
        for _ in range(pieces):
            yield b"x" * (size // pieces)

    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/users", "/users/acme/plan", "/users/acme/settings/keys", "/sign-in", "/sign-out"):
        refused = local.post(path, {"user_id": "x" * LONGEST_BODY})
        assert (refused.status_code, refused.text) == (413, "The request is too large.")
        untold = local.browser.post(path, content=body(LONGEST_BODY + 800), headers=OWN | form)
        assert "content-length" not in untold.request.headers
        assert (untold.status_code, untold.text) == (413, "The request is too large.")
    assert local.browser.post("/users", content=body(800), headers=OWN | form).status_code == 422
    assert local.get("/health").status_code == 200


def test_forms_of_many_fields_or_files_are_refused(local: Served) -> None:
    many = local.browser.post("/users", data={f"field{n}": "" for n in range(50)}, headers=OWN)
    assert many.status_code == 400
    files = local.browser.post("/users", files={"user_id": ("a.txt", b"x")}, headers=OWN)
    assert files.status_code == 400
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (b"", b"--x", b"--x\r\n\r\n", b"x" * 100):
        answer = local.browser.post("/users", content=content, headers=OWN | broken)
        assert answer.status_code in (400, 422)
    for kind in ("application/json", "text/plain", "multipart/form-data", "", "x"):
        answer = local.browser.post("/users", content=b"{}", headers=OWN | {"Content-Type": kind})
        assert answer.status_code in (400, 422)


def assert_safe(answer: httpx.Response, is_public: bool = False) -> None:
    """Assert the security headers of any response."""
    parts = [part.strip().partition(" ") for part in answer.headers["content-security-policy"].split(";")]
    policy = {name: allowed for name, _, allowed in parts}
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert "permissions-policy" in answer.headers
    assert ("strict-transport-security" in answer.headers) == is_public
    is_static = answer.request.url.path.startswith("/static/") and answer.status_code == 200
    assert answer.headers["cache-control"] == ("public, max-age=86400" if is_static else "no-store")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/users/acme/overview", 200),
        ("HEAD", "/users/acme/overview", 200),
        ("GET", "/users/acme/overview.csv", 200),
        ("GET", "/users/acme/state", 200),
        ("GET", "/static/app.css", 200),
        ("GET", "/static/app.js", 200),
        ("GET", "/static/icon.svg", 200),
        ("GET", "/static/", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/static/%00", 404),
        ("GET", "/health", 200),
        ("GET", "/", 303),
        ("GET", "/nothing", 404),
        ("GET", "/users/acme/plan/", 404),
        ("GET", "/users/acme/model", 404),
        ("GET", "/users/acme/overview?period=x", 400),
        ("DELETE", "/users/acme/plan", 405),
        ("GET", "/sign-out", 405),
        ("OPTIONS", "/users", 405),
        ("POST", "/users", 422),
    ],
)
def test_every_response_has_the_security_headers(method: str, path: str, status: int, local: Served) -> None:
    answer = local.browser.request(method, path, headers=OWN)
    assert answer.status_code == status
    assert_safe(answer)


def test_refused_requests_get_the_security_headers_too(local: Served, public: Served) -> None:
    for answer, status in (
        (local.browser.post("/users"), 403),
        (local.get("/", headers={"Host": "evil.example"}), 421),
        (local.post("/users", {"user_id": "x" * LONGEST_BODY}), 413),
    ):
        assert answer.status_code == status
        assert_safe(answer)
    for path in ("/sign-in", "/users", "/static/app.css", "/nothing"):
        assert_safe(public.get(path), is_public=True)


def test_an_internal_error_page_reveals_nothing(
    installation: Installation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = tmp_path / "published" / "finora.duckdb"
    published.parent.mkdir()
    published.write_bytes(b"this is not a database" * 1000)
    settings: Settings = replace(
        installation.settings, home=tmp_path, accounts_url=f"sqlite:///{tmp_path}/a.sqlite"
    )
    with dashboard(settings) as served:
        for path in ("/users/acme/overview", "/users/acme/overview.csv?plan", "/users/acme/state", "/users"):
            served.accounts.users.add("acme", "growth")
            answer = served.get(path)
            assert answer.status_code == 500
            assert_safe(answer)
            assert "Something went wrong" in answer.text
            for word in ("Traceback", "duckdb", "Exception", str(tmp_path)):
                assert word not in answer.text
        assert [record.getMessage() for record in caplog.records if record.name == "finora.dashboard"] == [
            "GET /users/acme/overview failed",
            "GET /users/acme/overview.csv failed",
            "GET /users/acme/state failed",
            "GET /users failed",
        ]
        assert served.get("/users/acme/settings/keys").status_code == 200
        # The next publish replaces it.
        mended = published.with_name("mended")
        mended.write_bytes(installation.settings.published_database.read_bytes())
        mended.replace(published)
        assert served.get("/users/acme/overview").status_code == 200
