"""Costs by member and API key: billed by OpenAI, else allocated by usage; complete."""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.warehouse import metrics
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.conftest import Installation
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, load, page_of, rows

SPLITS = [("daily_member_costs", "member_id"), ("daily_key_costs", "api_key_id")]


def sums(installation: Installation, table: str, *columns: str) -> dict[Any, Decimal]:
    names = ", ".join(("date", *columns))
    query = f"SELECT {names}, sum(amount_usd) FROM {table} WHERE user_id = 'user-0' GROUP BY ALL"
    return {(*key,): amount for *key, amount in installation.sql(query)}


def methods(installation: Installation, table: str) -> set[str]:
    return {method for (method,) in installation.sql(f"SELECT DISTINCT method FROM {table}")}


def test_members_and_keys_equal_the_billed_split(start_openai, install):
    since = datetime.now(UTC).date() - timedelta(days=20)
    gone = {"vanished_members": 1, "deleted_keys": 1, "service_accounts": 1, "gone_since": since}
    installation = install(start_openai(days=40, **gone))
    installation.connect(plan="growth")
    assert installation.refresh().failed_users == []
    truth = installation.openai.truth(0, installation.history(90))
    assert methods(installation, "daily_member_costs") == {"billed"}
    # OpenAI's split by member has no service accounts: the keys' sums say what they cost.
    owners = {key.id: key.owner.id for key in installation.openai.organizations[0].api_keys}
    by_owner: dict[Any, Decimal] = defaultdict(Decimal)
    for (day, key), amount in truth.by_key.items():
        by_owner[day, owners[key]] += amount
    found = sums(installation, "daily_member_costs", "member_id")
    assert {key: amount for key, amount in found.items() if amount} == by_owner
    of_members = {key: amount for key, amount in truth.by_member.items() if key[1]}
    assert {key: found[key] for key in of_members} == of_members
    found = sums(installation, "daily_key_costs", "api_key_id")
    assert {key: amount for key, amount in found.items() if amount} == truth.by_key


@pytest.mark.parametrize(("table", "column"), SPLITS)
def test_costs_openai_does_not_split_are_allocated_by_usage(table, column, start_openai, install):
    installation = install(start_openai(days=12, cost_groupings=()))
    installation.connect(plan="growth")
    assert installation.refresh().failed_users == []
    assert installation.accounts.connections.get("user-0").cost_groupings == {
        "user_id": False,
        "api_key_id": False,
    }
    assert methods(installation, table) == {"allocated"}
    bill = sums(installation, "daily_costs", "project_id")
    assert sums(installation, table, "project_id") == bill
    # Every charge of a used model has a member.
    by_id = installation.sql(
        f"SELECT model, sum(amount_usd) FROM {table} WHERE {column} IS NULL GROUP BY model ORDER BY model"
    )
    unattributed = {model for model, _ in by_id}
    assert "assistants api | file search" in unattributed
    assert not any(model.startswith("gpt-4") for model in unattributed)


def test_a_refused_split_is_requested_again_once_a_day(start_openai, install):
    openai = start_openai(days=4, cost_groupings=("user_id",))
    installation = install(openai)
    installation.connect(plan="trial")
    # Costs, their total and the two splits; then without the refused one.
    for asked in (4, 3):
        openai.simulator.requests.clear()
        assert installation.refresh().failed_users == []
        assert openai.simulator.requests["costs"] == asked
    assert methods(installation, "daily_member_costs") == {"billed"}
    assert methods(installation, "daily_key_costs") == {"allocated"}


def test_days_of_any_size_are_all_computed_in_portions(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "ROWS_AT_ONCE", 3)
    warehouse = Warehouse(tmp_path)
    rows_of_days = [1, 0, 9, 2, 1]
    for user_id in ("acme", "bolt"):
        days = [
            cost_day([cost_row(f'"0.{n + 1}"', f"gpt-4o-{n}, input") for n in range(count)], day)
            for day, count in zip(days_from(DAY), rows_of_days, strict=False)
        ]
        land(warehouse, page_of(*days), user_id=user_id)
    load(warehouse)
    computed = refresh_metrics(warehouse, DAY + timedelta(days=9))
    assert (computed.days, computed.unequal) == (10, [])
    for table in ("daily_model_costs", "daily_member_costs", "daily_key_costs"):
        found = rows(warehouse, f"SELECT user_id, date, count(*) FROM {table} GROUP BY ALL ORDER BY ALL")
        assert found == [
            (user_id, day, count)
            for user_id in ("acme", "bolt")
            for day, count in zip(days_from(DAY), rows_of_days, strict=False)
            if count
        ]
    assert rows(warehouse, "FROM pipeline.stale_days") == []


def days_from(first: date) -> Iterator[date]:
    return (first + timedelta(days=n) for n in itertools.count())


amounts = st.decimals(-1000, 1_000_000, places=18, allow_nan=False)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(amount=amounts, tokens=st.lists(st.integers(0, 10**12), min_size=1, max_size=6))
def test_parts_equal_the_largest_remainder_split_exactly(amount: Decimal, tokens, tmp_path_factory):
    warehouse = Warehouse(tmp_path_factory.mktemp("split"))
    land(warehouse, page_of(cost_day([cost_row(f'"{amount:f}"')])))
    load(warehouse)
    used = [
        {"project_id": "proj_a", "model": "gpt-4o", "user_id": f"user-{n}", "input_tokens": count}
        for n, count in enumerate(tokens)
    ]
    completions = ENDPOINTS["completions"]
    land(warehouse, page_of(bucket(used)), endpoint=completions)
    load(warehouse, "completions")
    computed = refresh_metrics(warehouse, DAY)
    assert (computed.days, computed.unequal) == (1, [])
    found = rows(warehouse, "SELECT member_id, amount_usd FROM daily_member_costs")
    assert dict(found) == expected_split(amount, tokens)


def expected_split(amount: Decimal, tokens: list[int]) -> dict[str | None, Decimal]:
    """Compute the split with Python integers."""
    units = int(abs(amount).scaleb(18))
    whole = sum(tokens)
    parts: dict[str | None, int] = defaultdict(int)
    if len(tokens) == 1:
        parts["user-0"] = units
    elif not whole:
        parts[None] = units
    else:
        shares = [divmod(units * count, whole) for count in tokens]
        order = sorted(range(len(tokens)), key=lambda n: (-shares[n][1], f"user-{n}"))
        missing = units - sum(part for part, _ in shares)
        for place, n in enumerate(order):
            parts[f"user-{n}"] = shares[n][0] + (place < missing)
    sign = -1 if amount < 0 else 1
    kept = {member: part for member, part in parts.items() if part} or {min(parts, key=str): 0}
    return {member: Decimal(sign * part).scaleb(-18) for member, part in kept.items()}
