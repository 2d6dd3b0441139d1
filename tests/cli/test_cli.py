"""The finora command line: output, exit codes, error messages, and no key on the screen."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.cli import backfills, main
from finora_pipeline.cli.terminal import output
from finora_pipeline.openai_simulator import KeyState
from finora_pipeline.settings import Settings
from tests.conftest import OpenAI
from tests.small_openai import fresh_key, small_openai

DAYS = 5
TODAY = datetime.now(UTC).date()
PROJECT_KEY = "sk-proj-abcdefghijklmnopqrstuvwxyz"
KEYS = re.compile(r"sk-[A-Za-z0-9_-]{12,}")
USERS = {"acme": "growth", "globex": "trial", "hooli": "trial"}
ALL_USERS = [argument for user in USERS for argument in ("--user", user)]


@dataclass(frozen=True)
class Terminal:
    """A data folder and finora commands in it; no typed key may be printed."""

    openai: OpenAI
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "FINORA_HOME": str(self.home),
            "DAGSTER_HOME": str(self.home / "dagster"),
            "OPENAI_BASE_URL": self.openai.base_url,
        }

    @property
    def accounts(self) -> Accounts:
        return accounts_of(Settings.from_environment(self.environment))

    def key(self, number: int = 0) -> str:
        return self.openai.organizations[number].admin_key

    def run(self, *arguments: str, stdin: str | bytes = "") -> Result:
        result = CliRunner(env=self.environment).invoke(main, arguments, input=stdin)
        for key in KEYS.findall(stdin if isinstance(stdin, str) else stdin.decode("latin-1")):
            assert key not in result.output, "a key came out"
        return result

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must succeed; return its standard output."""
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str, stdin: str = "") -> Any:
        return json.loads(self.ok(*arguments, "--json", stdin=stdin))

    def fails(self, *arguments: str, stdin: str = "", code: int = 1) -> str:
        """Run a command that must fail; return its error message in one line."""
        result = self.run(*arguments, stdin=stdin)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == code, result.output
        return " ".join(result.stderr.split())


@pytest.fixture(scope="module", autouse=True)
def wide_terminal() -> Iterator[None]:
    """A terminal wide enough that tables break no line."""
    with pytest.MonkeyPatch.context() as terminal:
        terminal.setattr(output, "width", 400)
        yield


@pytest.fixture(scope="module")
def openai() -> Iterator[OpenAI]:
    with small_openai(organizations=4, days=DAYS) as openai:
        yield openai


@pytest.fixture
def fresh(openai: OpenAI, tmp_path: Path) -> Terminal:
    """An empty data folder."""
    return Terminal(openai, tmp_path / "home")


@pytest.fixture(scope="module")
def refreshed(openai: OpenAI, tmp_path_factory: pytest.TempPathFactory) -> tuple[Terminal, Result]:
    """A data folder with three users after their first refresh, and that refresh's output."""
    terminal = Terminal(openai, tmp_path_factory.mktemp("cli") / "home")
    lines = [f"{user},{plan},{terminal.key(n)}\n" for n, (user, plan) in enumerate(USERS.items())]
    terminal.ok("connect", "--many", stdin="".join(lines))
    return terminal, terminal.run("refresh")


@pytest.fixture
def finora(refreshed: tuple[Terminal, Result]) -> Terminal:
    """The data folder with three refreshed users."""
    return refreshed[0]


# Help


@pytest.mark.parametrize("command", main.commands)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(fresh, command, option):
    said = fresh.ok(command, option)
    assert said.startswith(f"Usage: main {command}")
    assert len(said.splitlines()) > 4
    assert not fresh.home.exists()


def test_help_lists_the_commands_in_the_order_of_their_use(fresh):
    said = fresh.ok("--help")
    shown = [name for name, command in main.commands.items() if name == command.name]
    places = [said.index(f"\n  {name} ") for name in shown]
    assert places == sorted(places)
    assert "FINORA_HOME" in said
    assert fresh.ok("--version").strip().endswith(version("finora-pipeline"))


def test_a_command_runs_without_a_standard_output():
    line = ["sh", "-c", f'"{sys.executable}" -m finora_pipeline status >&-']
    ended = subprocess.run(line, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)


