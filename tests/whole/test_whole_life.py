"""Two organizations with every service through months of changes: all totals stay exact.

Each stage compares the published facts with the simulator's truth at the same moment. OpenAI splits one
organization's costs by member and API key; for the other it refuses to.
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
# User ids in the order of their organizations.
USERS = (BILLED, ALLOCATED)
# Still shown by the smallest plan at the end, so that names are checked then, too.
GONE_DAYS_AGO = 11
# The grain of daily_usage, in the order of the simulator's keys.
USAGE_GRAIN = (
    "date",
    "service",
    "project_id",
    "member_id",
    "api_key_id",
    "model",
    "batch",
    "service_tier",
    "image_size",
    "image_source",
    "context_level",
    "vector_store_id",
)
# Measures that our tables name otherwise than OpenAI.
COLUMNS = {measure.field: measure.column for measure in MEASURES}
# Costs and usage name one of the models differently.
COST_NAMES = {model.usage_name: model.name for model in MODELS}


def joined(parts: Iterable[object]) -> str:
    """Join the parts of a key as the simulator writes it."""
    return "|".join(["" if part is None else str(part) for part in parts])


def amounts(texts: Mapping[str, str]) -> dict[str, Decimal]:
    return {key: Decimal(text) for key, text in texts.items()}


def added(bill: Mapping[str, Decimal], key: Callable[[str, str, str], str]) -> dict[str, Decimal]:
    """Add up the simulator's rows by `key` of day, project and line item."""
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for row, amount in bill.items():
        # A line item may hold the separator.
        day, project, line_item = row.split("|", 2)
        sums[key(day, project, line_item)] += amount
    return dict(sums)


@cache
def model_of(line_item: str) -> str:
    """Return the model in a line item, or the line item where it names none."""
    name = line_item.removeprefix("priority | ").split(",")[0].strip()
    return name.removesuffix(" image").removesuffix(" speech synthesis")


def without_zeros(sums: Mapping[str, Decimal]) -> dict[str, Decimal]:
    """Leave out what nothing was charged for: its rows have neither member nor key where OpenAI splits."""
    return {key: amount for key, amount in sums.items() if amount}


