"""Pages of costs and usage: accepted and refused bodies; no digit of money is lost."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import COSTS, ENDPOINTS, USAGE
from finora_pipeline.openai_admin.errors import AnswerTooLarge, UnreadableResponse
from finora_pipeline.openai_admin.lists import canonical_list, check_list
from finora_pipeline.openai_admin.pages import (
    Window,
    canonical_costs,
    canonical_usage,
    check_page,
    decode_costs,
    decode_usage,
    pieces,
    unix_seconds,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
EXAMPLES = sorted(path.name for path in FIXTURES.glob("official_get_usage_*.json"))
COMPLETIONS = ENDPOINTS["completions"]
DAY = 1_781_395_200

# The same examples in every run, without a time limit on a busy machine.
REPEATABLE = settings(derandomize=True, deadline=None)


def captured(name: str) -> bytes:
    """Return a captured page; published buckets without a page are wrapped in one."""
    body = (FIXTURES / name).read_bytes()
    if not body.lstrip().startswith(b"["):
        return body
    return b'{"object": "page", "has_more": false, "next_page": null, "data": %s}' % body


def row(value: str = '"1.50"', **more: Any) -> str:
    """Return a result of costs; `value` is JSON, so that each test controls the exact bytes."""
    rest = {"object": "organization.costs.result", "project_id": "proj_a", "line_item": "gpt-5, input"} | more
    return f'{{"amount": {{"value": {value}, "currency": "usd"}}, {json.dumps(rest)[1:]}'


def page(*rows: str, start: int = DAY) -> bytes:
    """Return a page of a day with these results."""
    bucket = (
        f'{{"object":"bucket","start_time":{start},"end_time":{start + 86_400},"results":[{",".join(rows)}]}}'
    )
    return f'{{"object":"page","data":[{bucket}],"has_more":false,"next_page":null}}'.encode()


def amounts_of(body: bytes) -> list[Decimal]:
    """Return the amounts of a page, parsed independently of the code under test."""
    return [
        Decimal(result["amount"]["value"])
        for bucket in json.loads(body, parse_float=Decimal)["data"]
        for result in bucket["results"]
        if result["amount"]["value"] is not None
    ]


@pytest.mark.parametrize(
    ("name", "days", "is_canonical"),
    [
        ("captured_costs_string_amounts.json", None, True),
        ("captured_costs_empty_days.json", 2, True),
        ("captured_costs_empty_has_more.json", 2, True),
        ("captured_costs_31_days_number_amounts.json", None, False),
        ("official_get_costs.json", None, False),
    ],
)
def test_pages_seen_live_are_accepted(name: str, days: int | None, is_canonical: bool) -> None:
    body = captured(name)

    head = check_page(COSTS, body)

    sent = json.loads(body)
    assert head.starts == [bucket["start_time"] for bucket in sent["data"]]
    assert days in (None, len(head.starts))
    assert (head.has_more, head.next_page) == (sent["has_more"], sent["next_page"])
    assert head.is_canonical is is_canonical


def test_usage_seen_live_is_accepted_but_for_its_clipped_day() -> None:
    body = captured("captured_usage_completions.json")

    # It was requested from within a day, which a refresh never does.
    with pytest.raises(UnreadableResponse, match="starts within a day"):
        check_page(COMPLETIONS, body)
    whole = json.loads(body)
    del whole["data"][0]
    head = check_page(COMPLETIONS, json.dumps(whole).encode())
    assert head.starts == [bucket["start_time"] for bucket in whole["data"]]


# No example of the newest one is published.
@pytest.mark.parametrize("endpoint", [e for e in USAGE if e.name != "decisions"], ids=lambda e: e.name)
def test_documented_example_of_usage_is_typed(endpoint: Any) -> None:
    sent = json.loads((FIXTURES / f"official_get_usage_{endpoint.name}.json").read_bytes())
    for bucket in sent["data"]:
        bucket["start_time"] -= bucket["start_time"] % 86_400

    buckets = decode_usage(json.dumps(sent).encode()).data

    for result, example in zip(buckets[0].results, sent["data"][0]["results"], strict=True):
        measured = {measure: getattr(result, measure) for measure in endpoint.measures}
        assert measured == {measure: example.get(measure) for measure in endpoint.measures}
        assert any(measured.values())


@pytest.mark.parametrize("name", EXAMPLES)
def test_documented_example_of_every_usage_endpoint_is_accepted(name: str) -> None:
    endpoint = ENDPOINTS[name.removeprefix("official_get_usage_").removesuffix(".json")]
    body = (FIXTURES / name).read_bytes()

    head = check_page(endpoint, body)

    sent = json.loads(body)
    assert head.starts == [bucket["start_time"] for bucket in sent["data"]]
    assert (head.has_more, head.next_page) == (sent["has_more"], sent["next_page"])
    assert {row["object"] for bucket in sent["data"] for row in bucket["results"]} == {endpoint.result_object}


def test_undocumented_keys_are_ignored() -> None:
    sent = json.loads(page(row(user_email="ada@example.com", nested={"a": [1]})))
    sent["organization_id"] = "org-x"
    sent["data"][0] |= {"start_time_iso": "2026-06-14T00:00:00", "result": "old name"}

    assert check_page(COSTS, json.dumps(sent).encode()).is_canonical


def changed(path: list[str | int], value: Any) -> bytes:
    """Return a valid page with one value replaced."""
    sent = json.loads(page(row()))
    place = sent
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(sent).encode()


BUCKET: list[str | int] = ["data", 0]
ROW: list[str | int] = [*BUCKET, "results", 0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (changed([*BUCKET, "results"], None), "results"),
        (changed(["object"], "list"), "'list'"),
        (changed(["data"], None), "data"),
        (changed(["data"], {}), "data"),
        (changed(["has_more"], "false"), "has_more"),
        (changed(["next_page"], 7), "next_page"),
        (changed([*BUCKET, "start_time"], "today"), "start_time"),
        (changed([*BUCKET, "start_time"], DAY + 0.5), "start_time"),
        (changed([*BUCKET, "start_time"], None), "start_time"),
        (changed([*BUCKET, "start_time"], DAY + 3600), "starts within a day"),
        (changed([*ROW, "amount"], 1.5), "amount"),
        (changed([*ROW, "amount", "value"], {"usd": 1}), "not a decimal number"),
        (changed([*ROW, "amount", "value"], [1]), "not a decimal number"),
        (changed([*ROW, "amount", "value"], True), "not a decimal number"),
        (changed([*ROW, "amount", "value"], "twelve"), "not a decimal number"),
        (changed([*ROW, "amount", "value"], "NaN"), "not a decimal number"),
        (changed([*ROW, "amount", "value"], "1_000"), "not a decimal number"),
        (changed([*ROW, "amount", "value"], ""), "not a decimal number"),
        (changed([*ROW, "amount", "value"], "1e10"), "too large"),
        (changed([*ROW, "amount", "value"], "12,5"), "data[0].results[0].amount.value"),
        (changed([*ROW, "amount", "currency"], "eur"), "'eur'"),
        (changed([*ROW, "amount", "currency"], 7), "currency"),
        (page(row())[:-40], "not a page"),
        (page(row()) + b"{}", "not a page"),
        (b"<!doctype html><title>502 Bad Gateway</title>", "not a page"),
        (b"", "not a page"),
        (b"null", "not a page"),
        (b"[]", "not a page"),
        (b'{"error": {"message": "no"}}', "not a page"),
        (page(row()).replace(b"gpt-5", b"gpt-\xff"), "UTF-8"),
        (page(row()).replace(b"gpt-5", b"gpt-\xed\xa0\x80"), "UTF-8"),
    ],
)
def test_anything_else_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(UnreadableResponse) as refused:
        check_page(COSTS, body)
    assert words in str(refused.value)
    assert str(refused.value).endswith(".")


def test_page_cut_anywhere_is_refused() -> None:
    body = captured("captured_costs_string_amounts.json").rstrip()

    for length in range(len(body)):
        with pytest.raises(UnreadableResponse, match="not a page"):
            check_page(COSTS, body[:length])
    assert check_page(COSTS, body).starts


@REPEATABLE
@given(body=st.binary() | st.text().map(str.encode), is_costs=st.booleans())
def test_any_other_bytes_are_refused(body: bytes, is_costs: bool) -> None:
    with pytest.raises(UnreadableResponse):
        check_page(COSTS if is_costs else COMPLETIONS, body)


SOMEONES_KEY = "sk-admin-Zk3_9xQw-7LmN2pRtVbY4cD1"


@pytest.mark.parametrize(
    "path", [["object"], [*ROW, "amount", "currency"], [*ROW, "amount", "value"]], ids=lambda path: path[-1]
)
def test_refusal_repeats_no_key(path: list[str | int]) -> None:
    with pytest.raises(UnreadableResponse) as refused:
        check_page(COSTS, changed(path, SOMEONES_KEY))
    assert SOMEONES_KEY not in str(refused.value)


@pytest.mark.parametrize("path", [["object"], [*ROW, "amount", "currency"]], ids=lambda path: path[-1])
def test_refusal_is_one_short_sentence(path: list[str | int]) -> None:
    with pytest.raises(UnreadableResponse) as refused:
        check_page(COSTS, changed(path, "x" * 10_000))
    assert len(str(refused.value)) < 300


@contextmanager
def processor_seconds(most: float) -> Iterator[None]:
    """Stop an endless computation after so much processor time, independent of other load."""

    def end(*_: object) -> None:
        raise TimeoutError(f"still busy after {most:g} s")

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("odd", ["1.5", '"1E-7"', '"0.0000000000000000001"', '"twelve"'])
def test_one_odd_amount_after_many_plain_ones_is_found_at_once(odd: str) -> None:
    plain = [row('"0.02579200000000000000000000000000000"', line_item=f"line {n}") for n in range(30)]
    body = page(*plain, row(odd))

    with processor_seconds(0.2):
        try:
            assert not check_page(COSTS, body).is_canonical
        except UnreadableResponse:
            assert odd == '"twelve"'


def usage(**fields: str) -> bytes:
    """Return a page with a single usage row; each value is JSON text."""
    return page("{" + ",".join(f'"{name}": {value}' for name, value in fields.items()) + "}")


def usage_rows(body: bytes) -> list[Any]:
    return [result for bucket in decode_usage(body).data for result in bucket.results]


@pytest.mark.parametrize("sent", ["10", "10.0", "10.000", "1e1", "1E+1", "100e-1", '"10"', '"10.0"', '"1e1"'])
def test_whole_counts_are_accepted_in_any_notation(sent: str) -> None:
    body = usage(input_tokens=sent, output_tokens="7")

    head = check_page(COMPLETIONS, body)

    assert head.left_out == ()
    assert [(row.input_tokens, row.output_tokens) for row in usage_rows(body)] == [(10, 7)]
    assert json.loads(canonical_usage(body))["data"][0]["results"] == [
        {"input_tokens": 10, "output_tokens": 7}
    ]
    assert head.is_canonical is (sent == "10")


@pytest.mark.parametrize(
    ("measure", "sent"),
    [
        ("input_tokens", "7.5"),
        ("input_tokens", '"7.5"'),
        ("input_tokens", '"many"'),
        ("input_tokens", '""'),
        ("input_tokens", "true"),
        ("input_tokens", "[7]"),
        ("input_tokens", '{"tokens": 7}'),
        # SQL would load a value too large for the column as NULL.
        ("input_tokens", str(2**63)),
        ("input_tokens", "1e400"),
        ("usage_bytes", str(10**15 + 1)),
        ("input_cached_tokens", str(-(2**63))),
        ("batch", '"perhaps"'),
        ("model", '["gpt-5"]'),
    ],
)
def test_a_value_that_cannot_be_parsed_costs_only_itself(measure: str, sent: str) -> None:
    body = usage(**{"num_model_requests": "3", measure: sent})

    head = check_page(COMPLETIONS, body)

    assert head.left_out == (f"data[0].results[0].{measure}: {sent}",)
    assert not head.is_canonical
    (row_,) = usage_rows(body)
    assert (row_.num_model_requests, getattr(row_, measure)) == (3, None)


def test_names_of_another_type_become_text() -> None:
    (of_use,) = usage_rows(usage(model="5", project_id="1.50", batch='"TRUE"', service_tier="true"))
    assert (of_use.model, of_use.project_id, of_use.batch, of_use.service_tier) == ("5", "1.50", True, "true")

    body = page(row(line_item=7, project_name={"a": 1}, quantity="many", quantity_unit=3))
    head = check_page(COSTS, body)
    assert head.line_items == {"7"}
    assert head.left_out == (
        'data[0].results[0].project_name: {"a": 1}',
        'data[0].results[0].quantity: "many"',
    )
    ((charge,),) = (
        [*bucket["results"]] for bucket in json.loads(canonical_costs(COSTS.group_by, body))["data"]
    )
    assert Decimal(charge["amount"]["value"]) == Decimal("1.5")
    assert (charge["line_item"], charge["project_name"], charge["quantity"]) == ("7", None, None)


def test_days_are_accepted_in_any_number_notation() -> None:
    for start in (f"{DAY}.0", f'"{DAY}"', f"{DAY // 100}e2"):
        body = page(row()).replace(f'"start_time":{DAY}'.encode(), f'"start_time":{start}'.encode())
        assert check_page(COSTS, body).starts == [DAY]
    assert check_page(COSTS, page(row()).replace(b'"end_time":', b'"end_time":"soon","was":')).starts == [DAY]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (r"Alpha \ud83d", "Alpha \ufffd"),
        (r"\ude00Alpha", "\ufffdAlpha"),
        (r"a\u0000b", "a\ufffdb"),
        (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (r"\\ud83d \\u0000", r"\ud83d \u0000"),
        (r"\\\ud83d", "\\\ufffd"),
        ("", ""),
    ],
)
def test_names_hold_only_characters_that_can_be_stored(sent: str, kept: str) -> None:
    costs = page(row(project_name="NAME")).replace(b"NAME", sent.encode())
    used = usage(model=f'"{sent}"')

    assert not sent or not check_page(COSTS, costs).is_canonical
    assert not sent or not check_page(COMPLETIONS, used).is_canonical
    for text in (canonical_costs(COSTS.group_by, costs), canonical_usage(used)):
        assert kept.encode() in text.replace(rb"\\", b"\\")
    assert decode_costs(costs).data[0].results[0].project_name == kept
    assert usage_rows(used)[0].model == kept


@pytest.mark.parametrize(
    "extra",
    ['"extra": "\\ud83d"', '"extra": {"deep": [1e999, "\\u0000"]}', '"currency": 7', '"object": null'],
)
def test_unneeded_fields_may_hold_anything(extra: str) -> None:
    assert check_page(COSTS, page(row().replace('"object": "organization.costs.result"', extra))).starts == [
        DAY
    ]
    assert check_page(COMPLETIONS, page("{" + extra + "}")).starts == [DAY]


def read_by_sql(memory: duckdb.DuckDBPyConnection, text: bytes, field: str, kind: str) -> list[Any]:
    """Return a field of a page's results as the warehouse's SQL reads it."""
    path = field.replace(".", '": {"') if "." in field else field
    shape = f'{{"data": [{{"results": [{{"{path}": "{kind}"{"}" if "." in field else ""}}}]}}]}}'
    buckets = f"SELECT unnest(from_json(?, '{shape}').data) AS bucket"
    query = f"SELECT result.{field} FROM (SELECT unnest(bucket.results) AS result FROM ({buckets}))"
    rows = memory.execute(query, [text.decode()]).fetchall()
    return [value for (value,) in rows]


@pytest.mark.parametrize("sent", ["10.0", "1e1", '"10"', '"10.0"', "10.4", "9007199254740993.0", '"x"'])
def test_sql_and_python_read_the_same_counts(memory: duckdb.DuckDBPyConnection, sent: str) -> None:
    body = usage(input_tokens=sent)

    head = check_page(COMPLETIONS, body)
    text = body if head.is_canonical else canonical_usage(body)

    assert read_by_sql(memory, text, "input_tokens", "BIGINT") == [usage_rows(body)[0].input_tokens]


@pytest.mark.parametrize(
    "twice",
    [
        page(row('"1.50", "value": "2.50"')),
        page(
            row()
            .replace('{"amount"', '{"amount": {"value": "1.50"}, "amount"')
            .replace('"1.50", "c', '"2.50", "c')
        ),
        page(row('"1.50", "\\u0076alue": "2.50"')),
        page(
            row('"2.50"', line_item="a"), '{"line_item": "b"}', row('"1.5", "value": "2.50"', line_item="c")
        ),
    ],
)
def test_the_last_of_duplicate_keys_counts_in_sql_too(
    memory: duckdb.DuckDBPyConnection, twice: bytes
) -> None:
    assert not check_page(COSTS, twice).is_canonical
    text = canonical_costs(COSTS.group_by, twice)
    assert {Decimal(v) for v in read_by_sql(memory, text, "amount.value", "VARCHAR") if v} == {Decimal("2.5")}


def test_a_count_given_twice_counts_once(memory: duckdb.DuckDBPyConnection) -> None:
    body = page('{"input_tokens": 1, "input_tokens": 2, "model": "a"}', '{"input_tokens": 2, "model": "b"}')

    assert not check_page(COMPLETIONS, body).is_canonical
    assert read_by_sql(memory, canonical_usage(body), "input_tokens", "BIGINT") == [2, 2]


def test_rows_with_different_keys_keep_the_canonical_form() -> None:
    assert check_page(
        COSTS, page(row(), row(line_item="b", more=[{"b": 1}]), row("null", line_item="c"))
    ).is_canonical
    assert check_page(COMPLETIONS, page('{"input_tokens": 1}', "{}", '{"images": 2, "x": null}')).is_canonical


def test_a_page_of_too_many_rows_is_refused_before_it_takes_memory() -> None:
    rows = ["{}"] * 50
    assert check_page(COMPLETIONS, page(*rows), most_rows=50).starts == [DAY]
    with pytest.raises(AnswerTooLarge, match="51 rows, over the limit of 50"):
        check_page(COMPLETIONS, page(*rows, "{}"), most_rows=50)
    with pytest.raises(AnswerTooLarge, match="51 rows"):
        check_page(COSTS, page(*(row(line_item=str(n)) for n in range(51))), most_rows=50)
    many = page(",".join(["{}"] * 100_000))
    with pytest.raises(AnswerTooLarge, match="more than 50 rows"):
        check_page(COMPLETIONS, many, most_rows=50)


@pytest.mark.parametrize(
    "body",
    [
        page('{"project_id": "proj_a"}'),
        page('{"amount": null}'),
        page('{"amount": {}}'),
        page('{"amount": {"value": null, "currency": null}}'),
        page('{"amount": {"currency": "usd"}, "quantity": null}'),
    ],
)
def test_missing_amount_is_accepted(body: bytes) -> None:
    assert check_page(COSTS, body).is_canonical
    (bucket,) = json.loads(canonical_costs(COSTS.group_by, body))["data"]
    assert [result["amount"] for result in bucket["results"]] == [{"value": None}]


@pytest.mark.parametrize(
    ("rows", "is_canonical"),
    [
        ([row('"1.50"')], True),
        ([row('"-1.50"')], True),
        ([row('"0E-6176"')], True),
        ([row('"0.000004500000000000000000000000000000000"', quantity=30.0)], True),
        ([row(), row(line_item="gpt-5, output")], True),
        ([row(), row(project_id=None)], True),
        ([row("1.5")], False),
        ([row("0")], False),
        ([row('"1E-7"')], False),
        ([row('"0.0000000000000000001"')], False),
        ([row(quantity="30")], False),
        ([row(quantity=1e15)], False),
        ([row(), row()], False),
    ],
)
def test_only_plain_texts_of_single_rows_are_canonical(rows: list[str], is_canonical: bool) -> None:
    assert check_page(COSTS, page(*rows)).is_canonical is is_canonical


def test_same_line_on_two_days_is_canonical() -> None:
    first, second = (json.loads(page(row(), start=start)) for start in (DAY, DAY + 86_400))
    first["data"] += second["data"]

    head = check_page(COSTS, json.dumps(first).encode())

    assert head.is_canonical
    assert head.starts == [DAY, DAY + 86_400]


def test_currency_in_capitals_is_the_same_currency() -> None:
    assert check_page(COSTS, changed([*ROW, "amount", "currency"], "USD")).starts == [DAY]


def test_text_beyond_ascii_is_kept() -> None:
    body = page(row(project_name="Überblick – 東京")).replace(rb"\u00dc", "Ü".encode())

    check_page(COSTS, body)

    assert decode_costs(body).data[0].results[0].project_name == "Überblick – 東京"


def test_duplicates_are_added_up() -> None:
    body = page(
        row('"0.1"', quantity=3.0),
        row("0.2", quantity=4.5),
        row('"5"', line_item="gpt-5, output"),
        row("null", quantity=None),
    )

    (bucket,) = json.loads(canonical_costs(COSTS.group_by, body))["data"]

    assert [(r["line_item"], Decimal(r["amount"]["value"]), r["quantity"]) for r in bucket["results"]] == [
        ("gpt-5, input", Decimal("0.3"), "7.500000000000000000"),
        ("gpt-5, output", Decimal(5), None),
    ]


def test_a_float_on_the_way_would_be_seen() -> None:
    texts = ["0.1234567890123456789", '"1234567890.000000000000000001"', "12345678.123456"]

    (bucket,) = json.loads(canonical_costs(COSTS.group_by, page(*(row(t, line_item=t) for t in texts))))[
        "data"
    ]

    assert [result["amount"]["value"] for result in bucket["results"]] == [
        "0.123456789012345679",
        "1234567890.000000000000000001",
        "12345678.123456000000000000",
    ]


@pytest.mark.parametrize(
    "name",
    ["captured_costs_string_amounts.json", "captured_costs_31_days_number_amounts.json"],
)
def test_canonical_form_of_captured_pages_keeps_their_sum(name: str) -> None:
    body = captured(name)
    canonical = canonical_costs(COSTS.group_by, body)

    before, after = (sum(map(Fraction, amounts_of(text)), Fraction(0)) for text in (body, canonical))
    assert after == Fraction(round(before * 10**18), 10**18)
    for result in (r for bucket in json.loads(canonical)["data"] for r in bucket["results"]):
        assert len(result["amount"]["value"].partition(".")[2]) == 18


numbers = st.decimals(-(10**6), 10**6, places=25, allow_nan=False).map(str)
sent_amounts = numbers | numbers.map(lambda text: f'"{text}"') | st.sampled_from(['"0E-6176"', "null"])
sent_rows = st.builds(
    lambda amount, project, line: row(amount, project_id=project, line_item=line),
    sent_amounts,
    st.sampled_from(["proj_a", "proj_b", None]),
    st.sampled_from(["gpt-5, input", "gpt-5, output", None]),
)


@REPEATABLE
@given(rows=st.lists(sent_rows, max_size=12))
def test_canonical_form_keeps_the_exact_sum(rows: list[str]) -> None:
    body = page(*rows)
    canonical = canonical_costs(COSTS.group_by, body)

    before, after = (sum(map(Fraction, amounts_of(text)), Fraction(0)) for text in (body, canonical))
    assert after == Fraction(round(before * 10**18), 10**18)
    days = json.loads(canonical)["data"]
    grains = [(r["project_id"], r["line_item"]) for day in days for r in day["results"]]
    assert len(grains) == len(set(grains))


@REPEATABLE
@given(
    days=st.lists(
        st.lists(st.sampled_from(['"1.5"', '"0E-6176"', "-2.50e3", "null", '"é\\u20ac"']), max_size=6)
    ),
    most_bytes=st.integers(1, 2_000),
)
def test_pieces_of_a_page_keep_its_results_unchanged(days: list[list[str]], most_bytes: int) -> None:
    rows = [[row(value, name=f"{day}-{i}é") for i, value in enumerate(of)] for day, of in enumerate(days)]
    buckets = [
        f'{{"start_time": {DAY + i * 86_400}, "results": [{", ".join(r)}]}}' for i, r in enumerate(rows)
    ]
    whole = f'{{"object": "page", "data": [{",".join(buckets)}]}}'

    cut = list(pieces(whole.encode(), most_bytes))

    held = [
        (bucket["start_time"], result)
        for piece in cut
        for bucket in json.loads(piece, parse_float=str, parse_int=str)["data"]
        for result in bucket["results"]
    ]
    assert held == [
        (bucket["start_time"], result)
        for bucket in json.loads(whole, parse_float=str, parse_int=str)["data"]
        for result in bucket["results"]
    ]
    assert all(text.encode() in b"".join(cut) for of_day in rows for text in of_day)
    longest = max((len(text.encode()) for of_day in rows for text in of_day), default=0)
    results = [
        sum(len(text.encode()) for of_day in rows for text in of_day if text.encode() in p) for p in cut
    ]
    assert all(size < most_bytes + longest for size in results)


def listed(*objects: str, more: str = "") -> bytes:
    return f'{{"object": "list", "data": [{",".join(objects)}], "has_more": false{more}}}'.encode()


@pytest.mark.parametrize(
    ("objects", "ids", "is_canonical"),
    [
        (['{"id": "proj_a", "name": "Alpha"}'], ["proj_a"], True),
        (['{"id": "proj_a", "name": "Alpha \\ud83d"}'], ["proj_a"], False),
        (['{"id": 7, "name": null}', '{"id": "b", "created_at": "soon"}'], ["7", "b"], True),
        (
            ['{"name": "nameless"}', '{"id": null}', '{"id": ""}', '"text"', "null", '{"id": "a"}'],
            ["a"],
            False,
        ),
        (['{"id": "a", "name": "x", "name": "y"}'], ["a"], False),
        ([], [], True),
    ],
)
def test_a_list_is_identified_by_its_ids(objects: list[str], ids: list[str], is_canonical: bool) -> None:
    body = listed(*objects)

    found = check_list(body)

    assert found.ids == ids
    canonical = json.loads(canonical_list(body))["data"]
    assert [item["id"] for item in canonical] == ids
    assert "\\ud83d" not in json.dumps(canonical)
    assert found.is_canonical is is_canonical


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"data": null}', b'{"object": "list"}', b"<html>", b'{"data": [}']
)
def test_a_body_without_a_list_is_refused(body: bytes) -> None:
    with pytest.raises(UnreadableResponse, match="not a list"):
        check_list(body)


def test_window_needs_a_day() -> None:
    with pytest.raises(ValueError, match="has no day"):
        Window(date(2026, 6, 14), date(2026, 6, 14))


@REPEATABLE
@given(
    start=st.dates(date(2020, 1, 1), date(2030, 1, 1)),
    days=st.integers(1, 800),
    most=st.sampled_from([1, 7, 31, 180]),
)
def test_pieces_cover_a_window_once_and_in_order(start: date, days: int, most: int) -> None:
    window = Window(start, date.fromordinal(start.toordinal() + days))

    pieces = list(window.split(most))

    assert (pieces[0].start, pieces[-1].end) == (window.start, window.end)
    assert all(one.end == other.start for one, other in pairwise(pieces))
    assert [piece.days for piece in pieces[:-1]] == [most] * (len(pieces) - 1)
    assert 1 <= pieces[-1].days <= most
    assert sum(piece.days for piece in pieces) == window.days == (window.last - window.start).days + 1
    assert unix_seconds(window.end) - unix_seconds(window.start) == days * 86_400
