"""Builders of the real parts: a simulated OpenAI on loopback, accounts, an installation."""

import asyncio
import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import duckdb
import pytest

from finora_pipeline.accounts.actors import DAEMON, act_as
from finora_pipeline.accounts.model import Connection, PartFailure
from finora_pipeline.accounts.onboarding import NewConnection, connect_many
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.assets import raw_pages
from finora_pipeline.cli import runs
from finora_pipeline.ingest.fetch import FetchPlan, OnUserDone, fetch
from finora_pipeline.ingest.landing import Fetched, Landing
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.ingest.run import fetch_and_land
from finora_pipeline.ingest.selection import select_connections
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.instance.home import prepare_instance
from finora_pipeline.openai_admin.client import Limits, open_client
from finora_pipeline.openai_admin.pages import Window
from finora_pipeline.openai_simulator import OrganizationSpec, SimulatedOrganization, Simulator, running
from finora_pipeline.reading import connect as connect_reader
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.settings import ACCOUNTS_URL, Settings
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.postgres_server import PostgresServer, postgres_binaries, running_postgres

FIXTURES = Path(__file__).parent / "fixtures"
# Faults end in milliseconds, so that tests never wait; one process serves all organizations.
QUICK = Limits(concurrency=32, timeout_seconds=5, retry_seconds=0.05, first_pause_seconds=0.001)

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"


