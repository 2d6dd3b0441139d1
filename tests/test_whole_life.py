"""The whole life of two organizations with every service: whatever happens to them, all totals stay exact.

At each stage the published facts are held against what the simulator's side door tells of the same moment.
OpenAI splits the one organization's costs by member and API key itself, and refuses to for the other.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import duckdb
import httpx
import pytest
from sqlalchemy import update

from finora_pipeline.accounts.database import connections, users
from finora_pipeline.accounts.onboarding import check_key
from finora_pipeline.accounts.onboarding import update as store_key
from finora_pipeline.cli import runs
from finora_pipeline.ingest.fetch import FetchPlan
from finora_pipeline.ingest.publish import publish_refreshes
from finora_pipeline.ingest.run import fetch_and_land
from finora_pipeline.ingest.windows import trailing_window
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_admin.endpoints import USAGE, USAGE_MEASURES
from finora_pipeline.openai_admin.errors import InvalidKey
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.measures import MEASURES
from finora_pipeline.openai_simulator import KeyState, OrganizationSpec, Simulator, running
from finora_pipeline.openai_simulator.catalog import MODELS
from finora_pipeline.reading import connect as connect_reader
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.retention import prune
from tests.conftest import Installation, OpenAI, now_in_the_middle_of_today
from tests.pipeline.test_retention import nightly
from tests.small_openai import fresh_key

DAYS = 400
BILLED, ALLOCATED = "billed", "allocated"
# Users by the number of their organization.
USERS = (BILLED, ALLOCATED)
# Still within what the smallest plan shows at the end, so that names are proved then, too.
GONE_DAYS_AGO = 11
# The grain of daily_usage, in the order of the side door's keys.
USAGE_GRAIN = (
    "date",
    "service",
    "project_id",
    "member_id",
    "api_key_id",
    "model",
    "batch",
    "service_tier",
)
# Measures that our tables name otherwise than OpenAI.
COLUMNS = {measure.field: measure.column for measure in MEASURES}
# Costs and usage name one of the models differently.
COST_NAMES = {model.usage_name: model.name for model in MODELS}


def joined(parts: Iterable[object]) -> str:
    """A key of several parts as the side door writes it."""
    return "|".join(["" if part is None else str(part) for part in parts])


def amounts(told: Mapping[str, str]) -> dict[str, Decimal]:
    return {key: Decimal(text) for key, text in told.items()}


def added(bill: Mapping[str, Decimal], key: Callable[[str, str, str], str]) -> dict[str, Decimal]:
    """The side door's rows by day, project and line item, added up by what `key` makes of the three."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for row, amount in bill.items():
        # A line item may hold the separator.
        day, project, line_item = row.split("|", 2)
        sums[key(day, project, line_item)] += amount
    return dict(sums)


@cache
def model_of(line_item: str) -> str:
    """The model that a person reads in a line item; the text itself where it names none."""
    name = line_item.removeprefix("priority | ").split(",")[0].strip()
    return name.removesuffix(" image").removesuffix(" speech synthesis")


