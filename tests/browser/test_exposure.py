"""A running `finora up` attacked by other sites, other local accounts and a foreign page."""

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import dagster as dg
import httpx
import pytest
from playwright.sync_api import Browser
from starlette.responses import Response

from finora_pipeline.dashboard.security.access import Access
from finora_pipeline.instance.home import LOCATION
from finora_pipeline.jobs import day_range_tags
from finora_pipeline.openai_simulator import OrganizationSpec, Simulator, running
from tests.cli.test_up import PATIENCE, Served, served_up
from tests.conftest import Installation, OpenAI, now_in_the_middle_of_today

OPERATOR, USER, PASSWORD = "ops@finora.example", "ada@acme.example", "correct horse battery"
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on PythonError { message } }
}
"""


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    now = now_in_the_middle_of_today()
    simulator = Simulator([OrganizationSpec(0, since=now.date(), services=False)], now=now)
    with running(simulator) as base_url:
        installation = Installation(tmp_path_factory.mktemp("up") / "home", OpenAI(simulator, base_url))
        installation.connect()
        yield installation


@pytest.fixture(scope="module")
def served(installation: Installation) -> Iterator[Served]:
    with served_up(installation) as served:
        with operator(served, "Health and metrics") as client:
            assert client.get("/health", params={"wait": PATIENCE}).status_code == 200
        yield served


@pytest.fixture(autouse=True)
def own_instance(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(installation.settings.dagster_home))


def operator(served: Served, name: str) -> httpx.Client:
    return httpx.Client(base_url=served.address(name), headers=served.bearer, timeout=PATIENCE)


def stranger(served: Served, name: str) -> httpx.Client:
    return httpx.Client(base_url=served.address(name), timeout=PATIENCE)


def launch() -> dict[str, object]:
    """The request with which Dagster's page launches the refresh job."""
    today = datetime.now(UTC).date()
    tags = day_range_tags(today, today)
    return {
        "query": LAUNCH,
        "variables": {
            "params": {
                "selector": {
                    "repositoryLocationName": LOCATION,
                    "repositoryName": "__repository__",
                    "jobName": "refresh",
                },
                "runConfigData": {},
                "executionMetadata": {"tags": [{"key": k, "value": v} for k, v in tags.items()]},
            }
        },
    }


def as_query(request: dict[str, object]) -> str:
    return f"query={quote(str(request['query']))}&variables={quote(json.dumps(request['variables']))}"


def run_count() -> int:
    """Return the number of launched refreshes; no plan is due while the tests run."""
    with dg.DagsterInstance.get() as instance:
        return instance.get_runs_count(dg.RunsFilter(job_name="refresh"))


QUERY = "{ version }"


def test_dagsters_ui_needs_the_token(served: Served):
    with stranger(served, "Dagster UI") as client:
        for path in (
            "/",
            "/runs",
            "/graphql?query={version}",
            "/server_info",
            "/logs/x/y.err",
            "/dagit_info",
        ):
            answer = client.get(path, headers={"Accept": "text/html"})
            assert answer.status_code == 401, path
            assert "Open the link" in answer.text
        assert client.post("/graphql", json={"query": QUERY}).status_code == 403
        own = {"Origin": served.address("Dagster UI")}
        assert client.post("/graphql", json={"query": QUERY}, headers=own).status_code == 401
        assert client.post("/report_asset_materialization/x", headers=own).status_code == 401

        # The start link's cookie opens it.
        opened = client.get("/", params={"token": served.token})
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        assert served.token not in opened.headers["set-cookie"]
        page = client.get("/", headers={"Accept": "text/html"})
        assert page.status_code == 200
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        assert "script-src" in page.headers["content-security-policy"]
        answer = client.post("/graphql", json={"query": QUERY}, headers=own)
        assert answer.json()["data"]["version"]
        # The header that marks Dagster's own pages is required.
        assert client.post("/graphql", json={"query": QUERY}).status_code == 403
        # The same cookie opens the dashboard, and no second link is needed.
        with httpx.Client(base_url=served.address("Dashboard"), cookies=client.cookies) as pages:
            assert pages.get("/users").status_code == 200
    with operator(served, "Dagster UI") as script:
        assert script.post("/graphql", json={"query": QUERY}).json()["data"]["version"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"X-Forwarded-For": "203.0.113.7"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("name", "path"), [("Dagster UI", "/graphql?query={version}"), ("Health and metrics", "/metrics")]
)
def test_other_sites_read_nothing(headers: dict[str, str], status: int, name: str, path: str, served: Served):
    with operator(served, name) as client:
        assert client.get(path).status_code == 200
        refused = client.get(path, headers=headers)
        assert refused.status_code == status
        assert refused.headers["x-content-type-options"] == "nosniff"
        if name == "Dagster UI":
            assert client.post("/graphql", json={"query": QUERY}, headers=headers).status_code == status