def unequal(found: Mapping[str, object], expected: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return differing and one-sided entries: two whole histories would be unreadable."""
    return {
        key: (found.get(key), expected.get(key))
        for key in found.keys() | expected.keys()
        if found.get(key) != expected.get(key)
    }


class Timeline:
    """An installation with two users over simulated days up to the real today."""

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

    def side_door(self, action: str, **parameters: Any) -> Any:
        address = f"{self.openai.base_url.removesuffix('/v1')}/_simulator/{action}"
        answer = httpx.post(address, json=parameters, timeout=60)
        assert answer.is_success, answer.text
        return answer.json()

    def turn_clock(self, days_ago: int, hour: int) -> datetime:
        """Advance the simulator's clock to an hour of a day."""
        moment = datetime.combine(self.day(days_ago), time(hour), UTC)
        self.side_door("clock", now=moment.isoformat())
        return moment

    def refresh(self, days_ago: int, hour: int) -> None:
        """Refresh as the job does, on a day of the simulator's clock."""
        moment = self.turn_clock(days_ago, hour)
        today, run_id = moment.date(), f"{moment:%Y-%m-%d}"

        # With production limits: a busy machine must not turn a slow response into a failure.
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
        computed = refresh_metrics(self.warehouse, today)
        assert (computed.unequal, computed.residuals) == ([], {})
        publish_refreshes(self.accounts, self.warehouse)
        # Recorded by the real clock, on which no day has passed since the last refresh.
        with self.accounts.database.write() as database:
            database.execute(update(connections).values(last_attempt_at=moment, directory_read_at=moment))

    def set_plan(self, user: str, plan: str) -> None:
        self.accounts.users.set_plan(user, plan)
        with self.accounts.database.write() as database:
            moment = self.openai.simulator.now
            database.execute(update(users).where(users.c.user_id == user).values(plan_since=moment))

    def rotate_keys(self) -> None:
        """Store a new key of each user, then delete the old one at OpenAI."""

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
        """Return rows of the snapshot opened at the start of the comparison."""
        return self._published.execute(query, list(values)).fetchall()

    def usage(self, user: str) -> dict[str, dict[str, int]]:
        measures = [COLUMNS[measure] for measure in USAGE_MEASURES]
        query = f"SELECT {', '.join((*USAGE_GRAIN, *measures))} FROM daily_usage WHERE user_id = ?"
        by_key: dict[str, dict[str, int]] = {}
        for row in self.sql(query, user):
            key = joined(row[: len(USAGE_GRAIN)])
            assert key not in by_key, "a grain stands twice"
            counts = zip(USAGE_MEASURES, row[len(USAGE_GRAIN) :], strict=True)
            by_key[key] = {measure: count for measure, count in counts if count is not None}
        return by_key

    def assert_exact(self, **first_days: date) -> None:
        """Assert that all published data of each user equals the truth from its first day on."""
        end = self.openai.simulator.now.date() + timedelta(days=1)
        # Opened once: each user takes some thirty queries.
        with connect_reader(self.settings.published_database, external_access=True) as self._published:
            for user, first in first_days.items():
                window = {"start": first.isoformat(), "end": end.isoformat()}
                truth = self.side_door("truth", organization=USERS.index(user), **window)
                assert len(truth["by_day"]) == (end - first).days
                assert {row.split("|")[1] for row in truth["usage"]} == {service.name for service in USAGE}
                bill = amounts(truth["by_row"])
                self._assert_bill(user, truth, bill)
                self._assert_parts(user, bill)
                self._assert_share(user, truth)
                if user == BILLED:
                    self._assert_billed(truth)
                assert unequal(self.usage(user), truth["usage"]) == {}
                self._assert_tokens(user, truth["tokens_by_model"])
                self._assert_spend(user, amounts(truth["by_day"]))
                self._assert_named(user)
                assert min(self.oldest(user).values()) == first

    def _assert_bill(self, user: str, truth: Any, bill: dict[str, Decimal]) -> None:
        for columns, expected in (
            ((), {"": Decimal(truth["total"])}),
            (("date",), amounts(truth["by_day"])),
            (("project_id",), amounts(truth["by_project"])),
            (("line_item",), amounts(truth["by_line_item"])),
            (("date", "project_id"), added(bill, lambda day, project, _: f"{day}|{project}")),
            (("date", "line_item"), added(bill, lambda day, _, item: f"{day}|{item}")),
            (("date", "project_id", "line_item"), bill),
        ):
            assert unequal(self.sums(user, "daily_costs", *columns), expected) == {}, columns
        # The months' Parquet files hold the same.
        files = self.settings.published_database.parent / "parquet" / "daily_costs"
        table = f"read_parquet('{files}/**/*.parquet')"
        assert unequal(self.sums(user, table, "date", "project_id", "line_item"), bill) == {}

    def _assert_billed(self, truth: Any) -> None:
        """Assert billed costs by member and key; each key has one project and one member."""
        by_key = amounts(truth["by_key"])
        keys = {key.id: key for key in self.openai.organizations[USERS.index(BILLED)].api_keys}
        # OpenAI's split by member has no service accounts: they have the sums of their keys.
        by_principal: dict[str, Decimal] = defaultdict(Decimal)
        in_projects: dict[str, Decimal] = defaultdict(Decimal)
        for row, amount in by_key.items():
            day, key = row.split("|")
            by_principal[joined((day, keys[key].owner.id))] += amount
            in_projects[joined((day, keys[key].project.id, keys[key].owner.id))] += amount
        of_members = {row: usd for row, usd in amounts(truth["by_member"]).items() if row.split("|")[1]}
        assert of_members.items() <= by_principal.items()
        for table, column, expected in (
            ("daily_member_costs", "member_id", by_principal),
            ("daily_key_costs", "api_key_id", by_key),
            ("daily_member_costs", "project_id, member_id", in_projects),
            ("daily_attributed_costs", "project_id, member_id", in_projects),
        ):
            found = without_zeros(self.sums(BILLED, table, "date", column))
            assert unequal(found, without_zeros(expected)) == {}, (table, column)

    def _assert_parts(self, user: str, bill: dict[str, Decimal]) -> None:
        """Assert that models, members and keys add up to the total in every table."""
        by_model = added(bill, lambda day, _, item: f"{day}|{model_of(item)}")
        # Usage without charges has rows, too.
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

    def _assert_share(self, user: str, truth: Any) -> None:
        """Assert costs of members and keys for a model with one price, billed or allocated.

        The expected cost is usage times price.
        """
        # The other model also has a second price.
        model = MODELS[1]
        of_members: dict[str, Decimal] = defaultdict(Decimal)
        of_keys: dict[str, Decimal] = defaultdict(Decimal)
        keys = {key.id: key for key in self.openai.organizations[USERS.index(user)].api_keys}
        for row, counts in truth["usage"].items():
            day, service, project, _, key, name, *_ = row.split("|")
            if (service, name) == ("completions", model.usage_name):
                cost = (
                    counts["input_uncached_tokens"] * model.input_price
                    + counts["input_cached_tokens"] * model.cached_price
                    + counts["output_tokens"] * model.output_price
                )
                of_members[f"{day}|{project}|{keys[key].owner.id}"] += cost
                of_keys[f"{day}|{project}|{key}"] += cost
        for table, column, expected in (
            ("daily_member_costs", "member_id", of_members),
            ("daily_key_costs", "api_key_id", of_keys),
        ):
            of_model = f"(FROM {table} WHERE model = '{model.name}')"
            found = without_zeros(self.sums(user, of_model, "date", "project_id", column))
            assert unequal(found, without_zeros(expected)) == {}, table

    def _assert_tokens(self, user: str, tokens: Mapping[str, list[int]]) -> None:
        query = (
            "SELECT model, sum(input_tokens), sum(output_tokens) FROM daily_model_costs "
            "WHERE user_id = ? GROUP BY model"
        )
        found = {model: counts for model, *counts in self.sql(query, user)}
        expected = {COST_NAMES.get(model, model): counts for model, counts in tokens.items()}
        # The simulator counts tokens of completions; other services have their own models.
        assert {model: found.get(model) for model in expected} == expected

    def _assert_spend(self, user: str, by_day: dict[str, Decimal]) -> None:
        query = (
            "SELECT period, period_start, through_date, value FROM user_metrics "
            "WHERE user_id = ? AND metric = 'total_spend'"
        )
        figures = self.sql(query, user)
        assert len(figures) == 4
        for period, start, through, value in figures:
            spent = (usd for day, usd in by_day.items() if start <= date.fromisoformat(day) <= through)
            assert value == sum(spent, Decimal(0)), period

    def _assert_named(self, user: str) -> None:
        """Assert a name for every project, member and key, also deleted ones."""
        organization = self.openai.organizations[USERS.index(user)]
        projects = {(project.id, project.name) for project in organization.projects}
        members = {(member.id, member.name) for member in organization.members}
        principals = members | {(key.owner.id, key.owner.name) for key in organization.api_keys}
        api_keys = {(key.id, key.name) for key in organization.api_keys}
        for view, kind, expected in (
            ("named_usage", "project", projects),
            ("named_usage", "member", members),
            ("named_usage", "api_key", api_keys),
            ("named_member_costs", "project", projects),
            ("named_member_costs", "member", principals),
            ("named_key_costs", "project", projects),
            ("named_key_costs", "api_key", api_keys),
        ):
            query = (
                f"SELECT DISTINCT {kind}_id, {kind}_name FROM {view} "
                f"WHERE user_id = ? AND {kind}_id IS NOT NULL"
            )
            assert set(self.sql(query, user)) == expected, view

    def gone(self, user: str) -> dict[str, int]:
        """Count objects that OpenAI no longer lists, or lists as archived."""
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
        """Return the kinds of restatement among loaded charges."""
        query = "SELECT DISTINCT is_there FROM cost_revisions WHERE user_id = ? AND was_there"
        kinds = self.installation.sql(query, user)
        return {"changed" if is_there else "vanished" for (is_there,) in kinds}

    def oldest(self, user: str) -> dict[str, date]:
        """Return the user's first day in each table with days."""
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
def timeline(install: Callable[[OpenAI], Installation]) -> Iterator[Timeline]:
    """Two different organizations, of which OpenAI splits one's costs."""
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
        yield Timeline(install(OpenAI(simulator, base_url)))


def test_every_total_equals_the_truth_through_all_changes(timeline: Timeline) -> None:
    timeline.turn_clock(28, 10)
    timeline.installation.connect(plan="growth", users=USERS)
    timeline.set_plan(ALLOCATED, "trial")
    timeline.refresh(28, 10)
    timeline.assert_exact(billed=timeline.day(28 + 89), allocated=timeline.day(28 + 6))

    # The next night: a larger plan, a new key, and restated days.
    for user in USERS:
        timeline.set_plan(user, "enterprise")
    timeline.rotate_keys()
    timeline.refresh(27, 3)
    timeline.assert_exact(billed=timeline.since, allocated=timeline.since)

    # Weeks without a refresh, in which a project, two members and a key were deleted.
    timeline.refresh(8, 8)
    timeline.assert_exact(billed=timeline.since, allocated=timeline.since)
    for user in USERS:
        assert timeline.gone(user) == {"projects": 1, "members": 2, "api_keys": 1}
        assert timeline.restated(user) >= {"changed", "vanished"}

    # A smaller plan and a second rotation; no day is deleted in the week of grace.
    timeline.rotate_keys()
    timeline.turn_clock(8, 9)
    timeline.set_plan(BILLED, "trial")
    timeline.set_plan(ALLOCATED, "growth")
    timeline.refresh(4, 12)
    assert (
        prune(
            timeline.warehouse, lambda: timeline.accounts.users.kept_from(timeline.openai.simulator.now)
        ).rows
        == {}
    )

    # The last day in Dagster's own jobs, which use the real clock.
    timeline.turn_clock(0, 15)
    result = runs.refresh(timeline.settings, trailing_window(timeline.installation.today))
    assert (result.succeeded, result.failed_users) == (True, [])
    timeline.assert_exact(billed=timeline.since, allocated=timeline.since)
    nightly(timeline.installation)
    assert {connection.key_version for connection in timeline.accounts.connections.all()} == {3}
    timeline.assert_exact(billed=timeline.day(6 + 7), allocated=timeline.day(89 + 7))