def unequal(found: Mapping[str, object], expected: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """What differs, and what is on one side only: two whole histories would be no readable message."""
    return {
        key: (found.get(key), expected.get(key))
        for key in found.keys() | expected.keys()
        if found.get(key) != expected.get(key)
    }


class Life:
    """An installation whose two users' organizations live through simulated days up to the real today."""

    def __init__(self, installation: Installation) -> None:
        self.installation = installation
        self.openai = installation.openai
        self.accounts = installation.accounts
        self.settings = installation.settings
        self.warehouse = Warehouse(self.settings.home)
        self.since = self.day(DAYS - 1)
        self._published: duckdb.DuckDBPyConnection
        self._keys = {user: self.openai.organizations[n].admin_key for n, user in enumerate(USERS)}

    def day(self, days_ago: int) -> date:
        return self.installation.today - timedelta(days=days_ago)

    def side_door(self, action: str, **told: Any) -> Any:
        address = f"{self.openai.base_url.removesuffix('/v1')}/_simulator/{action}"
        answer = httpx.post(address, json=told, timeout=60)
        assert answer.is_success, answer.text
        return answer.json()

    def turn_clock(self, days_ago: int, hour: int) -> datetime:
        """Lets the simulator's days pass until an hour of a day."""
        moment = datetime.combine(self.day(days_ago), time(hour), UTC)
        self.side_door("clock", now=moment.isoformat())
        return moment

    def refresh(self, days_ago: int, hour: int) -> None:
        """What a run of the refresh job does, on a day of the simulator's clock."""
        moment = self.turn_clock(days_ago, hour)
        today, run_id = moment.date(), f"{moment:%Y-%m-%d}"

        # With the limits of production: a busy machine must not turn a slow answer into a failure.
        resource = OpenAIAdmin.of(self.settings)
        plan = FetchPlan.of(
            self.accounts.connections.all(),
            trailing_window(today),
            today,
            failures=self.accounts.refreshes.part_failures(USERS),
        )
        fetched = fetch_and_land(run_id, plan, self.accounts, resource, self.warehouse)
        assert fetched.failures == []
        load_pending(self.warehouse, KINDS, run_id)
        computed = refresh_metrics(self.warehouse, self.accounts.users.ids(), today)
        assert (computed.unequal, computed.residuals) == ([], {})
        publish_refreshes(self.accounts, self.warehouse)
        # Noted by the machine's clock, on which no day has passed since the last refresh.
        with self.accounts.database.write() as database:
            database.execute(update(connections).values(last_attempt_at=moment, directory_read_at=moment))

    def set_plan(self, user: str, plan: str) -> None:
        self.accounts.users.set_plan(user, plan)
        with self.accounts.database.write() as database:
            moment = self.openai.simulator.now
            database.execute(update(users).where(users.c.user_id == user).values(plan_since=moment))

    def rotate_keys(self) -> None:
        """Each user stores a fresh key; then the old one is deleted at OpenAI."""

        async def store(user: str, number: int) -> None:
            async with open_client(self.settings.openai_base_url) as client:
                fresh = fresh_key(self.openai, number)
                await store_key(self.accounts, client, user, fresh)
                old, self._keys[user] = self._keys[user], fresh
                self.side_door("keys", organization=number, key=old, state=KeyState.REVOKED)
                with pytest.raises(InvalidKey):
                    await check_key(client, AdminKey(old))

        for number, user in enumerate(USERS):
            asyncio.run(store(user, number))

    def sums(self, user: str, table: str, *columns: str) -> dict[str, Decimal]:
        wanted = ", ".join((*columns, "sum(amount_usd)"))
        query = f"SELECT {wanted} FROM {table} WHERE user_id = ? GROUP BY ALL"
        return {joined(key): amount for *key, amount in self.sql(query, user)}

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the published file as it was at the start of the comparison."""
        return self._published.execute(query, list(values)).fetchall()

    def usage(self, user: str) -> dict[str, dict[str, int]]:
        measures = [COLUMNS[measure] for measure in USAGE_MEASURES]
        query = f"SELECT {', '.join((*USAGE_GRAIN, *measures))} FROM daily_usage WHERE user_id = ?"
        told: dict[str, dict[str, int]] = {}
        for row in self.sql(query, user):
            key = joined(row[: len(USAGE_GRAIN)])
            assert key not in told, "a grain stands twice"
            counts = zip(USAGE_MEASURES, row[len(USAGE_GRAIN) :], strict=True)
            told[key] = {measure: count for measure, count in counts if count is not None}
        return told

    def assert_exact(self, **first_days: date) -> None:
        """All that is published of each user is the truth of the days from the user's first on."""
        end = self.openai.simulator.now.date() + timedelta(days=1)
        # Opened once: there are some thirty questions to a user.
        with connect_reader(self.settings.published_database, external_access=True) as self._published:
            for user, first in first_days.items():
                window = {"start": first.isoformat(), "end": end.isoformat()}
                told = self.side_door("truth", organization=USERS.index(user), **window)
                assert len(told["by_day"]) == (end - first).days
                assert {row.split("|")[1] for row in told["usage"]} == {service.name for service in USAGE}
                bill = amounts(told["by_row"])
                self._assert_bill(user, told, bill)
                self._assert_parts(user, bill)
                self._assert_share(user, told)
                if user == BILLED:
                    self._assert_billed(told)
                assert unequal(self.usage(user), told["usage"]) == {}
                self._assert_tokens(user, told["tokens_by_model"])
                self._assert_spend(user, amounts(told["by_day"]))
                self._assert_named(user)
                assert min(self.oldest(user).values()) == first

    def _assert_bill(self, user: str, told: Any, bill: dict[str, Decimal]) -> None:
        for columns, expected in (
            ((), {"": Decimal(told["total"])}),
            (("date",), amounts(told["by_day"])),
            (("project_id",), amounts(told["by_project"])),
            (("line_item",), amounts(told["by_line_item"])),
            (("date", "project_id"), added(bill, lambda day, project, _: f"{day}|{project}")),
            (("date", "line_item"), added(bill, lambda day, _, item: f"{day}|{item}")),
            (("date", "project_id", "line_item"), bill),
        ):
            assert unequal(self.sums(user, "daily_costs", *columns), expected) == {}, columns
        # The months' files that others read say the same.
        files = self.settings.published_database.parent / "parquet" / "daily_costs"
        table = f"read_parquet('{files}/**/*.parquet')"
        assert unequal(self.sums(user, table, "date", "project_id", "line_item"), bill) == {}

    def _assert_billed(self, told: Any) -> None:
        """Members and keys cost what OpenAI says; a key is of one project and of one member."""
        by_key = amounts(told["by_key"])
        of_key = {
            key.id: (key.project.id, key.member_id)
            for key in self.openai.organizations[USERS.index(BILLED)].api_keys
        }
        in_projects: dict[str, Decimal] = defaultdict(Decimal)
        for row, amount in by_key.items():
            day, key = row.split("|")
            in_projects[joined((day, *of_key[key]))] += amount
        for table, column, expected in (
            ("daily_member_costs", "member_id", amounts(told["by_member"])),
            ("daily_key_costs", "api_key_id", by_key),
            ("daily_member_costs", "project_id, member_id", in_projects),
        ):
            assert unequal(self.sums(BILLED, table, "date", column), expected) == {}, (table, column)

    def _assert_parts(self, user: str, bill: dict[str, Decimal]) -> None:
        """Models, members and keys add up to the bill wherever one can look."""
        by_model = added(bill, lambda day, _, item: f"{day}|{model_of(item)}")
        # Use that nothing is charged for has rows, too.
        found = {
            row: amount
            for row, amount in self.sums(user, "daily_model_costs", "date", "model").items()
            if amount
        }
        assert unequal(found, {row: amount for row, amount in by_model.items() if amount}) == {}
        in_projects = added(bill, lambda day, project, item: f"{day}|{project}|{model_of(item)}")
        for table in ("daily_member_costs", "daily_key_costs"):
            assert unequal(self.sums(user, table, "date", "project_id", "model"), in_projects) == {}, table
            methods = self.sql(f"SELECT DISTINCT method FROM {table} WHERE user_id = ?", user)
            assert methods == [(user,)]

    def _assert_share(self, user: str, told: Any) -> None:
        """Members and keys bear what they used of a model with one price, billed or allocated: its truth is
        the use times the price."""
        # The other model is sold at a second price, too.
        model = MODELS[1]
        of_members: dict[str, Decimal] = defaultdict(Decimal)
        of_keys: dict[str, Decimal] = defaultdict(Decimal)
        for row, counts in told["usage"].items():
            day, service, project, member, key, name, *_ = row.split("|")
            if (service, name) == ("completions", model.usage_name):
                cost = (
                    counts["input_uncached_tokens"] * model.input_price
                    + counts["input_cached_tokens"] * model.cached_price
                    + counts["output_tokens"] * model.output_price
                )
                of_members[f"{day}|{project}|{member}"] += cost
                of_keys[f"{day}|{project}|{key}"] += cost
        for table, column, expected in (
            ("daily_member_costs", "member_id", of_members),
            ("daily_key_costs", "api_key_id", of_keys),
        ):
            of_model = f"(FROM {table} WHERE model = '{model.name}')"
            assert unequal(self.sums(user, of_model, "date", "project_id", column), expected) == {}, table

    def _assert_tokens(self, user: str, told: Mapping[str, list[int]]) -> None:
        query = (
            "SELECT model, sum(input_tokens), sum(output_tokens) FROM daily_model_costs "
            "WHERE user_id = ? GROUP BY model"
        )
        found = {model: counts for model, *counts in self.sql(query, user)}
        expected = {COST_NAMES.get(model, model): counts for model, counts in told.items()}
        # The side door counts the tokens of completions; other services have models of their own.
        assert {model: found.get(model) for model in expected} == expected

    def _assert_spend(self, user: str, by_day: dict[str, Decimal]) -> None:
        query = (
            "SELECT period, period_start, value FROM user_metrics "
            "WHERE user_id = ? AND metric = 'total_spend'"
        )
        figures = self.sql(query, user)
        assert len(figures) == 4
        for period, start, value in figures:
            spent = (amount for day, amount in by_day.items() if date.fromisoformat(day) >= start)
            assert value == sum(spent, Decimal(0)), period

    def _assert_named(self, user: str) -> None:
        """Every project, member and key stands under its name, also those who are gone."""
        organization = self.openai.organizations[USERS.index(user)]
        projects = {(project.id, project.name) for project in organization.projects}
        members = {(member.id, member.name) for member in organization.members}
        api_keys = {(key.id, key.name) for key in organization.api_keys}
        for view, kind, expected in (
            ("named_usage", "project", projects),
            ("named_usage", "member", members),
            ("named_usage", "api_key", api_keys),
            ("named_member_costs", "project", projects),
            ("named_member_costs", "member", members),
            ("named_key_costs", "project", projects),
            ("named_key_costs", "api_key", api_keys),
        ):
            query = (
                f"SELECT DISTINCT {kind}_id, {kind}_name FROM {view} "
                f"WHERE user_id = ? AND {kind}_id IS NOT NULL"
            )
            assert set(self.sql(query, user)) == expected, view

    def gone(self, user: str) -> dict[str, int]:
        """How many OpenAI shows no more, or as archived."""
        counts = {}
        for table, condition in (
            ("projects", "status = 'archived'"),
            ("members", "NOT is_listed"),
            ("api_keys", "NOT is_listed"),
        ):
            query = f"SELECT count(*) FROM {table} WHERE user_id = ? AND {condition}"
            ((counts[table],),) = self.installation.sql(query, user)
        return counts

    def restated(self, user: str) -> set[str]:
        """What OpenAI did to charges that had been read."""
        query = "SELECT DISTINCT is_there FROM cost_revisions WHERE user_id = ? AND was_there"
        kinds = self.installation.sql(query, user)
        return {"changed" if is_there else "vanished" for (is_there,) in kinds}

    def oldest(self, user: str) -> dict[str, date]:
        """The first day of the user in each table that has days."""
        tables = self.sql(
            "SELECT schema_name || '.' || table_name FROM duckdb_columns() SEMI JOIN duckdb_tables() "
            "USING (database_name, schema_name, table_name) WHERE column_name = 'date' "
            "AND database_name = current_database()"
        )
        found = {}
        for (table,) in tables:
            ((first,),) = self.sql(f"SELECT min(date) FROM {table} WHERE user_id = ?", user)
            if first:
                found[table] = first
        return found


@pytest.fixture
def life(install: Callable[[OpenAI], Installation]) -> Iterator[Life]:
    """Two organizations that differ in who they are and in whether OpenAI splits their costs."""
    now = now_in_the_middle_of_today()
    specs = [
        OrganizationSpec(
            number,
            since=now.date() - timedelta(days=DAYS - 1),
            projects=2,
            members=3,
            keys_per_project=2,
            models=MODELS[:2],
            cost_groupings=groupings,
            archived_projects=1,
            vanished_members=2,
            deleted_keys=1,
            service_accounts=1,
            gone_since=now.date() - timedelta(days=GONE_DAYS_AGO),
        )
        for number, groupings in enumerate((("api_key_id", "user_id"), ()))
    ]
    simulator = Simulator(specs, now=now)
    with running(simulator) as base_url:
        yield Life(install(OpenAI(simulator, base_url)))


def test_every_total_equals_the_truth_through_a_whole_life(life: Life) -> None:
    life.turn_clock(28, 10)
    life.installation.connect(plan="growth", users=USERS)
    life.set_plan(ALLOCATED, "trial")
    life.refresh(28, 10)
    life.assert_exact(billed=life.day(28 + 89), allocated=life.day(28 + 6))

    # The next night both are on a better plan, with another key, and the days just read are restated.
    for user in USERS:
        life.set_plan(user, "enterprise")
    life.rotate_keys()
    life.refresh(27, 3)
    life.assert_exact(billed=life.since, allocated=life.since)

    # Weeks without a refresh, in which a project, two members and a key went.
    life.refresh(8, 8)
    life.assert_exact(billed=life.since, allocated=life.since)
    for user in USERS:
        assert life.gone(user) == {"projects": 1, "members": 2, "api_keys": 1}
        assert life.restated(user) >= {"changed", "vanished"}

    # A smaller plan, and the second rotation, within whose week of grace nothing goes.
    life.rotate_keys()
    life.turn_clock(8, 9)
    life.set_plan(BILLED, "trial")
    life.set_plan(ALLOCATED, "growth")
    life.refresh(4, 12)
    assert prune(life.warehouse, lambda: life.accounts.users.kept_from(life.openai.simulator.now)).rows == {}

    # The last day in Dagster's own jobs, which go by the machine's clock.
    life.turn_clock(0, 15)
    result = runs.refresh(life.settings, trailing_window(life.installation.today))
    assert (result.succeeded, result.failed_users) == (True, [])
    life.assert_exact(billed=life.since, allocated=life.since)
    nightly(life.installation)
    assert {connection.key_version for connection in life.accounts.connections.all()} == {3}
    life.assert_exact(billed=life.day(6 + 7), allocated=life.day(89 + 7))