@pytest.mark.parametrize(
    "document",
    [
        LAUNCH,
        "query Q { version } mutation M { startSchedule(scheduleSelector: {}) { __typename } }",
        "subscription { capturedLogs(logKey: []) { stdout } }",
        '# a query\n mutation { shutdownRepositoryLocation(repositoryLocationName: "x") { __typename } }',
    ],
)
@pytest.mark.parametrize("path", ["/graphql", "/graphql/", "/%67raphql"])
def test_no_mutation_is_carried_out_by_get(document: str, path: str, served: Served):
    with operator(served, "Dagster UI") as client:
        for address in (
            f"{path}?query={quote(document)}",
            f"{path}?query={quote(document)}&query={{version}}",
        ):
            for headers in ({}, {"Accept": "text/html"}):
                answer = client.get(address, headers=headers)
                assert (answer.status_code, answer.text) == (405, "Send GraphQL mutations by POST.")
        assert client.get(f"{path}?query=" + "{a" * 3_000).status_code == 400
        assert client.get(f"{path}?query=mutation").status_code == 400


def test_only_own_pages_open_a_websocket(served: Served):
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "graphql-ws",
    }
    own = {"Origin": served.address("Dagster UI")}
    response = Response()
    Access(served.token).grant(response)
    cookie = {"Cookie": response.headers["set-cookie"].partition(";")[0]}
    for headers, status in (
        ({}, 403),
        (cookie, 403),
        (own, 401),
        (cookie | {"Origin": "http://evil.example"}, 403),
        (cookie | {"Origin": served.address("Dashboard")}, 403),
        (cookie | own | {"Host": "evil.example"}, 421),
        (cookie | own, 101),
        (served.bearer, 101),
    ):
        with (
            stranger(served, "Dagster UI") as client,
            client.stream("GET", "/graphql", headers=handshake | headers) as answer,
        ):
            assert answer.status_code == status, headers


def test_health_answers_any_host_and_shows_nothing(served: Served):
    with stranger(served, "Health and metrics") as client:
        for headers in ({}, {"Host": "evil.example"}, {"X-Forwarded-For": "203.0.113.7"}):
            answer = client.get("/health", headers=headers)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        # Prometheus has no token: the page holds only counts.
        assert client.get("/metrics").status_code == 200
        moved = client.get("/docs/operations.md")
        assert (moved.status_code, moved.headers["location"]) == (301, "/docs/operations/")
        for path in ("/metrics", "/docs/", "/docs/operations.md"):
            assert client.get(path, headers={"Host": "evil.example"}).status_code == 421
    with stranger(served, "Dashboard") as client:
        assert client.get("/health", headers={"Host": "evil.example"}).text == "ok"


def test_only_operators_sessions_open_dagsters_ui(installation: Installation, served: Served):
    people = installation.accounts.logins
    people.save(OPERATOR, user_id=None, password=PASSWORD)
    people.save(USER, user_id="user-0", password=PASSWORD)
    for name, status in ((OPERATOR, 200), (USER, 403)):
        with stranger(served, "Dashboard") as client:
            own = {"Origin": served.address("Dashboard")}
            client.post("/sign-in", data={"name": name, "password": PASSWORD}, headers=own)
            with httpx.Client(base_url=served.address("Dagster UI"), cookies=client.cookies) as ui:
                assert ui.get("/server_info").status_code == status
                client.post("/sign-out", headers=own)
                assert ui.get("/server_info").status_code == 401
    people.remove(OPERATOR)
    people.remove(USER)
    # Without any login the pages stay closed.
    with stranger(served, "Dashboard") as client:
        assert client.get("/users").status_code == 303