def test_an_unknown_command_is_an_error_with_advice(fresh):
    # codespell:ignore-next-line refesh (mistyped on purpose)
    assert "No such command 'refesh'" in fresh.fails("refesh", code=2)


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("--help", {"dagster", "duckdb", "pandas", "sqlalchemy", "httpx"}),
        ("status", {"dagster", "pandas", "httpx"}),
        ("alarms", {"dagster", "pandas", "httpx"}),
    ],
)
@pytest.mark.slow
def test_a_command_imports_no_library_it_does_not_use(command: str, unwanted: set[str]):
    script = (
        "import sys; from finora_pipeline.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "print(' '.join(sys.modules))"
    )
    line = [sys.executable, "-c", script, command]
    ended = subprocess.run(line, capture_output=True, text=True, check=True)
    assert not unwanted & set(ended.stdout.splitlines()[-1].split())


# Connect and update


def test_connect_reads_the_key_from_the_standard_input(fresh):
    result = fresh.run("connect", "--user", "acme", "--plan", "growth", stdin=f"{fresh.key()}\n")
    assert result.exit_code == 0
    hint = f"sk-admin-…{fresh.key()[-4:]}"
    assert result.stdout == f"Connected acme ({hint}), plan growth: refreshed every 24 h.\n"
    assert "finora refresh --user acme" in result.stderr
    assert fresh.accounts.connections.key_ring(["acme"]).key_of("acme").reveal() == fresh.key()


def test_connect_as_json(fresh):
    connection = fresh.json(
        "connect", "--user", "acme", "--plan", "SCALE", "--email", "cfo@acme.example", stdin=fresh.key()
    )
    assert connection["user_id"] == "acme"
    assert connection["email"] == "cfo@acme.example"
    assert connection["plan"] == "scale"
    assert connection["status"] == "active"
    assert connection["key_hint"] == f"sk-admin-…{fresh.key()[-4:]}"
    assert connection["organization_id"] == fresh.openai.organizations[0].id
    assert connection["history_from"] is None
    assert connection["last_refresh_at"] is None
    assert datetime.fromisoformat(connection["next_refresh_at"]) > datetime.fromisoformat(
        connection["connected_at"]
    )


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (PROJECT_KEY, "Error: This is a project key, which cannot read billing data."),
        ("", "Error: No key was given: paste the Admin key"),
        ("my password", "Error: This is not an OpenAI Admin key"),
        ("sk-admin-ABCDEFGHIJKLMNOPQRSTUVWXYZ", "Error: OpenAI does not accept this key"),
    ],
)
def test_connect_with_a_bad_key_stores_nothing(fresh, stdin, says):
    assert fresh.fails("connect", "--user", "acme", stdin=stdin).startswith(says)
    assert fresh.json("status") == []


def test_connect_with_a_demoted_owners_key_gives_advice(fresh):
    key = fresh_key(fresh.openai)
    fresh.openai.simulator.set_key_state(key, KeyState.DEMOTED)
    assert "Create a new Admin key" in fresh.fails("connect", "--user", "acme", stdin=key)


def test_connect_twice_points_to_update(fresh):
    fresh.ok("connect", "--user", "acme", stdin=fresh.key())
    assert "Use update" in fresh.fails("connect", "--user", "acme", stdin=fresh.key())


def test_connect_needs_a_user_id(fresh):
    assert "--user ID" in fresh.fails("connect", stdin=fresh.key(), code=2)
    assert "Omit --user" in fresh.fails("connect", "--many", "--user", "acme", code=2)
    assert "'gold' is not one of" in fresh.fails("connect", "--user", "a", "--plan", "gold", code=2)
    assert "“..” cannot be a user id" in fresh.fails("connect", "--user", "..", stdin=fresh.key())


def test_update_takes_a_fresh_key(fresh):
    fresh.ok("connect", "--user", "acme", "--plan", "growth", stdin=fresh.key())
    key = fresh_key(fresh.openai)
    said = fresh.ok("update", "--user", "acme", stdin=key)
    assert said == f"Updated acme (sk-admin-…{key[-4:]}), plan growth: refreshed every 24 h.\n"
    assert fresh.accounts.connections.key_ring(["acme"]).key_of("acme").reveal() == key
    again = fresh_key(fresh.openai)
    assert fresh.json("update", "--user", "acme", stdin=again)["key_hint"] == f"sk-admin-…{again[-4:]}"


