"""Amounts: parsed from their text, added exactly, rounded so that sums stay right."""

import json
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.amounts import AmountError, add_exactly, parse_amount, round_to_total
from finora_pipeline.openai_simulator.answers import decimal128_text

FIXTURES = Path(__file__).parents[1] / "fixtures"
UNIT = Decimal("1e-18")
ENOUGH = Context(prec=400, rounding=ROUND_HALF_EVEN)

# The same examples in every run, without a time limit on a busy machine.
REPEATABLE = settings(derandomize=True, deadline=None)


def amounts_of(fixture: str) -> list[str]:
    """Return the amounts of a captured page as text, strings and numbers alike."""
    page = json.loads((FIXTURES / fixture).read_text(), parse_float=str, parse_int=str)
    buckets = page["data"] if isinstance(page, dict) else page
    return [result["amount"]["value"] for bucket in buckets for result in bucket["results"]]


STRINGS = amounts_of("captured_costs_string_amounts.json")
NUMBERS = amounts_of("captured_costs_31_days_number_amounts.json")


def decimals(places: int) -> st.SearchStrategy[Decimal]:
    """Generate amounts of up to 34 digits (decimal128), with at most so many places."""

    def of(exponent: int) -> st.SearchStrategy[Decimal]:
        # No amount has more than 10 digits before its point.
        most = 10 ** min(34, 10 + exponent) - 1
        return st.integers(-most, most).map(lambda digits: Decimal(digits).scaleb(-exponent, context=ENOUGH))

    return st.integers(0, places).flatmap(of)


def json_forms(amounts: st.SearchStrategy[Decimal]) -> st.SearchStrategy[str]:
    """Generate amounts as JSON: numbers and strings, plain and with exponents, or null."""
    numbers = st.one_of(
        amounts.map(lambda amount: format(amount, "f")),
        amounts.map(lambda amount: format(amount, "E")),
    )
    strings = st.one_of(numbers, amounts.map(decimal128_text)).map(lambda text: f'"{text}"')
    return st.one_of(numbers, strings, st.sampled_from(['"0E-6176"', "null"]))


def values_of(texts: list[str]) -> list[Decimal]:
    """Parse the JSON texts independently of the code under test."""
    read = (json.loads(text, parse_float=str, parse_int=str) for text in texts)
    return [Decimal(value) for value in read if value is not None]


def exact_sum(values: list[Decimal]) -> Fraction:
    """Add exactly, independently of the code under test."""
    return sum((Fraction(value) for value in values), Fraction(0))


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'"0E-6176"', Decimal(0)),
        (b'"0.02579200000000000000000000000000000"', Decimal("0.025792")),
        (b"0.13080438340307526", Decimal("0.13080438340307526")),
        (b"0.00032195744715549047", Decimal("0.00032195744715549047")),
        (b"1.5e-7", Decimal("0.00000015")),
        (b"12", Decimal(12)),
        (b'"-3.50"', Decimal("-3.5")),
        (b"-0.0", Decimal(0)),
        (b'"9999999999"', Decimal(10**10 - 1)),
        (b"null", None),
        (b"", None),
    ],
)
def test_amount_is_read_exactly(raw: bytes, value: Decimal | None) -> None:
    assert parse_amount(raw) == value


@pytest.mark.parametrize(
    "raw",
    [
        b'"NaN"',
        b'"sNaN"',
        b'"Infinity"',
        b'"-Infinity"',
        b'"1_000"',
        b'"1,000.00"',
        b'" 1"',
        b'"1 "',
        b'"\\u0031"',
        b'"1\\n"',
        b'"\xef\xbc\x91"',
        b'""',
        b'"$1"',
        b'"twelve"',
        b"true",
        b"{}",
        b"[1]",
        b"1e10",
        b'"10000000000"',
        b'"-10000000000.00"',
        b'"999999999999999999.99"',
        b"1E+999",
        pytest.param(b'"1E+1000000"'),
    ],
)
def test_text_unlike_an_amount_is_refused(raw: bytes) -> None:
    with pytest.raises(AmountError) as refused:
        parse_amount(raw)
    assert str(refused.value).endswith((" is not a decimal number.", " is too large."))


def test_refused_text_is_repeated_only_in_part() -> None:
    with pytest.raises(AmountError) as refused:
        parse_amount(b'"' + b"x" * 10_000 + b'"')
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize("text", STRINGS)
def test_simulator_writes_amounts_as_the_live_api_does(text: str) -> None:
    amount = parse_amount(f'"{text}"'.encode())

    assert amount is not None
    assert decimal128_text(amount) == text