def test_the_token_is_in_no_log_and_no_command_line(installation: Installation, served: Served):
    home = installation.settings.home
    token_file = home / "access-token"
    assert token_file.read_text() == served.token
    assert token_file.stat().st_mode & 0o777 == 0o600
    with operator(served, "Health and metrics") as client:
        processes = client.get("/health").json()["processes"]
    for process in processes.values():
        proc = Path(f"/proc/{process['pid']}")
        assert served.token.encode() not in (proc / "cmdline").read_bytes()
        assert served.token.encode() not in (proc / "environ").read_bytes()
    logs = [path for path in (home / "logs").iterdir() if path.is_file()]
    assert logs
    assert not [path for path in logs if served.token in path.read_text()]


class Listener:
    """An attacker's server: its page and the requests it receives."""

    def __init__(self) -> None:
        self.page = ""
        self.reached: list[tuple[str, str | None]] = []
        listener = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                listener.reached.append((self.path, self.headers.get("Authorization")))
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(listener.page.encode())

            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def attacker() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_foreign_page_launches_nothing(host: str, served: Served, attacker: Listener, chromium: Browser):
    """Another port of this machine is the same site, so the browser sends its cookies."""
    ui = served.address("Dagster UI")
    request = launch()
    query = as_query(request)
    form = json.dumps({**request, "x": "="})
    attacker.page = f"""<!doctype html><title>Kittens</title>
<img src="{ui}/graphql?{query.replace("&", "&amp;")}">
<iframe name="hidden"></iframe>
<form id="plain" method="post" target="hidden" enctype="text/plain" action="{ui}/graphql">
<input name='{form.partition("=")[0].replace("'", "&#39;")}' value='{form.partition("=")[2]}'></form>
<form id="address" method="post" target="hidden" action="{ui}/graphql?{query.replace("&", "&amp;")}"></form>
<script>
const body = {json.dumps(json.dumps(request))};
window.tried = (async () => {{
  const seen = [];
  const attempt = async (name, doing) => {{
    seen.push([name, await doing().catch(() => "refused")]);
  }};
  const post = {{method: "POST", credentials: "include", body}};
  const json = {{...post, headers: {{"Content-Type": "application/json"}}}};
  await attempt("no-cors", () => fetch("{ui}/graphql", {{...post, mode: "no-cors"}}).then((a) => a.type));
  await attempt("json", () => fetch("{ui}/graphql", json).then((a) => a.status));
  const read = fetch("{ui}/graphql?query={{version}}", {{credentials: "include"}});
  await attempt("read", () => read.then((a) => a.text()));
  await attempt("socket", () => new Promise((done) => {{
    const socket = new WebSocket("{ui.replace("http", "ws")}/graphql", "graphql-ws");
    socket.onopen = () => done("opened");
    socket.onerror = () => done("refused");
  }}));
  document.getElementById("plain").submit();
  await new Promise((done) => document.querySelector("iframe").onload = done);
  document.getElementById("address").submit();
  await new Promise((done) => document.querySelector("iframe").onload = done);
  return seen;
}})();
</script>"""
    before = run_count()
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 1000)
    # This browser has opened both start links.
    for name in ("Dashboard", "Dagster UI"):
        page.goto(f"{served.address(name)}/?token={served.token}", wait_until="commit")
        assert served.token not in page.url
    sent: list[tuple[str, str]] = []
    context.on("request", lambda request: sent.append((request.method, request.url)))
    page.goto(f"http://{host}:{attacker.port}/")
    tried = dict(page.evaluate("window.tried"))
    assert tried["no-cors"] in ("opaque", "refused")
    assert {name: tried[name] for name in ("json", "read", "socket")} == dict.fromkeys(
        ("json", "read", "socket"), "refused"
    )
    assert ("GET", f"{ui}/graphql?{query}") in sent
    assert [url for method, url in sent if method == "POST"].count(f"{ui}/graphql") >= 2
    # A followed link carries the cookie, and still changes nothing.
    page.goto(f"http://{host}:{attacker.port}/")
    page.evaluate("address => { location = address }", f"{ui}/graphql?{query}")
    page.get_by_text("Send GraphQL mutations by POST.").wait_for()
    context.close()
    assert run_count() == before
    assert [bearer for _, bearer in attacker.reached if bearer] == []
    assert {urlsplit(path).path for path, _ in attacker.reached} <= {"/", "/favicon.ico"}


def test_the_same_request_by_an_operator_launches_a_run(served: Served):
    before = run_count()
    with operator(served, "Dagster UI") as client:
        answer = client.post("/graphql", json=launch())
    assert answer.json()["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", answer.text
    assert run_count() == before + 1