def test_update_refuses_keys_that_do_not_fit(fresh):
    assert "Use connect" in fresh.fails("update", "--user", "acme", stdin=fresh.key())
    fresh.ok("connect", "--user", "acme", stdin=fresh.key())
    refused = fresh.fails("update", "--user", "acme", stdin=fresh.key(1))
    assert "another organization" in refused
    assert "--replace-organization" in refused
    assert "This is a project key" in fresh.fails("update", "--user", "acme", stdin=PROJECT_KEY)
    assert "Missing option '--user'" in fresh.fails("update", stdin=fresh.key(), code=2)
    assert fresh.accounts.connections.key_ring(["acme"]).key_of("acme").reveal() == fresh.key()


# Connect many


def test_connect_many_connects_every_line(fresh):
    lines = (
        f"user,plan,key\n# our customers\n\nacme,growth,{fresh.key(0)}\n globex , Trial , {fresh.key(1)} \n"
    )
    result = fresh.run("connect", "--many", stdin=lines)
    assert result.exit_code == 0
    rows = [line.split("│")[1:5] for line in result.stdout.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["4", "acme", "connected", f"sk-admin-…{fresh.key(0)[-4:]}"],
        ["5", "globex", "connected", f"sk-admin-…{fresh.key(1)[-4:]}"],
    ]
    assert result.stderr == "2 connected, 0 skipped.\n"
    assert [(c.user_id, c.plan.name) for c in fresh.accounts.connections.all()] == [
        ("acme", "growth"),
        ("globex", "trial"),
    ]


def test_connect_many_numbers_bad_lines_and_connects_the_rest(fresh):
    lines = [
        f"acme,growth,{fresh.key(0)}",
        f"globex,gold,{fresh.key(1)}",
        fresh.key(1),
        f"globex,trial,{fresh.key(1)},oops",
        f"hooli,trial,{PROJECT_KEY}",
        f"acme,trial,{fresh.key(2)}",
    ]
    result = fresh.run("connect", "--many", "--json", stdin="\n".join(lines))
    assert result.exit_code == 1
    assert result.stderr == "1 connected, 5 skipped.\n"
    by_line = {row["line"]: row for row in json.loads(result.stdout)}
    assert [by_line[n]["outcome"] for n in range(1, 7)] == ["connected"] + ["failed"] * 5
    assert [by_line[n]["user"] for n in range(1, 7)] == ["acme", "globex", "?", "?", "hooli", "acme"]
    assert "Unknown plan “gold”" in by_line[2]["detail"]
    assert (
        by_line[3]["detail"]
        == by_line[4]["detail"]
        == "A line must be user,plan,key with exactly two commas."
    )
    assert "This is a project key" in by_line[5]["detail"]
    assert "which starts with sk-admin-, under Settings" in by_line[5]["detail"]
    assert by_line[6]["detail"] == "User acme appears twice; only the first line counts."
    assert fresh.accounts.users.ids() == ["acme"]


def test_connect_many_in_a_table_fails_with_a_bad_line_as_well(fresh):
    result = fresh.run("connect", "--many", stdin=f"acme,growth,{fresh.key()}\nglobex,growth,{PROJECT_KEY}\n")
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert "This is a project key" in result.stdout


def test_connect_many_without_lines_connects_no_user(fresh):
    assert fresh.json("connect", "--many", stdin="") == []


@pytest.mark.parametrize("columns", ["{key},growth,acme", "acme,{key},growth", "{key},growth,{key}"])
def test_connect_many_repeats_no_key_of_a_wrong_column(fresh, columns):
    # `run` searches all output for the key.
    assert fresh.run("connect", "--many", stdin=columns.format(key=fresh.key())).exit_code == 1
    assert fresh.json("status") == []


def test_connect_many_understands_a_spreadsheets_csv(fresh):
    outcomes = fresh.json("connect", "--many", stdin=f"\ufeffuser,plan,key\r\nacme,growth,{fresh.key()}\r\n")
    assert [(row["user"], row["outcome"]) for row in outcomes] == [("acme", "connected")]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("globex,,{key}", "Unknown plan"),
        ("globex,growth," + "x" * 140_000, "user,plan,key in CSV"),
    ],
)
def test_connect_many_stores_nothing_of_a_line_of_wrong_length(fresh, line, says):
    lines = f"{line.format(key=fresh.key(1))}\nacme,growth,{fresh.key()}\n"
    result = fresh.run("connect", "--many", "--json", stdin=lines)
    outcomes = [(one["outcome"], one["detail"]) for one in json.loads(result.stdout)]
    assert (outcomes[0][0], outcomes[1][0]) == ("failed", "connected")
    assert says in outcomes[0][1]
    assert [row["user_id"] for row in fresh.json("status")] == ["acme"]
    assert fresh.accounts.users.ids() == ["acme"]


