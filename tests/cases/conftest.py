"""A data folder and finora commands in it, on organizations played from files."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from click.testing import CliRunner, Result

from finora_pipeline.cli import main, runs
from tests.cases.server import CaseServer, Organization, case_text, day, playing
from tests.conftest import Installation, OpenAI
from tests.dashboard.served import dashboard

# $2.00 ÷ 275,000 tokens × 1,000.
USUAL_PER_1K = "0.0072727272"
# Advice shown when the key is the cause, which is so in none of these cases.
KEY_ADVICE = re.compile(r"fresh Admin key|new Admin key|project key|deleted or revoked", re.IGNORECASE)


def key_of(name: str) -> str:
    """Return the Admin key of an organization."""
    return f"sk-admin-{name.replace('_', '-')}-0123456789abcdefghij"


@dataclass
class Case:
    """Served organizations, a data folder, and finora's output in it."""

    server: CaseServer
    home: Path
    users: list[str]
    environment: dict[str, str] = field(default_factory=dict)

    def organization(self, user: str = "case") -> Organization:
        return self.server.organizations[key_of(user)]

    def run(self, *arguments: str, stdin: str = "") -> Result:
        """Run a command; its output must hold no typed key and no driver's text."""
        environment: dict[str, str | None] = {
            "FINORA_HOME": str(self.home),
            "DAGSTER_HOME": str(self.home / "dagster"),
            "OPENAI_BASE_URL": self.server.base_url,
            "COLUMNS": "400",
            **self.environment,
        }
        result = CliRunner(env=environment).invoke(main, arguments, input=stdin)
        unexpected = result.exception
        assert unexpected is None or isinstance(unexpected, SystemExit), repr(unexpected)
        for key in self.server.organizations:
            assert key not in result.output, "a key came out"
        return result

    def ok(self, *arguments: str, stdin: str = "") -> str:
        result = self.run(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.ok(*arguments, "--json"))

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Return rows of `finora sql`, exact numbers as texts."""
        return [tuple(row.values()) for row in self.json("sql", query)]

    def connect(self, plan: str = "growth", user: str = "case") -> Result:
        return self.run("connect", "--user", user, "--plan", plan, stdin=key_of(user))

    def connect_all(self, plan: str = "growth") -> Result:
        """Connect a user of the same name to each organization."""
        lines = "".join(f"{user},{plan},{key_of(user)}\n" for user in self.users)
        return self.run("connect", "--many", stdin=lines)

    @property
    def installation(self) -> Installation:
        """The same data folder with limits no command has: retries end soon."""
        return Installation(self.home, cast("OpenAI", self.server))

    def refresh_impatiently(self) -> runs.RunResult:
        """Run the refresh job for all users, with retries for milliseconds only."""
        return self.installation.run()

    def status(self, user: str = "case") -> dict[str, Any]:
        (connection,) = self.json("status", "--user", user)
        return connection

    def bill(self, user: str = "case") -> Decimal:
        """Return a user's total cost; its parts by model, member and API key must add up to it."""
        tables = ("daily_costs", "daily_model_costs", "daily_member_costs", "daily_key_costs")
        sums = ", ".join(
            f"(SELECT sum(amount_usd) FROM {table} WHERE user_id = '{user}') AS {table}" for table in tables
        )
        ((total, *parts),) = self.sql(f"SELECT {sums}")
        assert [Decimal(part) for part in parts] == [Decimal(total)] * 3
        return Decimal(total)

    def by(self, column: str, table: str, user: str = "case") -> dict[Any, Decimal]:
        """Return a user's costs by the values of a column."""
        rows = self.sql(
            f"SELECT {column} AS name, sum(amount_usd) AS usd FROM {table} "
            f"WHERE user_id = '{user}' GROUP BY ALL"
        )
        return {name: Decimal(usd) for name, usd in rows}

    def by_member(self, user: str = "case") -> dict[Any, Decimal]:
        return self.by("member_name", "named_member_costs", user)

    def by_key(self, user: str = "case") -> dict[Any, Decimal]:
        return self.by("api_key_name", "named_key_costs", user)

    def by_model(self, user: str = "case") -> dict[Any, Decimal]:
        return self.by("model", "daily_model_costs", user)

    def directory(self, user: str = "case") -> dict[str, int]:
        """Count the user's projects, members and API keys."""
        tables = ("projects", "members", "api_keys")
        return {
            table: self.sql(f"SELECT count(*) AS n FROM {table} WHERE user_id = '{user}'")[0][0]
            for table in tables
        }

    def words(self, user: str = "case") -> str:
        """Return what `finora status` shows of a user, as table and JSON, in one line."""
        texts = (self.ok("status", "--user", user), self.ok("status", "--user", user, "--json"))
        return " ".join(" ".join(texts).split())

    def keys_page(self, user: str = "case") -> str:
        """Return the text of a user's page API Keys in one line."""
        with dashboard(self.installation.settings) as pages:
            return pages.page(f"/users/{user}/settings/keys").text


def assert_usual(case: Case, user: str = "case", requests: int = 5) -> None:
    """Assert $2.00 yesterday, all of it by member One and the key "prod key"."""
    assert case.bill(user) == 2
    assert case.by("date", "daily_costs", user) == {day(-1): 2}
    assert case.by("project_name", "named_member_costs", user) == {"Alpha": 2}
    assert case.by_member(user) == {"Member One": 2}
    assert case.by_key(user) == {"prod key": 2}
    rows = case.sql(
        "SELECT model, amount_usd, requests, input_tokens, output_tokens, cost_per_1k_tokens "
        f"FROM daily_model_costs WHERE user_id = '{user}'"
    )
    (usual,) = rows
    assert usual[:5] == ("gpt-5.5-2026-04-23", "2", requests, 250_000, 25_000)
    assert usual[5].startswith(USUAL_PER_1K)


@contextmanager
def served(home: Path, texts: Mapping[str, str]) -> Iterator[Case]:
    """Serve organizations, by user id, for the length of the block."""
    server = CaseServer({key_of(user): Organization(text) for user, text in texts.items()})
    with playing(server):
        yield Case(server, home, list(texts))


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Case]]:
    """Play a file of this folder, or organizations by user id.

    `play("null_project")`, `play(one=text, other=text)`.
    """
    with ExitStack() as stack:

        def start(name: str = "", **texts: str) -> Case:
            wanted = {"case": case_text(name)} if name else texts
            return stack.enter_context(served(tmp_path / "home", wanted))

        yield start
