"""Figures from odd data: none may be wrong by a digit or stop other users' figures."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from finora_pipeline.openai_admin.endpoints import ENDPOINTS, EXTRA_ENDPOINTS
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.metrics import refresh_metrics
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, load, page_of, rows

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path)


def priced(amount: str, quantity: str) -> str:
    return cost_row(f'"{amount}"')[:-1] + f',"quantity":{quantity}}}'


def used_by(member_id: str, input_tokens: int, cached: int = 0) -> dict[str, Any]:
    return {
        "project_id": "proj_a",
        "user_id": member_id,
        "api_key_id": f"key_of_{member_id}",
        "model": "gpt-4o",
        "num_model_requests": 1,
        "input_tokens": input_tokens,
        "input_cached_tokens": cached,
        "output_tokens": 0,
    }


@pytest.mark.parametrize("last_digit", range(6))
def test_parts_add_up_with_more_cached_than_total_tokens(last_digit: int, warehouse: Warehouse):
    bill = Decimal(f"0.10000000000000000{last_digit}")
    land(warehouse, page_of(cost_day([cost_row(f'"{bill}"')])), fetched_at=NOON)
    use = [used_by("a", 8), used_by("b", 5, cached=6), used_by("c", 5, cached=6)]
    land(warehouse, page_of(bucket(use)), endpoint=ENDPOINTS["completions"], fetched_at=NOON)
    load(warehouse)
    load(warehouse, "completions")
    assert refresh_metrics(warehouse, DAY).unequal == []
    parts = rows(warehouse, "SELECT member_id, amount_usd FROM daily_member_costs ORDER BY member_id")
    assert sum(amount for _, amount in parts) == bill
    assert {member_id for member_id, amount in parts if amount} == {"a"}


def test_rows_with_more_fields_than_the_grouping_are_added_up(warehouse: Warehouse):
    named = [cost_row(f'"{usd}"')[:-1] + f',"user_id":"user-{usd}"}}' for usd in ("1.00", "2.00")]
    land(warehouse, page_of(cost_day(named)), fetched_at=NOON)
    loaded = load(warehouse)
    assert not any(loaded.repeated.values())
    assert rows(warehouse, "SELECT amount_usd FROM daily_costs") == [(Decimal(3),)]

    by_member = EXTRA_ENDPOINTS["costs_by_member"]
    land(warehouse, page_of(cost_day(named)), endpoint=by_member, fetched_at=NOON)
    load(warehouse, by_member.name)
    query = "SELECT member_id, amount_usd FROM pipeline.billed_costs ORDER BY member_id"
    assert rows(warehouse, query) == [("user-1.00", Decimal(1)), ("user-2.00", Decimal(2))]


def test_a_price_too_large_for_its_column_is_null(warehouse: Warehouse):
    days = [
        cost_day([priced("5000000.0", "0.000001")], DAY - timedelta(days=1)),
        cost_day([priced("5.00", "100000000.0")], DAY),
    ]
    land(warehouse, page_of(*days), fetched_at=NOON)
    load(warehouse)
    refresh_metrics(warehouse, DAY + timedelta(days=4))
    query = "SELECT facts_usd, price_residual_usd FROM pipeline.reconciled_days WHERE date = "
    assert rows(warehouse, f"{query} '{DAY}'") == [(Decimal(5), None)]


def test_amounts_too_large_for_a_ratio_have_none(warehouse: Warehouse):
    # As an older version loaded it: such amounts are refused today.
    amount = "234567890123456789.123456789012345678"
    land(warehouse, page_of(cost_day([cost_row('"1.00"')])), fetched_at=NOON)
    before = page_of(cost_day([cost_row('"0.000000000000000001"')], DAY - timedelta(days=7)))
    land(warehouse, before, run_id="run-0", fetched_at=NOON)
    use = page_of(bucket([used_by("a", 8)]))
    land(warehouse, use, endpoint=ENDPOINTS["completions"], fetched_at=NOON)
    load(warehouse)
    load(warehouse, "completions")
    rows(warehouse, f"UPDATE daily_costs SET amount_usd = '{amount}' WHERE date = '{DAY}'")
    refresh_metrics(warehouse, DAY + timedelta(days=1))
    figures = dict(rows(warehouse, "SELECT metric, value FROM user_metrics WHERE period = '7d'"))
    assert figures["total_spend"] == Decimal(amount)
    assert figures["cost_per_1k_tokens"] is None


@pytest.mark.parametrize(
    ("usd", "top"),
    [
        ({f"model-{n}": "1.00" if n == 10 else "5.00" for n in range(30, 9, -1)}, "model-11"),
        # Shares are of the charges, whatever credits there are.
        ({"gpt-4o": "1.00", "o3": "-2.00"}, "gpt-4o"),
        # Nothing was charged: no share, so no top model.
        ({"gpt-4o": "0.00", "o3": "0.00"}, None),
        ({"o3": "-2.00"}, None),
        ({"gpt-4o": None}, None),
    ],
)
def test_equal_top_models_are_chosen_by_name(usd, top, warehouse: Warehouse):
    lines = [
        cost_row(f'"{amount}"' if amount else "null", f"{model}, input") for model, amount in usd.items()
    ]
    land(warehouse, page_of(cost_day(lines)), fetched_at=NOON)
    load(warehouse)
    refresh_metrics(warehouse, DAY + timedelta(days=1))
    query = (
        "SELECT value IS NULL, detail FROM user_metrics WHERE metric = 'top_model_share' AND period = '7d'"
    )
    assert rows(warehouse, query) == [(top is None, top)]


@pytest.mark.parametrize(
    ("through", "growth"),
    [
        (date(2026, 3, 28), 0),
        (date(2026, 4, 30), 0),
        (date(2026, 5, 30), 0),
        # The month before has fewer of the same days.
        (date(2026, 3, 31), Decimal(3) / 28),
        (date(2026, 5, 31), Decimal(1) / 30),
    ],
)
def test_a_dollar_a_day_grows_by_the_days_of_its_month(through: date, growth: Decimal, warehouse: Warehouse):
    days = [cost_day([cost_row('"1.00"')], through - timedelta(days=ago)) for ago in range(-1, 150)]
    land(warehouse, page_of(*days), fetched_at=NOON)
    load(warehouse)
    refresh_metrics(warehouse, through + timedelta(days=1))
    query = "SELECT value FROM user_metrics WHERE period = 'month' AND metric = 'month_over_month'"
    ((found,),) = rows(warehouse, query)
    assert abs(found - growth) < Decimal("1e-11")


def test_a_search_is_charged_by_call_not_by_request(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"4.00"', "web search tool calls")])), fetched_at=NOON)
    asked = [used_by("a", 8) | {"num_model_requests": 5}, used_by("b", 8) | {"num_model_requests": 5}]
    searched = [
        {key: value for key, value in used_by(member_id, 0).items() if "tokens" not in key}
        | {"num_model_requests": 2, "num_requests": calls}
        for member_id, calls in (("a", 3), ("b", 1))
    ]
    for name, use in (("completions", asked), ("web_search_calls", searched)):
        land(warehouse, page_of(bucket(use)), endpoint=ENDPOINTS[name], fetched_at=NOON)
        load(warehouse, name)
    load(warehouse)
    refresh_metrics(warehouse, DAY)
    parts = dict(rows(warehouse, "SELECT member_id, amount_usd FROM daily_member_costs"))
    assert parts == {"a": Decimal(3), "b": Decimal(1)}
    query = "SELECT requests FROM daily_model_costs WHERE model = 'gpt-4o'"
    assert rows(warehouse, query) == [(10,)]


def test_a_final_day_that_becomes_empty_is_a_restatement(warehouse: Warehouse):
    land(warehouse, page_of(cost_day([cost_row('"500.00"')])), fetched_at=NOON)
    load(warehouse)
    later = NOON + timedelta(days=20)
    land(warehouse, page_of(bucket([])), run_id="run-2", fetched_at=later)
    assert load(warehouse, run_id="run-2").late_revisions == [("acme", DAY, Decimal(-500))]


def test_a_price_that_changed_shows_once_the_day_is_final(warehouse: Warehouse):
    today = datetime.now(UTC).date()
    first = today - timedelta(days=4)
    # The last day, not final when fetched, has a price three times as high.
    usd = {first + timedelta(days=n): "30.00" if n == 3 else "10.00" for n in range(4)}
    land(warehouse, page_of(*(cost_day([priced(amount, "1000.0")], day) for day, amount in usd.items())))
    load(warehouse)
    refresh_metrics(warehouse, today)
    (created,) = rows(warehouse, "SELECT sql FROM duckdb_views() WHERE view_name = 'reconciliation'")[0]
    query = f"SELECT price_residual_usd FROM ({{}}) WHERE date = '{today - timedelta(days=1)}'"
    view = created[created.index("SELECT") :].rstrip(";")
    assert rows(warehouse, query.format(view)) == [(None,)]
    # Nothing is fetched or computed until then.
    later = view.replace("now()", "(now() + INTERVAL 2 DAY)")
    assert later != view
    assert rows(warehouse, query.format(later)) == [(Decimal(20),)]


def test_prices_of_the_days_after_a_restated_one_are_compared_again(warehouse: Warehouse):
    days = [DAY - timedelta(days=1), DAY]
    land(warehouse, page_of(*(cost_day([priced("10.00", "1000.0")], day) for day in days)), fetched_at=NOON)
    load(warehouse)
    refresh_metrics(warehouse, DAY)
    restated = page_of(cost_day([priced("20.00", "1000.0")], days[0]))
    land(warehouse, restated, run_id="run-2", fetched_at=NOON + timedelta(hours=1))
    load(warehouse, run_id="run-2")
    refresh_metrics(warehouse, DAY)
    query = "SELECT date, price_residual_usd FROM pipeline.reconciled_days ORDER BY date"
    assert rows(warehouse, query) == [(days[0], None), (DAY, Decimal(10))]


@pytest.mark.parametrize("reread", [False, True])
def test_prices_are_compared_with_days_fetched_later(reread: bool, warehouse: Warehouse):
    first = DAY - timedelta(days=8)
    usd = {first: "30.00", DAY - timedelta(days=1): "20.00", DAY: "10.00", DAY + timedelta(days=7): "10.00"}
    days = {day: cost_day([priced(amount, "1000.0")], day) for day, amount in usd.items()}
    kept = [days[DAY], days[DAY + timedelta(days=7)]]
    land(warehouse, page_of(*kept), fetched_at=NOON)
    # Another user's days are not compared with these.
    land(warehouse, page_of(days[DAY]), user_id="globex", fetched_at=NOON)
    load(warehouse)
    refresh_metrics(warehouse, DAY)
    query = "SELECT date, price_residual_usd FROM pipeline.reconciled_days WHERE user_id = '{}' ORDER BY date"
    assert rows(warehouse, query.format("acme"))[0] == (DAY, None)

    # A larger plan or a backfill, with or without the known days.
    older = [days[first], days[DAY - timedelta(days=1)]]
    read = page_of(*older, *(kept if reread else []))
    land(warehouse, read, run_id="run-2", fetched_at=NOON + timedelta(hours=1))
    load(warehouse, run_id="run-2")
    stale = rows(warehouse, "SELECT date FROM pipeline.stale_days ORDER BY date")
    assert stale == [(first,), (DAY - timedelta(days=1),), (DAY,)]
    refresh_metrics(warehouse, DAY)
    assert rows(warehouse, query.format("acme")) == [
        (first, None),
        (DAY - timedelta(days=1), Decimal(10)),
        (DAY, Decimal(10)),
        (DAY + timedelta(days=7), Decimal(0)),
    ]
    assert rows(warehouse, query.format("globex")) == [(DAY, None)]


def test_parsing_a_line_item_again_is_not_a_restatement(warehouse: Warehouse):
    def cost_of(unit: str) -> str:
        return page_of(cost_day([priced("10.00", "40.0")[:-1] + f',"quantity_unit":{unit}}}']))

    land(warehouse, page_of(bucket([used_by("a", 40)])), endpoint=ENDPOINTS["completions"], fetched_at=NOON)
    load(warehouse, "completions")
    query = "SELECT amount_usd, token_priced_usd FROM daily_model_costs"
    for number, (unit, by_the_token) in enumerate((("null", 10), ('"images"', 0), ('"tokens"', 10))):
        run_id = f"run-{number}"
        land(warehouse, cost_of(unit), run_id=run_id, fetched_at=NOON + timedelta(hours=number))
        load(warehouse, run_id=run_id)
        refresh_metrics(warehouse, DAY)
        assert rows(warehouse, query) == [(Decimal(10), Decimal(by_the_token))]
    assert rows(warehouse, "SELECT count(*) FROM cost_revisions") == [(0,)]


def test_usage_of_a_model_snapshot_is_not_anothers(warehouse: Warehouse):
    charged = cost_day([cost_row('"10.00"', "gpt-4o-2024-08-06, input")])
    land(warehouse, page_of(charged), fetched_at=NOON)
    use = [
        used_by("a", 100) | {"model": "gpt-4o-2024-08-06"},
        used_by("b", 900) | {"model": "gpt-4o-2024-11-20"},
    ]
    land(warehouse, page_of(bucket(use)), endpoint=ENDPOINTS["completions"], fetched_at=NOON)
    load(warehouse)
    load(warehouse, "completions")
    refresh_metrics(warehouse, DAY)
    query = "SELECT model, amount_usd, input_tokens FROM daily_model_costs ORDER BY model"
    assert rows(warehouse, query) == [
        ("gpt-4o-2024-08-06", Decimal(10), 100),
        ("gpt-4o-2024-11-20", Decimal(0), 900),
    ]
    # No usage of another model snapshot explains this one's charge.
    land(warehouse, page_of(bucket(use[1:])), endpoint=ENDPOINTS["completions"], run_id="run-2")
    load(warehouse, "completions", run_id="run-2")
    refresh_metrics(warehouse, DAY)
    assert rows(warehouse, "SELECT member_id, amount_usd FROM daily_member_costs") == [(None, Decimal(10))]


@pytest.mark.parametrize(
    ("line_item", "quantity", "unit"),
    [
        ("flex | gpt-4o", "1000.0", "tokens"),
        ("gpt-4o, input", "1.0", "1000_tokens"),
    ],
)
def test_every_service_with_token_counts_is_charged_by_token(
    line_item: str, quantity: str, unit: str, warehouse
):
    line = cost_row('"10.00"', line_item)[:-1] + f',"quantity":{quantity},"quantity_unit":"{unit}"}}'
    land(warehouse, page_of(cost_day([line])), fetched_at=NOON)
    use = page_of(bucket([used_by("a", 1000)]))
    land(warehouse, use, endpoint=ENDPOINTS["completions"], fetched_at=NOON)
    load(warehouse)
    load(warehouse, "completions")
    refresh_metrics(warehouse, DAY)
    assert rows(warehouse, "SELECT cost_per_1k_tokens FROM daily_model_costs") == [(Decimal(10),)]
    assert rows(warehouse, "SELECT token_residual FROM reconciliation") == [(Decimal(0),)]


@pytest.mark.parametrize("without_project", [False, True])
def test_the_split_of_a_replaced_organization_is_not_the_new_ones(
    without_project: bool, warehouse: Warehouse
):
    by_member = EXTRA_ENDPOINTS["costs_by_member"]
    old = [cost_row('"1.00"', project="proj_old")]
    new = [cost_row('"7.00"')]
    # Both organizations may have costs without a project.
    if without_project:
        old.append(cost_row('"5.00"', project=None))
        new.append(cost_row('"2.00"', project=None))
    split = [line[:-1] + ',"user_id":"m-old"}' for line in old]
    land(warehouse, page_of(cost_day(old)), fetched_at=NOON)
    land(warehouse, page_of(cost_day(split)), endpoint=by_member, fetched_at=NOON)
    later = NOON + timedelta(hours=1)
    land(warehouse, page_of(cost_day(new)), run_id="run-2", fetched_at=later)
    use = page_of(bucket([used_by("m-new", 5), used_by("m-new", 5) | {"project_id": None}]))
    land(warehouse, use, endpoint=ENDPOINTS["completions"], run_id="run-2", fetched_at=later)
    for name in ("costs", "costs_by_member", "completions"):
        load(warehouse, name)
    refresh_metrics(warehouse, DAY)
    query = "SELECT member_id, sum(amount_usd), method FROM daily_member_costs GROUP BY ALL"
    assert rows(warehouse, query) == [("m-new", Decimal(9 if without_project else 7), "allocated")]


def test_a_split_without_any_project_is_the_organizations_own(warehouse: Warehouse):
    lines = [cost_row('"5.00"', project=None), cost_row('"1.00"')]
    land(warehouse, page_of(cost_day(lines)), fetched_at=NOON)
    split = page_of(cost_day([lines[0][:-1] + ',"user_id":"m-1"}']))
    land(warehouse, split, endpoint=EXTRA_ENDPOINTS["costs_by_member"], fetched_at=NOON)
    for name in ("costs", "costs_by_member"):
        load(warehouse, name)
    refresh_metrics(warehouse, DAY)
    query = "SELECT member_id, amount_usd, method FROM daily_member_costs ORDER BY amount_usd"
    assert rows(warehouse, query) == [(None, Decimal(1), "billed"), ("m-1", Decimal(5), "billed")]