def test_connect_many_reads_the_utf8_lines_of_a_mixed_file(fresh):
    lines = f"acme,growth,{fresh.key()}\nfrüh,growth,{fresh.key(1)}\n".encode("latin-1")
    result = fresh.run("connect", "--many", "--json", stdin=lines)
    assert [one["outcome"] for one in json.loads(result.stdout)] == ["connected", "failed"]


@pytest.mark.parametrize("option", [["--plan", "scale"], ["--email", "a@b.c"], ["--replace-organization"]])
def test_connect_many_refuses_options_for_a_single_user(fresh, option):
    assert "Omit --user, --plan" in fresh.fails("connect", "--many", *option, code=2)


def test_connect_many_handles_lines_after_a_stray_quotation_mark(fresh):
    lines = f'acme,growth,"{fresh.key(0)}\nglobex,growth,{fresh.key(1)}\n'
    result = fresh.run("connect", "--many", "--json", stdin=lines)
    assert [row["user"] for row in json.loads(result.stdout)] == ["acme", "globex"]


# Status, plan, remove


def test_status_of_an_empty_folder_shows_the_first_step(fresh):
    assert fresh.ok("status") == "No connections yet. finora connect creates one.\n"
    assert fresh.json("status") == []
    assert "User acme has no connection. finora connect creates one." in fresh.fails(
        "status", "--user", "acme"
    )


def test_status_shows_a_row_for_each_connection(finora):
    said = finora.ok("status")
    for number, (user, plan) in enumerate(USERS.items()):
        row = next(line for line in said.splitlines() if line.strip().startswith(f"{user} "))
        cells = re.split(r" {2,}", row.strip())
        assert cells[:4] == [user, plan, "active", f"sk-admin-…{finora.key(number)[-4:]}"]
        refreshed, due = (datetime.strptime(cell, "%Y-%m-%d %H:%M") for cell in cells[4:6])  # noqa: DTZ007
        assert due - refreshed == timedelta(days=1)
    assert "What to do" not in said


def test_status_of_a_user_as_json(finora):
    (connection,) = finora.json("status", "--user", "globex")
    assert connection["user_id"] == "globex"
    assert connection["history_from"] == str(TODAY - timedelta(days=6))
    assert connection["last_failure"] is None
    assert connection["status_reason"] is None
    refreshed, due = (
        datetime.fromisoformat(connection[name]) for name in ("last_refresh_at", "next_refresh_at")
    )
    assert due - refreshed == timedelta(days=1)


def test_all_times_in_json_have_one_format(finora):
    (connection,) = finora.json("status", "--user", "globex")
    moments = [text for name, text in connection.items() if text and name.endswith(("_at", "_since"))]
    assert len(moments) == 4
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", text) for text in moments)


def test_status_fits_a_terminal_of_eighty_columns(finora, monkeypatch):
    monkeypatch.setattr(output, "width", 80)
    said = finora.ok("status", "--user", "acme")
    assert finora.key()[-4:] in said
    assert said.count(str(TODAY)) >= 1


def test_plan_changes_a_users_plan(fresh):
    fresh.ok("connect", "--user", "acme", "--plan", "trial", stdin=fresh.key())
    said = fresh.ok("plan", "acme", "Growth")
    assert said == "acme is on growth: refreshed every 24 h, 90 days of history kept.\n"
    said = fresh.ok("plan", "acme", "enterprise")
    assert said == "acme is on enterprise: refreshed every 15 min, all of history kept.\n"
    assert fresh.json("status")[0]["plan"] == "enterprise"
    assert "Unknown user globex" in fresh.fails("plan", "globex", "trial")
    assert "'gold' is not one of" in fresh.fails("plan", "acme", "gold", code=2)


def test_remove_asks_for_confirmation(fresh):
    fresh.ok("connect", "--user", "acme", stdin=fresh.key())
    result = fresh.run("remove", "--user", "acme", stdin="n\n")
    assert result.exit_code == 1
    assert "Delete the stored OpenAI key of acme?" in result.stderr
    assert "Aborted!" in result.stderr
    assert fresh.fails("remove", "--user", "acme", stdin="").endswith("Aborted!")
    assert fresh.json("status")[0]["status"] == "active"


