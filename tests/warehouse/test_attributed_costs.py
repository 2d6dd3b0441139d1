"""Charges split by member and API key together, by OpenAI or by usage."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import (
    API_KEYS,
    COSTS,
    ENDPOINTS,
    EXTRA_ENDPOINTS,
    MEMBERS,
    PROJECTS,
)
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, land_lists, page_of, rows

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
SERVICE = "svc-1"
# As the directory knows them; key-4 is in no list.
OWNERS = {"key-0": "user-0", "key-1": "user-1", "key-2": SERVICE, "key-3": "user-0"}
Pair = tuple[str | None, str | None]
Parts = dict[Pair, Decimal]
Computed = Callable[..., Warehouse]


@dataclass(frozen=True, slots=True)
class Use:
    """A row of usage of a model."""

    member: str | None
    key: str | None
    tokens: int = 0
    output: int = 0
    requests: int = 1
    model: str = "gpt-4o"

    def as_row(self) -> dict[str, Any]:
        return {
            "project_id": "proj_a",
            "user_id": self.member,
            "api_key_id": self.key,
            "model": self.model,
            "input_tokens": self.tokens,
            "output_tokens": self.output,
            "num_model_requests": self.requests,
        }


@dataclass(frozen=True, slots=True)
class Day:
    """Charges and usage of a day, with OpenAI's splits of it: line item, id and USD."""

    charges: dict[str, Decimal]
    uses: Sequence[Use] = ()
    by_member: Sequence[tuple[str, str | None, Decimal]] = field(default_factory=list)
    by_key: Sequence[tuple[str, str | None, Decimal]] = field(default_factory=list)


def key_row(key: str, owner: str) -> dict[str, Any]:
    if owner == SERVICE:
        owned = {"type": "service_account", "service_account": {"id": owner, "name": owner}}
    else:
        owned = {"type": "user", "user": {"id": owner, "name": owner, "email": f"{owner}@case.example"}}
    return {"id": key, "name": key, "created_at": 1_700_000_000, "owner": owned}


def land_directory(warehouse: Warehouse, at: datetime = NOON) -> None:
    people = sorted({owner for owner in OWNERS.values() if owner != SERVICE})
    lists = {
        (PROJECTS, ""): [{"id": "proj_a", "name": "A", "status": "active", "created_at": 1_700_000_000}],
        (MEMBERS, ""): [
            {"id": id, "name": id, "email": f"{id}@case.example", "role": "reader", "added_at": 1}
            for id in people
        ],
        (API_KEYS, "proj_a"): [key_row(key, owner) for key, owner in OWNERS.items()],
    }
    land_lists(warehouse, lists, at)


def land_days(warehouse: Warehouse, days: Sequence[Day]) -> None:
    buckets: dict[Any, list[Any]] = defaultdict(list)
    for n, day in enumerate(days):
        date = DAY + timedelta(days=n)
        lines = [cost_row(f'"{usd:f}"', line) for line, usd in day.charges.items()]
        buckets[COSTS].append(cost_day(lines, date))
        buckets[ENDPOINTS["completions"]].append(bucket([use.as_row() for use in day.uses], date))
        for endpoint, column, parts in (
            ("costs_by_member", "user_id", day.by_member),
            ("costs_by_key", "api_key_id", day.by_key),
        ):
            split = [
                cost_row(f'"{usd:f}"', line)[:-1] + (f',"{column}":"{id}"}}' if id else "}")
                for line, id, usd in parts
            ]
            buckets[EXTRA_ENDPOINTS[endpoint]].append(cost_day(split, date))
    for endpoint, of_days in buckets.items():
        land(warehouse, page_of(*of_days), endpoint=endpoint, fetched_at=NOON)


@pytest.fixture
def computed(tmp_path_factory) -> Computed:
    """Load days with the directory and compute metrics."""

    def compute(*days: Day) -> Warehouse:
        warehouse = Warehouse(tmp_path_factory.mktemp("attributed"))
        land_days(warehouse, days)
        land_directory(warehouse)
        load_pending(warehouse, KINDS, "run-1")
        result = refresh_metrics(warehouse, DAY + timedelta(days=len(days)))
        assert (result.unequal, result.failed) == ([], [])
        return warehouse

    return compute


def usd(amount: str) -> Decimal:
    return Decimal(amount)