def test_captured_numbers_keep_their_digits() -> None:
    assert len(NUMBERS) > 10
    for text in NUMBERS:
        assert str(parse_amount(text.encode())) == text


def test_zero_with_the_smallest_exponent_stays_small() -> None:
    total = add_exactly([Decimal("0E-6176"), Decimal("0.1"), Decimal("0E-6176")])

    assert str(total) == "0.1"


def test_an_empty_sum_is_zero() -> None:
    assert add_exactly([]) == 0
    assert round_to_total([]) == []
    assert round_to_total([None, None]) == [None, None]


def test_small_parts_are_not_rounded_away() -> None:
    # Each alone rounds to zero; together they are two units.
    parts = [Decimal("0.25e-18")] * 8

    rounded = [value for value in round_to_total(parts) if value is not None]

    assert sum(rounded) == 2 * UNIT
    assert max(rounded) <= UNIT


def test_a_float_on_the_way_would_be_seen() -> None:
    texts = ["0.1", '"0.2"', '"1234567890.000000000000000001"', "1234567890.123456789012345678"]
    values = [value for text in texts if (value := parse_amount(text.encode())) is not None]

    assert str(add_exactly(values[:2])) == "0.3"
    assert str(add_exactly(values)) == "2469135780.423456789012345679"
    assert [str(value) for value in round_to_total(values)] == [
        "0.100000000000000000",
        "0.200000000000000000",
        "1234567890.000000000000000001",
        "1234567890.123456789012345678",
    ]
    # Floats give another result, so the lines above would detect them.
    assert Decimal(sum(map(float, values))) != add_exactly(values)


@REPEATABLE
@given(raw=st.binary(max_size=40) | st.text("0123456789.eE+-_\"' naif", max_size=20).map(str.encode))
def test_any_text_is_an_amount_within_bounds_or_refused(raw: bytes) -> None:
    try:
        value = parse_amount(raw)
    except AmountError:
        return
    if value is None:
        assert raw in (b"", b"null")
    else:
        assert value.is_finite()
        assert abs(Fraction(value)) < 10**10


@REPEATABLE
@given(texts=st.lists(json_forms(decimals(34)), max_size=30))
def test_groups_of_mixed_forms_sum_to_the_texts_rounded_once(texts: list[str]) -> None:
    rounded = round_to_total([parse_amount(text.encode()) for text in texts])

    once = Fraction(round(exact_sum(values_of(texts)) * 10**18), 10**18)
    assert exact_sum([value for value in rounded if value is not None]) == once


@REPEATABLE
@given(texts=st.lists(json_forms(decimals(18)), max_size=30))
def test_texts_of_at_most_18_places_stay_unchanged(texts: list[str]) -> None:
    rounded = round_to_total([parse_amount(text.encode()) for text in texts])

    assert [value for value in rounded if value is not None] == values_of(texts)


@REPEATABLE
@given(values=st.lists(decimals(40), max_size=30))
def test_sums_are_exact(values: list[Decimal]) -> None:
    assert Fraction(add_exactly(values)) == exact_sum(values)


@REPEATABLE
@given(values=st.lists(st.none() | decimals(40), max_size=30))
def test_rounded_amounts_sum_to_the_exact_sum_rounded_once(values: list[Decimal | None]) -> None:
    rounded = round_to_total(values)

    present = [value for value in values if value is not None]
    kept = [value for value in rounded if value is not None]
    # Python rounds a fraction half to even, as the tables do.
    once = Fraction(round(exact_sum(present) * 10**18), 10**18)
    assert exact_sum(kept) == once
    assert [value is None for value in rounded] == [value is None for value in values]
    for before, after in zip(present, kept, strict=True):
        assert abs(Fraction(after) - Fraction(before)) <= Fraction(UNIT)
        exponent = after.as_tuple().exponent
        assert isinstance(exponent, int)
        assert exponent >= -18


@REPEATABLE
@given(values=st.lists(decimals(18), max_size=30))
def test_amounts_that_need_no_rounding_stay(values: list[Decimal]) -> None:
    assert round_to_total(values) == values


@REPEATABLE
@given(amount=decimals(34))
def test_text_of_an_amount_reads_back(amount: Decimal) -> None:
    text = decimal128_text(amount)

    assert parse_amount(f'"{text}"'.encode()) == amount
    digits = text.lstrip("-0.").replace(".", "")
    assert len(digits) == 34 or text == "0E-6176"
