"""Money: facts add up to OpenAI's amounts, digit for digit."""

import json
from datetime import timedelta
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finora_pipeline.warehouse.database import Warehouse
from tests.warehouse.landing import DAY, FIXTURES, cost_day, cost_row, land, load, page_of, rows

UNIT = Decimal("1e-18")
CAPTURED = sorted(path.name for path in FIXTURES.glob("*costs*.json"))


def exact_sum(texts: list[str]) -> Decimal:
    """Return the sum of JSON amounts at 18 decimals, independent of the code under test."""
    values = [Decimal(text.strip('"')) for text in texts if text != "null"]
    with localcontext(prec=200):
        return sum((value.normalize() for value in values), Decimal(0)).quantize(UNIT)


def total(warehouse: Warehouse) -> Decimal:
    return rows(warehouse, "SELECT coalesce(sum(amount_usd), 0)::DECIMAL(38, 18) FROM daily_costs")[0][0]


@pytest.mark.parametrize("name", CAPTURED)
def test_captured_pages_sum_exactly(name: str, tmp_path: Path):
    captured = json.loads((FIXTURES / name).read_text(), parse_float=lambda text: text)
    if isinstance(captured, list) and "value" in captured[0]:
        # A capture of bare rows: amounts and line items of three days.
        texts = [row["value"] for row in captured]
        days: dict[str, list[str]] = {}
        for row in captured:
            days.setdefault(row["start"][:10], []).append(cost_row(row["value"], row["line_item"]))
        from datetime import date

        body = page_of(*(cost_day(of_day, date.fromisoformat(day)) for day, of_day in days.items()))
    else:
        buckets = captured if isinstance(captured, list) else captured["data"]
        texts = [row["amount"]["value"] for one in buckets for row in one["results"]]
        original = (FIXTURES / name).read_text()
        body = page_of(*json_items(original)) if isinstance(captured, list) else original
    warehouse = Warehouse(tmp_path)
    land(warehouse, body)
    loaded = load(warehouse)
    assert loaded.cost_rows == len(texts)
    assert total(warehouse) == exact_sum([str(text) for text in texts]) == loaded.amount_usd


def json_items(text: str) -> list[str]:
    """Return the items of a JSON list as text, numbers untouched."""
    decoder = json.JSONDecoder()
    items, position = [], text.index("[") + 1
    while True:
        while text[position] in " \n,":
            position += 1
        if text[position] == "]":
            return items
        _, end = decoder.raw_decode(text, position)
        items.append(text[position:end])
        position = end


HOSTILE = {
    "zero": ['"0E-6176"', '"0E-6176"'],
    "34 digits": ['"0.02579200000000000000000000000000000"', '"0.003627500000000000000000000000000000"'],
    "numbers": ["0.13080438340307526", "0.1", "0.2"],
    "a number that no double holds": ["0.123456789012345678", "1234567890.1234567"],
    "exponents": ['"1.5E-3"', "2e-7", '"1E+2"'],
    "negative": ['"-12.50"', "-0.000000000000000001", '"3.25"'],
    "null": ["null", '"1.10"', "null"],
    "mixed": ['"0E-6176"', "0.5", '"0.25"', "null", "7"],
    "whole numbers": ['"100"', "100", '"100.00"'],
    "large": ['"9234567890.123456789012345678"'],
    "more than 18 decimals": ['"0.1234567890123456789012345678901234"'] * 7,
    "below 18 decimals": ['"0.0000000000000000004"'] * 5,
}


@pytest.mark.parametrize("texts", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_amounts_sum_exactly(texts: list[str], tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row(t, f"line {n}") for n, t in enumerate(texts)])))
    load(warehouse)
    assert total(warehouse) == exact_sum(texts)


def test_a_float_on_the_way_would_be_seen(tmp_path: Path):
    texts = ['"0.100000000000000001"', '"0.200000000000000002"', "0.300000000000000003"]
    assert sum(float(text.strip('"')) for text in texts) != Decimal("0.600000000000000006")
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row(t, f"line {n}") for n, t in enumerate(texts)])))
    load(warehouse)
    assert total(warehouse) == Decimal("0.600000000000000006")


def test_duplicate_cost_rows_are_added_up(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row('"1.10"'), cost_row("2.20"), cost_row('"0E-6176"')])))
    load(warehouse)
    assert rows(warehouse, "SELECT line_item, amount_usd FROM daily_costs") == [
        ("gpt-4o, input", Decimal("3.300000000000000000"))
    ]


def test_a_row_without_amount_is_kept_and_adds_nothing(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    without = json.dumps({"object": "organization.costs.result", "line_item": "a", "project_id": "p"})
    land(warehouse, page_of(cost_day([without, cost_row('"1.5"', "b"), cost_row("null", "c")])))
    load(warehouse)
    query = "SELECT line_item, amount_usd FROM daily_costs ORDER BY line_item"
    assert rows(warehouse, query) == [("a", None), ("b", Decimal("1.5")), ("c", None)]


decimals = st.decimals(
    min_value=Decimal("-9e9"), max_value=Decimal("9e9"), allow_nan=False, allow_infinity=False, places=18
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.tuples(decimals, st.booleans()), min_size=1, max_size=40), min_size=1, max_size=4)
)
def test_any_amounts_sum_exactly(
    tmp_path_factory: pytest.TempPathFactory, days: list[list[tuple[Decimal, bool]]]
):
    warehouse = Warehouse(tmp_path_factory.mktemp("warehouse"))
    texts = [[f'"{a:f}"' if quoted else f"{a:f}" for a, quoted in day] for day in days]
    body = page_of(
        *(
            cost_day([cost_row(t, f"line {n}") for n, t in enumerate(day)], DAY + timedelta(days=number))
            for number, day in enumerate(texts)
        )
    )
    land(warehouse, body)
    load(warehouse)
    assert total(warehouse) == exact_sum([text for day in texts for text in day])


def test_quantities_and_parsed_line_items_are_kept(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    land(warehouse, (FIXTURES / "captured_costs_string_amounts.json").read_bytes())
    load(warehouse)
    query = (
        "SELECT line_item, model, direction, quantity, amount_usd, is_parsed FROM daily_costs ORDER BY ALL"
    )
    model = "gpt-4o-mini-2024-07-18"
    assert rows(warehouse, query) == [
        (f"{model}, cached input", model, "cached_input", Decimal(0), Decimal(0), True),
        (f"{model}, input", model, "input", Decimal(30), Decimal("0.0000045"), True),
        (f"{model}, output", model, "output", Decimal(57), Decimal("0.0000342"), True),
    ]


def test_an_unparsed_line_item_counts_and_is_reported(tmp_path: Path):
    warehouse = Warehouse(tmp_path)
    land(warehouse, page_of(cost_day([cost_row('"2.50"', "a brand-new thing"), cost_row('"1.00"')])))
    loaded = load(warehouse)
    assert loaded.unparsed == ["a brand-new thing"]
    assert total(warehouse) == Decimal("3.5")
    query = "SELECT model, is_parsed FROM daily_costs WHERE line_item = 'a brand-new thing'"
    assert rows(warehouse, query) == [(None, False)]