def parts_of(warehouse: Warehouse, day: date = DAY, line: str = "gpt-4o, input") -> Parts:
    query = (
        "SELECT member_id, api_key_id, amount_usd FROM daily_attributed_costs "
        f"WHERE date = '{day}' AND line_item = '{line}'"
    )
    found = rows(warehouse, query)
    parts: Parts = {(member, key): amount for member, key, amount in found}
    assert len(parts) == len(found)
    return parts


# By hand

LINE = "gpt-4o, input"


def test_a_charge_is_allocated_once_by_pairs_of_member_and_key(computed: Computed):
    uses = [
        Use("user-0", "key-0", 1),
        Use("user-0", "key-3", 2),
        Use("user-1", "key-0", 4),
        Use(None, None, 1),
    ]
    warehouse = computed(Day({LINE: usd("8.00")}, uses))
    assert parts_of(warehouse) == {
        ("user-0", "key-0"): 1,
        ("user-0", "key-3"): 2,
        ("user-1", "key-0"): 4,
        (None, None): 1,
    }
    query = "SELECT principal_type, unattributed_reason, method, amount_usd FROM {} WHERE {} IS NULL"
    none = [("none", "no_dimension", "allocated", Decimal(1))]
    assert rows(warehouse, query.format("daily_attributed_costs", "member_id")) == none
    assert rows(warehouse, query.format("daily_member_costs", "member_id")) == none
    assert rows(warehouse, query.format("daily_key_costs", "api_key_id")) == none


@pytest.mark.parametrize("line", ["promotional credit", "gpt-4o, training"])
def test_a_charge_that_no_usage_explains_says_so(line: str, computed: Computed):
    amount = usd("-3.00") if line == "promotional credit" else usd("3.00")
    warehouse = computed(Day({line: amount, LINE: usd("1.00")}, [Use("user-0", "key-0", 5)]))
    query = (
        "SELECT member_id, api_key_id, amount_usd, charges_usd, principal_type, unattributed_reason "
        f"FROM daily_attributed_costs WHERE line_item = '{line}'"
    )
    assert rows(warehouse, query) == [(None, None, amount, max(amount, Decimal(0)), "none", "no_usage")]
    sums = "SELECT sum(amount_usd), sum(charges_usd) FROM {}"
    for table in ("daily_attributed_costs", "daily_member_costs", "daily_key_costs"):
        assert rows(warehouse, sums.format(table)) == [(amount + 1, max(amount, Decimal(0)) + 1)]


@pytest.mark.parametrize(
    ("uses", "expected"),
    [
        ([Use("user-0", "key-0", 1), Use("user-1", "key-1", 5)], ("user-0", "key-0")),
        ([Use("user-0", "key-0", 0, 0, 0), Use("user-1", "key-1", 0, 0, 0)], (None, None)),
        ([Use("user-0", "key-0", 0, 0, 0), Use("user-0", "key-3", 0, 0, 0)], ("user-0", None)),
        ([], (None, None)),
    ],
)
def test_a_charge_of_zero_has_one_row(uses: list[Use], expected: Pair, computed: Computed):
    warehouse = computed(Day({LINE: usd("0.00")}, uses))
    assert parts_of(warehouse) == {expected: 0}


def test_usage_of_a_service_accounts_key_is_the_service_accounts(computed: Computed):
    uses = [Use("user-0", "key-0", 1), Use(None, "key-2", 3)]
    warehouse = computed(Day({LINE: usd("4.00")}, uses))
    assert parts_of(warehouse) == {("user-0", "key-0"): 1, (SERVICE, "key-2"): 3}
    for table in ("daily_attributed_costs", "daily_member_costs", "daily_key_costs"):
        query = f"SELECT principal_type, amount_usd FROM {table} ORDER BY amount_usd"
        assert rows(warehouse, query) == [("member", Decimal(1)), ("service_account", Decimal(3))]


