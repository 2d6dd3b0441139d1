"""Other programs at an installation's files, networks, foreign settings, time zones."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from tests.cases.conftest import KEY_ADVICE, Case, assert_usual, key_of
from tests.cases.networks import certificates, playing_over_tls, proxy
from tests.cases.organizations import usual
from tests.cases.server import CaseServer, Organization, day

Play = Callable[..., Case]

# Opens a database, runs a statement, prints a line, and waits to be killed.
OPENER = """
import sys, duckdb
connection = duckdb.connect(sys.argv[1])
connection.execute(sys.argv[2])
print("done", flush=True)
sys.stdin.read()
"""


@contextmanager
def opened(database: Path, statement: str) -> Iterator[int]:
    """Run a program that executed the statement and keeps the file open; kill it at the end."""
    line = [sys.executable, "-c", OPENER, str(database), statement]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "done\n"
            yield process.pid
        finally:
            process.kill()


CHANGES = {
    "update": "UPDATE daily_costs SET amount_usd = 1000",
    "delete": "DELETE FROM daily_costs",
    "insert": "INSERT INTO daily_costs SELECT * FROM daily_costs",
    "drop": "DROP TABLE daily_usage",
    "new table": "CREATE TABLE mine AS SELECT 1 AS x",
}


@pytest.mark.parametrize("statement", CHANGES.values(), ids=CHANGES)
def test_foreign_changes_of_the_published_file_are_undone_and_reported(play: Play, statement: str):
    case = play("null_project")
    assert case.connect().exit_code == 0
    case.ok("refresh")
    published = case.home / "published" / "finora.duckdb"
    published.chmod(0o600)
    with opened(published, statement):
        pass
    companion = published.with_name("finora.duckdb.wal")
    assert companion.exists()
    for _ in range(2):
        case.ok("refresh")
        assert not companion.exists()
        assert case.bill() == 2
        with duckdb.connect(published, read_only=True) as connection:
            assert connection.execute("SELECT sum(amount_usd) FROM daily_costs").fetchall() == [(2,)]
            assert connection.execute("SELECT count(*) FROM daily_usage").fetchall() == [(1,)]
            tables = {name for (name,) in connection.execute("SHOW TABLES").fetchall()}
            assert "mine" not in tables
    assert "written" in case.run("alarms").output


def test_the_warehouse_is_open_in_another_program(play: Play):
    case = play("null_project")
    assert case.connect().exit_code == 0
    case.ok("refresh")
    with opened(case.home / "warehouse" / "warehouse.duckdb", "SELECT 1") as process:
        case.environment["FINORA_WAIT_SECONDS"] = "1"
        refused = case.run("refresh")
        assert refused.exit_code == 1
        said = " ".join(refused.output.split())
        assert str(process) in said
        for of_the_driver in ("IOException", "IO Error", "Traceback", "read-only mode"):
            assert of_the_driver not in said
    case.ok("refresh")
    assert case.bill() == 2


# A name that no DNS server resolves (RFC 6761).
HOST = "openai.company.invalid"


def finora(environment: dict[str, str], *arguments: str, stdin: str = "") -> tuple[int, str]:
    """Return exit code and output of a command in its own process."""
    line = [sys.executable, "-m", "finora_pipeline", *arguments]
    ended = subprocess.run(
        line,
        env={**os.environ, **environment},
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return ended.returncode, " ".join(ended.stdout.split())


def test_refreshes_go_through_the_only_proxy(tmp_path: Path):
    files = certificates(tmp_path / "certificates", HOST)
    server = CaseServer({key_of("case"): Organization(usual())})
    home = tmp_path / "home"
    environment = {"FINORA_HOME": str(home), "DAGSTER_HOME": str(home / "dagster"), "COLUMNS": "400"}
    connect = ("connect", "--user", "case", "--plan", "growth", "--base-url", f"https://{HOST}/v1")
    with playing_over_tls(server, files) as port, proxy({HOST: port}) as outside:
        code, said = finora(environment, *connect, stdin=key_of("case"))
        assert (code, HOST in said) == (1, True), said
        assert not KEY_ADVICE.search(said)
        assert outside.requests == []

        through = environment | {"HTTPS_PROXY": outside.url}
        code, said = finora(through, *connect, stdin=key_of("case"))
        assert (code, HOST in said, "certificate" in said) == (1, True, True), said

        trusted = through | {"SSL_CERT_FILE": str(files.authority)}
        code, said = finora(trusted, *connect, stdin=key_of("case"))
        assert code == 0, said
        code, said = finora(trusted, "refresh")
        assert code == 0, said
        code, said = finora(trusted, "sql", "SELECT sum(amount_usd) AS usd FROM daily_costs", "--json")
        assert json.loads(said) == [{"usd": "2"}]
        assert set(outside.requests) == {f"CONNECT {HOST}:443 HTTP/1.1"}
        code, said = finora(trusted, "status")
        assert HOST in said, "an address that is not OpenAI's is shown"


def test_the_address_of_another_tool_receives_no_key(play: Play, monkeypatch: pytest.MonkeyPatch):
    case = play("null_project")
    with proxy({}) as outside:
        for variable in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, outside.url)
        for address in (f"https://{HOST}/v1", f"http://{HOST}/v1", f"https://{HOST}:8443/openai"):
            case.environment["OPENAI_BASE_URL"] = address
            refused = case.connect()
            assert refused.exit_code == 1, address
            said = " ".join(refused.output.split())
            assert HOST in said
            assert "--base-url" in said or address.startswith("http:")
        assert outside.requests == []


GATEWAY = {
    "404": {"path": ".", "status": 404, "body": {"detail": "Not Found"}},
    "page": {"path": ".", "status": 200, "body": "<html><body>Gateway</body></html>"},
    "own 401": {"path": ".", "status": 401, "body": {"error": "no token"}},
}


@pytest.mark.parametrize("fault", GATEWAY.values(), ids=GATEWAY)
def test_a_gateway_on_this_machine_is_named(play: Play, fault: dict[str, object]):
    case = play(case=usual(faults=[fault]))
    refused = case.connect()
    assert refused.exit_code == 1
    said = " ".join(refused.output.split())
    assert "127.0.0.1" in said
    assert not KEY_ADVICE.search(said)
    assert "byte 0" not in said


OTHERS = {
    "sk-ant-admin01-abcdefghijklmnopqrstuvwxyz0123456789": "Anthropic",
    "sk-ant-api03-abcdefghijklmnopqrstuvwxyz0123456789": "Anthropic",
    "sk-or-v1-0123456789abcdef0123456789abcdef0123456789abcdef": "OpenRouter",
    "sk-proj-abcdefghijklmnopqrstuvwxyz0123456789": "project key",
    "sk-svcacct-abcdefghijklmnopqrstuvwxyz0123456789": "project key",
    "AIzaSyA0123456789abcdefghijklmnopqrstuv": "not an OpenAI Admin key",
}


@pytest.mark.parametrize(("key", "named"), OTHERS.items())
def test_a_key_of_another_kind_is_named(play: Play, key: str, named: str):
    case = play("null_project")
    refused = case.run("connect", "--user", "case", stdin=key)
    said = " ".join(refused.output.split())
    assert refused.exit_code == 1
    assert named.lower() in said.lower()
    assert named == "project key" or "project key" not in said
    assert key not in said
    assert case.organization().requests == []


AROUND = (
    '"{}"',
    "'{}'",
    "`{}`",
    "OPENAI_ADMIN_KEY={}",
    "export OPENAI_ADMIN_KEY='{}'",
    "Bearer {}",
    "{},",
    "{};",
)


@pytest.mark.parametrize("pasted", AROUND)
def test_text_pasted_around_a_key_is_dropped(play: Play, pasted: str):
    case = play("null_project")
    connected = case.run("connect", "--user", "case", stdin=pasted.format(key_of("case")))
    assert connected.exit_code == 0, connected.output
    assert case.organization().requests


def test_days_are_utc_in_any_time_zone(play: Play):
    case = play(case=usual())
    assert case.connect(plan="scale").exit_code == 0
    zone = {
        "TZ": "Pacific/Kiritimati",
        "FINORA_HOME": str(case.home),
        "DAGSTER_HOME": str(case.home / "dagster"),
        "OPENAI_BASE_URL": case.server.base_url,
        "COLUMNS": "400",
    }
    code, said = finora(zone, "refresh")
    assert code == 0, said
    assert_usual(case)
    code, said = finora(
        zone, "sql", "SELECT min(date) AS d, max(period_end) AS e FROM daily_costs, user_metrics", "--json"
    )
    assert json.loads(said) == [{"d": day(-1), "e": day(0)}]
    code, said = finora(zone, "status", "--json")
    (status,) = json.loads(said)
    refreshed, promised = (
        datetime.fromisoformat(status[name]) for name in ("last_refresh_at", "next_refresh_at")
    )
    assert (promised - refreshed).total_seconds() == 3_600
    assert refreshed.utcoffset() == promised.utcoffset()
    assert status["next_refresh_at"] == case.status()["next_refresh_at"]