def test_remove_of_an_unknown_user_is_an_error(fresh):
    assert "globex has no OpenAI connection to remove" in fresh.fails("remove", "--user", "globex", "--yes")


def test_remove_deletes_the_key_once_confirmed(fresh):
    fresh.ok("connect", "--user", "acme", stdin=fresh.key())
    said = fresh.ok("remove", "--user", "acme", stdin="y\n")
    assert "Removed acme: the key is deleted, past cost data stays." in said
    assert "deleted" in fresh.ok("status", "--user", "acme")
    assert "Use connect" in fresh.fails("update", "--user", "acme", stdin=fresh.key())
    assert "No OpenAI connection to refresh for acme" in fresh.fails("refresh", "--user", "acme")


def test_remove_as_json_does_not_ask_with_yes(fresh):
    fresh.ok("connect", "--user", "acme", stdin=fresh.key())
    connection = fresh.json("remove", "--user", "acme", "--yes")
    assert (connection["status"], connection["key_hint"], connection["next_refresh_at"]) == (
        "removed",
        None,
        None,
    )


def test_reconnecting_without_a_plan_keeps_the_users_plan(fresh):
    fresh.ok("connect", "--user", "acme", "--plan", "enterprise", stdin=fresh.key())
    fresh.ok("remove", "--user", "acme", "--yes")
    assert fresh.json("connect", "--user", "acme", stdin=fresh.key())["plan"] == "enterprise"


# Refresh


def test_refresh_fetches_all_users_and_prints_a_table(refreshed):
    _, result = refreshed
    assert result.exit_code == 0
    rows = [line.split("│")[1:6] for line in result.stdout.splitlines() if line.startswith("│")]
    today = str(TODAY)
    assert [[cell.strip() for cell in row][:4] for row in rows] == [
        ["acme", str(TODAY - timedelta(days=89)), today, "complete"],
        ["globex", str(TODAY - timedelta(days=6)), today, "complete"],
        ["hooli", str(TODAY - timedelta(days=6)), today, "complete"],
    ]
    assert re.fullmatch(r"Run [0-9a-f-]{36}: 0 of 3 users failed\.\n", result.stderr)


@pytest.mark.slow
def test_refresh_of_a_range_of_days_for_a_single_user(finora):
    first, last = str(TODAY - timedelta(days=3)), str(TODAY - timedelta(days=2))
    report = finora.json("refresh", "--user", "acme", "--plan", "growth", "--from", first, "--to", last)
    assert report["succeeded"] is True
    assert report["errors"] == []
    (user,) = report["users"]
    assert (user["user"], user["from"], user["to"]) == ("acme", first, last)
    assert (user["outcome"], user["reason"], user["message"]) == ("complete", None, None)
    assert user["pages"] > 0


@pytest.mark.slow
def test_expired_days_are_not_reported_as_fetched(finora):
    days = ("--from", str(TODAY - timedelta(days=40)), "--to", str(TODAY - timedelta(days=39)))
    result = finora.run("refresh", "--user", "acme", "--user", "globex", *days)
    assert result.exit_code == 1
    assert "0 of 1 users failed." in result.stderr
    assert "1 of 2 users were skipped: " in result.stderr
    report = json.loads(finora.run("refresh", "--user", "globex", *days, "--json").stdout)
    assert (report["users"], report["not_read"]) == ([], ["globex"])


def test_a_backfill_that_fetched_no_user_fails(finora, monkeypatch):
    """Stored as a daemon stores it, whose run takes minutes."""
    over = backfills.BackfillState("completed_success", True, True, [], users_read=0, users_failed=0)
    monkeypatch.setattr(backfills, "backfill_state", lambda *_: over)
    result = finora.run(
        "backfill", "--user", "globex", "--from", str(TODAY - timedelta(days=40)), "--no-wait"
    )
    assert result.exit_code == 1
    assert "1 of 1 users were skipped: " in result.stderr


@pytest.mark.slow
def test_refresh_of_a_plan_fetches_its_users_only(finora):
    report = finora.json("refresh", "--plan", "trial")
    assert [user["user"] for user in report["users"]] == ["globex", "hooli"]
    assert {user["from"] for user in report["users"]} == {str(TODAY - timedelta(days=3))}