def test_both_of_openais_splits_hold_at_once(computed: Computed):
    uses = [Use("user-0", "key-0", 5), Use("user-1", "key-0", 1, requests=9), Use("user-1", "key-1", 5)]
    day = Day(
        {LINE: usd("10.00")},
        uses,
        [(LINE, "user-0", usd("3.00")), (LINE, "user-1", usd("4.00")), (LINE, None, usd("2.90"))],
        [(LINE, "key-0", usd("2.00")), (LINE, "key-1", usd("1.00")), (LINE, "key-2", usd("2.90"))],
    )
    warehouse = computed(day)
    assert parts_of(warehouse) == {
        # Most requests with key-0 were of user-1.
        ("user-1", "key-0"): 2,
        ("user-1", "key-1"): 1,
        ("user-1", None): 1,
        ("user-0", None): 3,
        # A service account's key, which the split by member has no member for.
        (SERVICE, "key-2"): usd("2.90"),
        (None, None): usd("0.10"),
    }
    query = "SELECT DISTINCT method, member_method, api_key_method FROM daily_attributed_costs"
    assert rows(warehouse, query) == [("billed", "billed", "billed")]
    query = "SELECT unattributed_reason FROM daily_attributed_costs WHERE principal_type = 'none'"
    assert rows(warehouse, query) == [("remainder",)]


def test_a_key_whose_owner_openais_split_lacks_has_no_member(computed: Computed):
    by_member = [(LINE, None, usd("5.00"))]
    by_key = [(LINE, "key-1", usd("4.00")), (LINE, "key-4", usd("1.00"))]
    warehouse = computed(Day({LINE: usd("5.00")}, [], by_member, by_key))
    assert parts_of(warehouse) == {(None, "key-1"): 4, (None, "key-4"): 1}
    query = "SELECT DISTINCT principal_type, unattributed_reason FROM {}"
    for table in ("daily_attributed_costs", "daily_member_costs", "daily_key_costs"):
        assert rows(warehouse, query.format(table)) == [("none", "no_dimension")]


def test_a_split_by_member_alone_is_joined_with_allocated_keys(computed: Computed):
    uses = [Use("user-0", "key-0", 1), Use("user-1", "key-1", 3)]
    by_member = [(LINE, "user-0", usd("3.00")), (LINE, "user-1", usd("1.00"))]
    warehouse = computed(Day({LINE: usd("4.00")}, uses, by_member))
    assert parts_of(warehouse) == {
        ("user-0", "key-0"): 1,
        ("user-0", None): 2,
        ("user-1", "key-1"): 3,
        ("user-1", None): -2,
    }
    query = (
        "SELECT DISTINCT api_key_id IS NULL, method, member_method, api_key_method "
        "FROM daily_attributed_costs ORDER BY 1"
    )
    assert rows(warehouse, query) == [
        (False, "allocated", "billed", "allocated"),
        (True, "billed", "billed", "allocated"),
    ]
    query = "SELECT DISTINCT method FROM {}"
    assert rows(warehouse, query.format("daily_member_costs")) == [("billed",)]
    assert rows(warehouse, query.format("daily_key_costs")) == [("allocated",)]