# Modules whose tests all carry one marker; single tests of other modules carry their own.
MODULES_OF = {
    "daemon": ("cli/test_demo", "cli/test_up", "cli/test_up_killed", "server/test_nginx"),
    "slow": (
        "alerts/test_alerts",
        "cases/test_cases",
        "cases/test_parts",
        "cases/test_surroundings",
        "cases/test_values",
        "dashboard/test_password_threads",
        "data_folder/test_disk_full",
        "data_folder/test_storage_errors",
        "ingest/test_budgets",
        "ingest/test_refresh",
        "ingest/test_slow_users",
        "instance/test_run_history",
        "instance/test_run_launcher",
        "pipeline/test_cadence",
        "pipeline/test_checks",
        "pipeline/test_clock",
        "pipeline/test_crashes",
        "pipeline/test_dagster",
        "pipeline/test_directory",
        "pipeline/test_fault_table",
        "pipeline/test_isolation",
        "pipeline/test_logs",
        "pipeline/test_no_leak",
        "pipeline/test_replaced_organization",
        "pipeline/test_restatement",
        "pipeline/test_restore",
        "pipeline/test_retention",
        "pipeline/test_sample_data",
        "reading/test_questions",
        "test_benchmarks",
        "warehouse/test_attribution",
        "warehouse/test_changed_published_file",
        "warehouse/test_odd_figures",
        "warehouse/test_reparse",
        "warehouse/test_replaced_database",
        "whole/test_upgraded_installations",
        "whole/test_whole_life",
    ),
}
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set markers by folder, module and fixture; fail for a missing module in `MODULES_OF`."""
    marker_of = {TESTS / f"{module}.py": marker for marker, names in MODULES_OF.items() for module in names}
    assert not [path for path in marker_of if not path.exists()]
    for item in items:
        if "browser" in item.path.relative_to(TESTS).parts:
            item.add_marker(pytest.mark.browser)
        if item.path in marker_of:
            item.add_marker(marker_of[item.path])
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.postgres)


def pytest_collection_finish() -> None:
    """Exempt imported modules from garbage collection: it takes a twelfth of the suite."""
    gc.collect()
    gc.freeze()


def now_in_the_middle_of_today() -> datetime:
    """Return 15:00 UTC of the real today, late enough that today has costs."""
    return datetime.now(UTC).replace(hour=15, minute=0, second=0, microsecond=0)


@dataclass
class OpenAI:
    """A simulated OpenAI and its address."""

    simulator: Simulator
    base_url: str

    @property
    def organizations(self) -> list[SimulatedOrganization]:
        return self.simulator.organizations

    def truth(self, number: int, window: Window) -> Any:
        """Return what a refresh of the window must load of the organization at this moment."""
        return self.organizations[number].truth(window.start, window.end, self.simulator.now)


@pytest.fixture
def start_openai() -> Iterator[Callable[..., OpenAI]]:
    """Starts simulated OpenAIs: `start_openai(organizations=2, days=10, services=True, …)`."""
    servers = []

    def start(organizations: int = 1, days: int = 10, now: datetime | None = None, **spec: Any) -> OpenAI:
        moment = now or now_in_the_middle_of_today()
        since = moment.date() - timedelta(days=days - 1)
        numbers_as = spec.pop("amounts_as_numbers", False)
        specs = [OrganizationSpec(number, since=since, **spec) for number in range(organizations)]
        simulator = Simulator(specs, now=moment, amounts_as_numbers=numbers_as)
        server = running(simulator)
        servers.append(server)
        return OpenAI(simulator, server.__enter__())

    yield start
    for server in servers:
        server.__exit__(None, None, None)


@lru_cache(maxsize=1)
def fresh_dagster_home() -> Path:
    """Dagster's databases before any run: creating them takes longer than most tests."""
    home = Path(tempfile.mkdtemp(prefix="finora-dagster-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DAGSTER_HOME", "")
        prepare_instance(Settings.from_environment({"FINORA_HOME": str(home)}))
    return home / "dagster"


@contextmanager
def watching(on_user_done: OnUserDone | None) -> Iterator[None]:
    """Call this after each user's fetch within the block, in place of the run's log."""
    if on_user_done is None:
        yield
        return
    with mock.patch.object(raw_pages, "progress_log", return_value=on_user_done):
        yield


class Installation:
    """A whole installation in a temporary folder: accounts, warehouse and Dagster's instance."""

    def __init__(self, home: Path, openai: OpenAI, accounts_url: str = "") -> None:
        self.openai = openai
        self.settings = Settings.from_environment(
            {"FINORA_HOME": str(home), "OPENAI_BASE_URL": openai.base_url, ACCOUNTS_URL: accounts_url}
        )
        if not self.settings.dagster_home.exists():
            shutil.copytree(fresh_dagster_home(), self.settings.dagster_home)
        self.accounts: Accounts = accounts_of(self.settings)
        self.today: date = datetime.now(UTC).date()

    def connect(self, plan: str = "growth", users: Sequence[str] | None = None) -> list[str]:
        """Connect a user to each simulated organization, `user-0` to the first; return their ids.

        Connected users stay unchanged.
        """
        known = {connection.user_id for connection in self.accounts.connections.all()}
        organizations = self.openai.organizations
        user_ids = list(users or [f"user-{n}" for n in range(len(organizations))])
        lines = [
            NewConnection(user_id, plan, organization.admin_key)
            for user_id, organization in zip(user_ids, organizations, strict=False)
            if user_id not in known
        ]

        async def run() -> None:
            async with open_client(self.settings.openai_base_url, QUICK) as client:
                async for _, outcome in connect_many(self.accounts, client, lines):
                    assert isinstance(outcome, Connection), outcome

        asyncio.run(run())
        return user_ids

    @property
    def openai_admin(self) -> OpenAIAdmin:
        """The resource as in production, with short retries."""
        return OpenAIAdmin(self.settings.openai_base_url, QUICK)

    def refresh(
        self, window: Window | None = None, *, plan: str | None = None, users: Sequence[str] = ()
    ) -> runs.RunResult:
        """Run the steps of a refresh one after another, without Dagster, which takes as long again.

        `run` is a real run.
        """
        run_id = str(uuid4())
        warehouse = Warehouse(self.settings.home)
        chosen = select_connections(self.accounts, plan=plan, user_ids=users, skip_missing=True)
        asked = window or trailing_window(self.today)
        plan_of_run = FetchPlan.of(chosen, asked, datetime.now(UTC).date(), failures=self.part_failures())
        fetch_and_land(run_id, plan_of_run, self.accounts, self.openai_admin, warehouse)
        loaded = load_pending(warehouse, KINDS, run_id)
        assert not any(loaded.repeated.values())
        computed = refresh_metrics(warehouse, datetime.now(UTC).date())
        assert not computed.unequal
        publish_refreshes(self.accounts, warehouse)
        return runs.RunResult(run_id, True, self.accounts.refreshes.of_run(run_id), [])

    def part_failures(self) -> dict[str, list[PartFailure]]:
        """The optional parts that OpenAI refused lately, by user."""
        return self.accounts.refreshes.part_failures(self.accounts.users.ids())

    def run(
        self, window: Window | None = None, *, on_user_done: OnUserDone | None = None, **options: Any
    ) -> runs.RunResult:
        """Run the refresh job in this process; `on_user_done` is called after each user's fetch."""
        with watching(on_user_done):
            return runs.refresh(
                self.settings,
                window or trailing_window(self.today),
                openai_admin=self.openai_admin,
                **options,
            )

    def fetch(
        self,
        run_id: str,
        *,
        openai_admin: OpenAIAdmin | None = None,
        today: date | None = None,
        landing: type[Landing] = Landing,
        **options: Any,
    ) -> Fetched:
        """Fetch and land the last days of every user; `options` are those of `FetchPlan`."""
        today = today or self.today
        chosen = self.accounts.connections.all()
        plan = FetchPlan.of(chosen, trailing_window(today), today, failures=self.part_failures(), **options)
        user_ids = [connection.user_id for connection in chosen]

        async def run() -> Fetched:
            opened = (openai_admin or self.openai_admin).organizations(self.accounts, user_ids)
            async with opened as organizations:
                target = landing(self.accounts, Warehouse(self.settings.home), run_id, user_ids)
                return await fetch(organizations, plan, target)

        return asyncio.run(run())

    def sql(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return rows of the published file."""
        with connect_reader(self.settings.published_database) as connection:
            return connection.execute(query, list(values)).fetchall()

    def history(self, days: int) -> Window:
        """Return the window of so many UTC days up to today."""
        tomorrow = self.today + timedelta(days=1)
        return Window(tomorrow - timedelta(days=days), tomorrow)

    def costs(self, user_id: str) -> dict[tuple[date, str, str], Decimal]:
        """Return the user's published costs by day, project and line item, in USD."""
        query = "SELECT date, project_id, line_item, amount_usd FROM daily_costs WHERE user_id = ?"
        rows = self.sql(query, user_id)
        facts = {(day, project, item): amount for day, project, item, amount in rows}
        assert len(facts) == len(rows), "a grain stands twice"
        return facts

    def assert_exact(self, user_id: str, number: int, window: Window) -> None:
        """Assert that published facts equal the simulator's truth, row by row and exactly."""
        truth = self.openai.truth(number, window)
        facts = {key: amount for key, amount in self.costs(user_id).items() if key[0] >= window.start}
        assert facts == truth.by_row


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Installation]:
    """Create an installation on a simulated OpenAI: `install(openai)`, `install(openai, url)`."""

    def make(openai: OpenAI, accounts_url: str = "") -> Installation:
        return Installation(tmp_path / "home", openai, accounts_url)

    return make


@pytest.fixture(scope="module")
def kept_homes() -> dict[object, Path]:
    """The data folders that `install_loaded` made for a module's tests."""
    return {}


@pytest.fixture
def install_loaded(
    kept_homes: dict[object, Path],
    start_openai: Callable[..., OpenAI],
    install: Callable[..., Installation],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Installation]:
    """As `install`, with a user of the plan connected to each organization and refreshed once.

    The first test of a module with the same arguments builds the data folder; others get a copy. With
    `by_run` the refresh is a real Dagster run.
    """

    def make(plan: str, *, by_run: bool = False, **spec: Any) -> Installation:
        openai, home = start_openai(**spec), tmp_path / "home"
        same = (plan, by_run, *sorted(spec.items()))
        if same in kept_homes:
            shutil.copytree(kept_homes[same], home)
            return install(openai)
        installation = install(openai)
        installation.connect(plan=plan)
        result = installation.run() if by_run else installation.refresh()
        assert result.succeeded, result.errors
        assert not result.failed_users
        kept_homes[same] = shutil.copytree(home, tmp_path_factory.mktemp("kept") / "home")
        return installation

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A Postgres server for the session.

    Tests that use it are skipped without its binaries; with FINORA_TEST_EVERYTHING they fail.
    """
    binaries = postgres_binaries()
    if binaries is None:
        reason = "Postgres is missing on this machine: install Debian's package postgresql."
        if os.environ.get("FINORA_TEST_EVERYTHING"):
            pytest.fail(reason)
        pytest.skip(reason)
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Isolate each test from this machine's settings and from other tests'."""
    for name in (
        "OPENAI_ADMIN_KEY",
        "OPENAI_BASE_URL",
        "FINORA_ACCESS_TOKEN",
        "FINORA_ACCOUNTS_URL",
        "FINORA_ALLOWED_HOSTS",
        "FINORA_MASTER_KEY",
        "FINORA_PASSWORD_SIGN_IN",
        "FINORA_TRUSTED_PROXIES",
    ):
        monkeypatch.delenv(name, raising=False)
    # A command run earlier in this process has set its own actor.
    act_as(DAEMON)
    monkeypatch.setenv("FINORA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))


@pytest.fixture
def memory() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty DuckDB in memory."""
    with duckdb.connect(":memory:") as connection:
        yield connection