@pytest.mark.slow
def test_refresh_of_histories_fetches_all_days_the_plans_keep(finora):
    report = finora.json("refresh", "--history", *ALL_USERS)
    assert {user["user"]: user["from"] for user in report["users"]} == {
        "acme": str(TODAY - timedelta(days=89)),
        "globex": str(TODAY - timedelta(days=6)),
        "hooli": str(TODAY - timedelta(days=6)),
    }
    assert {user["to"] for user in report["users"]} == {str(TODAY)}


@pytest.mark.slow
def test_refresh_of_two_histories_fetches_those_two_only(finora):
    finora.ok("refresh", "--history", *ALL_USERS)
    report = finora.json("refresh", "--history", "--user", "acme", "--user", "hooli")
    assert [user["user"] for user in report["users"]] == ["acme", "hooli"]


@pytest.mark.slow
def test_refresh_fails_when_a_user_fails_and_gives_advice(finora):
    key = fresh_key(finora.openai, 3)
    finora.ok("connect", "--user", "initech", "--plan", "scale", stdin=key)
    finora.openai.simulator.set_key_state(key, KeyState.REVOKED)
    result = finora.run("refresh", "--user", "acme", "--user", "initech")
    assert result.exit_code == 1
    # Failed users come first.
    rows = [line for line in result.stdout.splitlines() if line.startswith("│")]
    assert "initech" in rows[0]
    assert "failed" in rows[0]
    assert "OpenAI does not accept this key: it was deleted or revoked" in rows[0]
    assert "complete" in rows[1]
    assert "1 of 2 users failed." in result.stderr
    assert key not in result.output

    (connection,) = finora.json("status", "--attention")
    assert (connection["user_id"], connection["status"]) == ("initech", "needs attention")
    assert connection["status_reason"] == connection["last_failure"]
    assert "Create a new Admin key" in finora.ok("status", "--attention")
    assert "tried within a day. finora status shows why" in finora.fails("refresh", "--plan", "scale")
    # Once repaired, no connection needs attention.
    finora.ok("update", "--user", "initech", stdin=fresh_key(finora.openai, 3))
    assert finora.ok("status", "--attention") == "No connection needs attention.\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", str(TODAY), "--to", str(TODAY - timedelta(days=1))], "is after --to"),
        (["--from", str(TODAY + timedelta(days=1))], "is after --to"),
        (["--to", str(TODAY + timedelta(days=400))], "is in the future"),
        (["--from", "2022-12-31"], "is before 2023-01-01. Use --history for older days"),
        (["--from", "yesterday"], "'yesterday' does not match the format '%Y-%m-%d'"),
        (["--plan", "gold"], "'gold' is not one of"),
        (["--history"], "--history needs --user, and no other option"),
        (
            ["--history", "--user", "acme", "--from", str(TODAY)],
            "--history needs --user, and no other option",
        ),
        (["--history", "--user", "acme", "--plan", "trial"], "--history needs --user, and no other option"),
    ],
)
def test_refresh_refuses_contradictory_options(finora, arguments, says):
    assert says in finora.fails("refresh", *arguments, code=2)


def test_refresh_refuses_unknown_users(fresh, finora):
    assert "No connection to refresh. finora connect creates one." in fresh.fails("refresh")
    assert "No OpenAI connection to refresh for missing" in finora.fails("refresh", "--user", "missing")
    refused = finora.fails("refresh", "--user", "acme", "--plan", "enterprise")
    assert "no OpenAI connection on the plan enterprise to refresh for acme" in refused
    missing = finora.fails("refresh", "--user", "missing", "--user", "acme", "--user", "another", "--json")
    assert "for another, missing." in missing


# SQL


def test_sql_prints_a_table(finora):
    said = finora.ok(
        "sql", "SELECT user_id, count(*) AS days FROM connections GROUP BY 1 HAVING user_id = 'acme'"
    )
    lines = said.splitlines()
    assert re.search(r"user_id ┃ days", lines[1])
    assert re.search(r"acme +│ +1 │", lines[3])


def test_sql_shows_exact_amounts_without_trailing_zeros(finora):
    said = finora.ok(
        "sql", "SELECT 1.500000::DECIMAL(38, 18) AS a, 100::DECIMAL(38, 18), NULL, [0.1, 2.50] AS l"
    )
    cells = [cell.strip() for cell in said.splitlines()[3].split("│")[1:-1]]
    assert cells == ["1.5", "100", "–", "0.1 2.5"]