def test_a_late_directory_changes_the_days_that_it_explains(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    known = Day({LINE: usd("1.00")}, [Use("user-0", "key-0", 1)])
    land_days(warehouse, [Day({LINE: usd("2.00")}, [Use(None, "key-2", 1)]), known])
    load_pending(warehouse, KINDS, "run-1")
    refresh_metrics(warehouse, DAY + timedelta(days=2))
    assert parts_of(warehouse) == {(None, "key-2"): 2}
    land_directory(warehouse)
    load_pending(warehouse, KINDS, "run-1")
    assert rows(warehouse, "SELECT date FROM pipeline.stale_days") == [(DAY,)]
    refresh_metrics(warehouse, DAY + timedelta(days=2))
    assert parts_of(warehouse) == {(SERVICE, "key-2"): 2}
    # The same lists again change nothing.
    land_directory(warehouse, NOON + timedelta(hours=1))
    load_pending(warehouse, KINDS, "run-1")
    assert rows(warehouse, "FROM pipeline.stale_days") == []


# Against a computation with Python's integers


def expected(day: Day, line: str) -> Parts:
    """Compute the parts of a charge by the rules of daily_attributed_costs.sql."""
    amount = day.charges[line]
    shares, keeps_zero = allocation(day, line)
    if not day.by_member and not day.by_key:
        parts = shares
    else:
        keeps_zero = False
        parts = joined(
            day,
            summed(day.by_member, line) if day.by_member else margin(shares, 0),
            summed(day.by_key, line) if day.by_key else margin(shares, 1),
        )
    parts = {pair: part for pair, part in parts.items() if (part or keeps_zero) and pair != (None, None)}
    rest = amount - sum(parts.values())
    return parts if parts and not rest else parts | {(None, None): rest}


def allocation(day: Day, line: str) -> tuple[Parts, bool]:
    """Return the parts by usage, and whether a part of zero stays."""
    uses = [use for use in day.uses if "training" not in line and use.model == line.partition(",")[0]]
    weights: dict[Pair, list[int]] = defaultdict(lambda: [0, 0])
    for use in uses:
        member = use.member or (SERVICE if OWNERS.get(use.key or "") == SERVICE else None)
        weights[member, use.key][0] += use.output if line.endswith("output") else use.tokens
        weights[member, use.key][1] += use.requests
    if len(weights) == 1:
        return dict.fromkeys(weights, day.charges[line]), True
    chosen = next((n for n in (0, 1) if sum(weight[n] for weight in weights.values())), None)
    if chosen is None:
        members, keys = ({pair[n] for pair in weights} for n in (0, 1))
        sole = (members.pop() if len(members) == 1 else None, keys.pop() if len(keys) == 1 else None)
        return ({sole: day.charges[line]} if weights else {}), True
    units, whole = int(abs(day.charges[line]).scaleb(18)), sum(weight[chosen] for weight in weights.values())
    parts = {pair: divmod(units * weight[chosen], whole) for pair, weight in weights.items()}
    order = sorted(
        parts, key=lambda pair: (-parts[pair][1], pair[0] is None, pair[0], pair[1] is None, pair[1])
    )
    if not units:
        return {order[0]: Decimal(0)}, True
    missing = units - sum(part for part, _ in parts.values())
    sign = -1 if day.charges[line] < 0 else 1
    return {
        pair: Decimal(sign * (parts[pair][0] + (place < missing))).scaleb(-18)
        for place, pair in enumerate(order)
    }, False


def summed(split: Sequence[tuple[str, str | None, Decimal]], line: str) -> dict[str | None, Decimal]:
    sums: dict[str | None, Decimal] = defaultdict(Decimal)
    for of, id, amount in split:
        if of == line:
            sums[id] += amount
    return {id: amount for id, amount in sums.items() if amount}


def margin(parts: Parts, position: int) -> dict[str | None, Decimal]:
    sums: dict[str | None, Decimal] = defaultdict(Decimal)
    for pair, amount in parts.items():
        sums[pair[position]] += amount
    return {id: amount for id, amount in sums.items() if amount}


def joined(day: Day, members: dict[str | None, Decimal], keys: dict[str | None, Decimal]) -> Parts:
    parts: Parts = {(id, None): amount for id, amount in members.items() if id}
    for key, amount in keys.items():
        if key is None:
            continue
        owner = owner_on(day, key)
        if owner and owner in members:
            parts[owner, None] -= amount
        elif owner != SERVICE:
            owner = None
        parts[owner, key] = amount
    return parts


def owner_on(day: Day, key: str) -> str | None:
    used: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for use in day.uses:
        if use.key == key and use.member:
            used[use.member][0] += use.requests
            used[use.member][1] += use.tokens + use.output
    if not used:
        return OWNERS.get(key)
    return min(used, key=lambda member: (-used[member][0], -used[member][1], member))


LINES = ["gpt-4o, input", "gpt-4o, output", "o3, input", "gpt-4o, training", "promotional credit"]
amounts = st.decimals(-(10**4), 10**9, places=18, allow_nan=False) | st.sampled_from([Decimal(0), Decimal(7)])
member_ids = st.sampled_from([None, "user-0", "user-1", "user-2", SERVICE])
key_ids = st.sampled_from([None, *OWNERS, "key-4"])
counts = st.integers(0, 10**12) | st.integers(0, 2)
uses = st.builds(
    Use, member_ids, key_ids, counts, counts, st.integers(0, 3), st.sampled_from(["gpt-4o", "o3"])
)


def splits(ids: st.SearchStrategy[str | None]) -> Any:
    # OpenAI's split may lack charges and parts, and have others.
    part = st.tuples(st.sampled_from([*LINES, "o1, input"]), ids, amounts)
    return st.just([]) | st.lists(part, max_size=8, unique_by=lambda part: part[:2])


any_day = st.builds(
    Day,
    st.dictionaries(st.sampled_from(LINES), amounts, min_size=1),
    st.lists(uses, max_size=7, unique_by=lambda use: (use.member, use.key, use.model)),
    splits(member_ids),
    splits(key_ids),
)
SLOW = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.large_base_example)


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    # Shrinking loads a warehouse each time: minutes.
    phases=[Phase.generate],
    suppress_health_check=[*SLOW, HealthCheck.data_too_large],
)
@given(days=st.lists(any_day, min_size=20, max_size=30))
@pytest.mark.slow
def test_parts_are_exact_for_any_usage_and_split(days: list[Day], computed: Computed):
    warehouse = computed(*days)
    found: dict[Any, Parts] = defaultdict(dict)
    query = "SELECT date, line_item, member_id, api_key_id, amount_usd FROM daily_attributed_costs"
    for on, line, member, key, amount in rows(warehouse, query):
        assert (member, key) not in found[on, line]
        found[on, line][member, key] = amount
    for n, day in enumerate(days):
        for line, amount in day.charges.items():
            parts = found.pop((DAY + timedelta(days=n), line))
            assert parts == expected(day, line), (n, line)
            assert sum(parts.values()) == amount
            assert_margins(day, line, parts)
    assert not found
    assert_columns(warehouse)
    assert_sums(warehouse)