def test_sql_prints_csv_for_a_spreadsheet(finora):
    query = "SELECT 'a,b' AS text, NULL AS nothing, 1.5 AS amount, DATE '2026-11-24' AS day"
    assert finora.ok("sql", query, "--csv") == 'text,nothing,amount,day\n"a,b",,1.5,2026-11-24\n'


def test_sql_prints_every_row_as_csv_and_200_in_a_table(finora):
    assert len(finora.ok("sql", "FROM range(250)", "--csv").splitlines()) == 251
    table = finora.ok("sql", "FROM range(250)")
    assert "… and 50 more rows (--csv prints all)." in table
    assert "│   199 │" in table
    assert "│   200 │" not in table


def test_sql_prints_json_with_amounts_as_exact_text(finora):
    rows = finora.json(
        "sql", "SELECT date, sum(amount_usd) AS usd FROM daily_costs WHERE user_id = 'acme' GROUP BY 1"
    )
    truth = finora.openai.organizations[0].truth(
        TODAY - timedelta(days=DAYS), TODAY + timedelta(days=1), finora.openai.simulator.now
    )
    assert {row["date"]: Decimal(row["usd"]) for row in rows} == {
        str(day): amount for day, amount in truth.by_day.items()
    }
    assert finora.json("sql", "SELECT 1 AS number, true AS yes, NULL AS nothing, [1, 2] AS list") == [
        {"number": 1, "yes": True, "nothing": None, "list": [1, 2]}
    ]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT nonsense FROM daily_costs", 'Referenced column "nonsense" not found'),
        ("SELEC 1", "syntax error"),
        ("FROM costs", "Table with name costs does not exist"),
        ("DELETE FROM daily_costs", "read-only mode"),
        ("DROP TABLE daily_costs", "read-only mode"),
    ],
)
def test_sql_prints_duckdbs_error_message(finora, query, says):
    said = finora.fails("sql", query)
    assert said.startswith("Error: ")
    assert says in said


def test_sql_before_the_first_refresh_gives_advice(fresh):
    said = fresh.fails("sql", "FROM daily_costs")
    assert "Connect an organization and run finora refresh first" in said
    assert not fresh.home.exists()


@pytest.mark.parametrize("text", ["[prod] search", "[/x] closing", "[bold]name"])
def test_sql_shows_text_in_brackets_unchanged(finora, text):
    result = finora.run("sql", f"SELECT '{text}' AS project_name")
    assert result.exit_code == 0
    assert text in result.stdout


@pytest.mark.parametrize("query", ["", " ; ", "/* nothing */"])
def test_sql_without_a_query_is_an_error(finora, query):
    finora.fails("sql", query)


def test_sql_prints_csv_that_other_programs_read(finora):
    query = "SELECT 0::DECIMAL(38, 18) AS zero, [1.5::DECIMAL(38, 18)] AS sparkline"
    (row,) = csv.DictReader(io.StringIO(finora.ok("sql", query, "--csv")))
    assert "E" not in row["zero"]
    assert "Decimal" not in row["sparkline"]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELECT 'nan'::DOUBLE AS a, 'inf'::DOUBLE AS b", [{"a": None, "b": None}]),
        ("SELECT map{'2026-01-01'::DATE: 1.50} AS a", [{"a": {"2026-01-01": "1.5"}}]),
        ("SELECT [true] AS a, 'ab'::BLOB AS b", [{"a": [True], "b": "6162"}]),
    ],
)
def test_sql_prints_json_of_every_duckdb_type(finora, query, says):
    assert finora.json("sql", query) == says
    finora.ok("sql", query)
    finora.ok("sql", query, "--csv")


def test_sql_may_begin_with_a_comment(finora):
    assert finora.json("sql", "-- how many\nSELECT 1 AS a") == [{"a": 1}]
    assert "unexpected extra argument" in finora.fails("sql", "SELECT 1", "--jsn", code=2)


def test_sql_refuses_json_with_a_duplicate_column_name(finora):
    assert "Two columns are named a" in finora.fails("sql", "SELECT 1 AS a, 2 AS a", "--json")
    assert finora.ok("sql", "SELECT 1 AS a, 2 AS a, true AS b", "--csv") == "a,a,b\n1,2,true\n"
    assert "not both" in finora.fails("sql", "SELECT 1", "--csv", "--json", code=2)


def test_sql_shows_column_names_without_control_characters(finora):
    shown = finora.ok("sql", "SELECT '[/x]', chr(27) || '[31mred' AS \"[red]h[/red]\"")
    assert "'[/x]'" in shown
    assert "[red]h[/red]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("FINORA_HOME", "/proc/nope", "/proc/nope cannot be used: "),
        ("FINORA_HOME", __file__, "cannot be used: "),
        (
            "FINORA_HOME",
            "/tmp/per%cent",
            "FINORA_HOME must be a folder without % in its path",
        ),
        ("DAGSTER_HOME", "/tmp/what?", "DAGSTER_HOME must be a folder without ? in its path"),
        ("FINORA_ACCOUNTS_URL", "rubbish", "FINORA_ACCOUNTS_URL must be"),
        (
            "FINORA_ACCOUNTS_URL",
            f"sqlite:///{__file__}",
            "cannot be read; it is damaged or another kind of file. Restore it",
        ),
    ],
)
@pytest.mark.parametrize("command", [["status"], ["refresh"], ["connect", "--user", "acme"]])
def test_an_invalid_setting_is_refused_in_a_sentence(fresh, command, variable, value, says):
    fresh.home.mkdir()
    result = CliRunner(env=fresh.environment | {variable: value}).invoke(main, command, input=fresh.key())
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert (result.exit_code, result.stdout) == (1, "")
    assert says in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("hello", "OPENAI_BASE_URL names no host"),
        ("ftp://api.openai.com/v1", "OPENAI_BASE_URL names api.openai.com, where no key may be sent"),
        ("http://[bad/v1", "OPENAI_BASE_URL names no host"),
        ("http://gateway.example/v1", "Use https for gateway.example"),
        ("https://gateway.example/v1", "OPENAI_BASE_URL names gateway.example"),
    ],
)
def test_no_key_is_sent_to_another_tools_address(fresh, value, says):
    environment = fresh.environment | {"OPENAI_BASE_URL": value}
    refused = CliRunner(env=environment).invoke(main, ["connect", "--user", "acme"], input=fresh.key())
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert says in " ".join(refused.stderr.split())
    assert CliRunner(env=environment).invoke(main, ["status"]).exit_code == 0


@pytest.mark.parametrize("name", ["quo'te", "a b#c+d", "ü"])
@pytest.mark.slow
def test_a_data_folder_may_have_any_name(openai, name, tmp_path):
    typed = Terminal(openai, tmp_path / name)
    typed.ok("connect", "--user", "acme", stdin=typed.key())
    typed.ok("refresh", "--user", "acme")
    assert typed.json("sql", "SELECT count(*) > 0 AS any FROM daily_costs") == [{"any": True}]
    assert (tmp_path / name / "accounts.sqlite").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["dashboard", "--port", "70000"], "70000 is not in the range 1<=x<=65535"),
        (["up", "--health-port", "-1"], "-1 is not in the range 0<=x<=65535"),
        (["simulate-openai", "--since", "9999-01-01"], "9999-01-01 is in the future"),
    ],
)
def test_impossible_ports_and_days_are_refused(fresh, command, says):
    assert says in fresh.fails(*command, code=2)


def test_a_password_no_browser_can_send_is_refused(fresh):
    result = fresh.run("login", "add", "ada@acme.example", "--operator", stdin=b"pa\xdfword of ada\n")
    assert result.exit_code == 1
    assert "Error: The password is not valid UTF-8" in result.stderr
    assert fresh.json("login", "list") == []


@pytest.mark.slow
def test_a_full_output_device_is_reported_in_a_sentence(fresh):
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "finora_pipeline", "status"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=os.environ | fresh.environment,
        )
    assert (ended.returncode, ended.stderr) == (1, "Error: No space left on the output device.\n")


def test_finora_is_an_installed_program(finora):
    query = "SELECT count(DISTINCT user_id) AS users FROM daily_costs WHERE user_id IN ('acme', 'globex')"
    ended = subprocess.run(
        [sys.executable, "-m", "finora_pipeline", "sql", "--csv", query],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | finora.environment,
    )
    assert (ended.returncode, ended.stdout.split(), ended.stderr) == (0, ["users", "2"], "")