def assert_margins(day: Day, line: str, parts: Parts) -> None:
    """Assert that the sums of members and keys are OpenAI's, where it splits the day."""
    if day.by_member:
        billed, members = summed(day.by_member, line), margin(parts, 0)
        assert {id: usd for id, usd in members.items() if id and (id != SERVICE or id in billed)} == {
            id: usd for id, usd in billed.items() if id
        }
    if day.by_key:
        billed, keys = summed(day.by_key, line), margin(parts, 1)
        assert {id: usd for id, usd in keys.items() if id} == {id: usd for id, usd in billed.items() if id}


def assert_columns(warehouse: Warehouse) -> None:
    wrong = f"""
        SELECT * FROM daily_attributed_costs AS parts
        JOIN daily_costs AS costs USING (user_id, provider, date, project_id, line_item)
        WHERE parts.charges_usd <> CASE WHEN costs.amount_usd > 0 THEN parts.amount_usd ELSE 0 END
           OR principal_type <> CASE
                WHEN member_id IS NULL THEN 'none'
                WHEN member_id = '{SERVICE}' THEN 'service_account'
                ELSE 'member' END
           OR (unattributed_reason IS NULL) <> (principal_type <> 'none')
           OR (parts.cost_model, parts.direction, parts.cost_service, parts.charge_category) IS DISTINCT FROM
                (costs.cost_model, costs.direction, costs.cost_service, costs.charge_category)
           OR method <> CASE
                WHEN (member_id IS NULL) = (api_key_id IS NULL) THEN least(member_method, api_key_method)
                WHEN member_id IS NULL THEN api_key_method
                ELSE member_method END"""
    assert rows(warehouse, wrong) == []
    query = "SELECT count(*) FROM daily_attributed_costs JOIN daily_costs USING (date, project_id, line_item)"
    assert rows(warehouse, query) == rows(warehouse, "SELECT count(*) FROM daily_attributed_costs")


def assert_sums(warehouse: Warehouse) -> None:
    """Assert that the tables of members and keys are sums of the parts, one row a grain."""
    for table, id, method in (
        ("daily_member_costs", "member_id", "member_method"),
        ("daily_key_costs", "api_key_id", "api_key_method"),
    ):
        columns = f"date, project_id, {id}"
        of_parts = (
            f"SELECT {columns}, cost_model, sum(amount_usd), sum(charges_usd), min({method}) "
            "FROM daily_attributed_costs GROUP BY ALL ORDER BY ALL"
        )
        of_table = f"SELECT {columns}, model, amount_usd, charges_usd, method FROM {table} ORDER BY ALL"
        assert rows(warehouse, of_table) == rows(warehouse, of_parts)
        query = (
            f"SELECT count(*) FROM {table} "
            "WHERE (principal_type = 'none') <> (unattributed_reason IS NOT NULL) "
            f"OR {id} IS NULL AND principal_type <> 'none' OR is_sample"
        )
        assert rows(warehouse, query) == [(0,)]
