"""Odd texts and numbers: a value that cannot be parsed costs only its own field."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from tests.cases.conftest import KEY_ADVICE, Case, assert_usual, served
from tests.cases.organizations import ALPHA, COMPLETIONS, INPUT, KEY, OLD, ONE, OUTPUT, RUNNER, changed, usual
from tests.cases.server import day

Play = Callable[..., Case]


def refreshed(case: Case) -> Case:
    """Refresh the case, without a failed user; return it."""
    connected = case.connect_all()
    assert connected.exit_code == 0, connected.output
    result = case.refresh_impatiently()
    assert result.succeeded, result.errors
    assert result.failed_users == []
    return case


@contextmanager
def tried(home: Path, texts: Mapping[str, str]) -> Iterator[Case]:
    """Connect and refresh users together, with any outcome."""
    with served(home, texts) as case:
        case.connect_all()
        for user in texts:
            case.organization(user).requests.clear()
        assert case.refresh_impatiently().succeeded
        yield case


# Counts

COUNTED = ("10", "10.0", '"10"', "1e1", "10.00", "1E+1", '"10.0"', '"1e1"', "100e-1")
# Each endpoint's measures with their columns.
MEASURES = {
    "completions": {"input_tokens": "input_tokens", "num_model_requests": "requests"},
    "embeddings": {"input_tokens": "input_tokens", "num_model_requests": "requests"},
    "moderations": {"input_tokens": "input_tokens", "num_model_requests": "requests"},
    "images": {"images": "images", "num_model_requests": "requests"},
    "audio_speeches": {"characters": "characters", "num_model_requests": "requests"},
    "audio_transcriptions": {"seconds": "seconds", "num_model_requests": "requests"},
    "vector_stores": {"usage_bytes": "usage_bytes"},
    "code_interpreter_sessions": {"num_sessions": "sessions"},
    "file_search_calls": {"num_requests": "calls"},
    "web_search_calls": {"num_requests": "calls", "num_model_requests": "requests"},
    "decisions": {"output_tokens": "output_tokens", "num_model_requests": "requests"},
}
OF_ALPHA = '"day":-1,"project_id":"proj_case0001"'


def counted(spelled: str) -> str:
    """Build an organization whose usage measures all have this spelling."""
    rows = {
        name: "{" + ",".join([OF_ALPHA, *(f'"{measure}":{spelled}' for measure in measures)]) + "}"
        for name, measures in MEASURES.items()
    }
    others = "".join(f',"{name}":[{row}]' for name, row in rows.items() if name != "completions")
    return usual(completions=rows["completions"], rows=others)


@pytest.fixture(scope="module")
def spellings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    texts = {f"user-{number}": counted(spelled) for number, spelled in enumerate(COUNTED)}
    with tried(tmp_path_factory.mktemp("counts") / "home", texts) as case:
        yield case


@pytest.mark.parametrize("number", range(len(COUNTED)), ids=COUNTED)
def test_a_whole_number_is_a_count_however_it_is_spelled(spellings: Case, number: int):
    user = f"user-{number}"
    assert spellings.bill(user) == 2
    columns = sorted({column for measures in MEASURES.values() for column in measures.values()})
    rows = spellings.sql(f"SELECT service, {', '.join(columns)} FROM daily_usage WHERE user_id = '{user}'")
    assert {row[0] for row in rows} == MEASURES.keys()
    for service, *values in rows:
        held = {column: value for column, value in zip(columns, values, strict=True) if value is not None}
        assert held == dict.fromkeys(MEASURES[service].values(), 10)
    # A type that never changes is not fetched again.
    assert spellings.organization(user).asked("/usage/") == 3 * len(MEASURES)


NO_COUNTS = ("10.5", "1e-1", '"ten"', "true", "[10]", '"10.5"', "1e400")


@pytest.fixture(scope="module")
def no_counts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    sent = '"num_model_requests":5'
    texts = {
        f"user-{number}": usual(completions=changed(COMPLETIONS, sent, f'"num_model_requests":{spelled}'))
        for number, spelled in enumerate(NO_COUNTS)
    }
    with tried(tmp_path_factory.mktemp("fractions") / "home", texts) as case:
        yield case


@pytest.mark.parametrize("number", range(len(NO_COUNTS)), ids=NO_COUNTS)
def test_an_invalid_count_keeps_the_costs_and_the_state(no_counts: Case, number: int):
    user = f"user-{number}"
    assert no_counts.bill(user) == 2
    assert no_counts.status(user)["status"] == "active"
    said = no_counts.words(user)
    assert "num_model_requests" in said
    assert not KEY_ADVICE.search(said)


# Names

HALVES = re.compile("[\ud800-\udfff]")
NAMES = {
    "NUL": r"Al\u0000pha",
    "first half of an emoji": r"Alpha \ud83d",
    "second half of an emoji": r"Alpha \udc00",
    "halves in the wrong order": r"\ude00Alpha\ud83d",
    "a whole emoji": r"Alpha \ud83d\ude00",
    "right to left": r"\u202eahplA",
    "byte order mark": r"\ufeffAlpha",
    "line break": r"Al\npha\r\n",
    "escape sequence": r"\u001b[31mAlpha\u001b[0m",
    "noncharacter": r"Alpha\uffff",
    "empty": "",
    "spaces": "   ",
    "long": "Alpha" * 4_000,
    "quotes": r"\"Alpha', \\",
}


def named(name: str) -> str:
    """Build an organization in which every object has this name."""

    def rename(text: str, *old: str) -> str:
        for one in old:
            text = changed(text, f'"name":"{one}"', f'"name":"{name}"')
        return text

    costs = changed(f"{INPUT},{OUTPUT}", '"project_name":"Alpha"', f'"project_name":"{name}"')
    costs = changed(costs, '"organization_name":"Example"', f'"organization_name":"{name}"')
    return usual(
        costs=costs,
        projects=f"{rename(ALPHA, 'Alpha')},{OLD}",
        users=rename(ONE, "Member One"),
        api_keys=rename(KEY, "prod key", "Member One"),
        service_accounts=rename(RUNNER, "CI runner"),
    )


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    texts = {f"user-{number}": named(name) for number, name in enumerate(NAMES.values())}
    with tried(tmp_path_factory.mktemp("names") / "home", texts) as case:
        yield case


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_an_odd_name_never_rejects_costs(names: Case, number: int):
    user = f"user-{number}"
    assert names.bill(user) == 2
    assert names.by("member_id", "daily_member_costs", user) == {"user-case0001": 2}
    assert names.by("api_key_id", "daily_key_costs", user) == {"key_case0001": 2}
    assert names.status(user)["status"] == "active"
    assert names.status(user)["last_failure"] is None
    assert names.directory(user) == {"projects": 2, "members": 2, "api_keys": 1}
    every = " UNION ALL ".join(
        f"SELECT name FROM {table} WHERE user_id = '{user}'" for table in ("projects", "members", "api_keys")
    )
    for ((name,),) in zip(names.sql(every), strict=True):
        assert "\0" not in (name or "")
        assert not HALVES.search(name or "")
    for form in ((), ("--csv",)):
        shown = names.ok("sql", every, *form)
        assert {c for c in shown if unicodedata.category(c) == "Cc"} <= {"\n", "\r", "\t"}, form
    assert "Alpha" in names.ok("sql", every) or number not in (1, 2, 4)


ODD_IDS = (r"proj\u0000x", r"proj\nx", "proj/../users", "proj?limit=1", r"proj \ud83d", "proj#x", "pröj", "")


@pytest.mark.parametrize("project_id", ODD_IDS)
def test_an_odd_project_id_costs_at_most_its_own_names(play: Play, project_id: str):
    odd = changed(OLD, '"id":"proj_case0002"', f'"id":"{project_id}"')
    case = play(case=usual(projects=f"{ALPHA},{odd}"))
    assert case.connect().exit_code == 0
    assert case.refresh_impatiently().failed_users == []
    assert_usual(case)


LINES = {
    "NUL": r"gpt-5.5-2026-04-23\u0000, input",
    "half an emoji": r"gpt-5.5-2026-04-23, input \ud83d",
    "empty": "",
    "long": "gpt-5.5-2026-04-23, " + "input " * 2_000,
    "control characters": r"\u001b[2J\u0007, input",
}


@pytest.mark.parametrize("line_item", LINES.values(), ids=LINES)
def test_an_odd_line_item_keeps_its_money(play: Play, line_item: str):
    odd = changed(INPUT, '"line_item":"gpt-5.5-2026-04-23, input"', f'"line_item":"{line_item}"')
    case = play(case=usual(costs=f"{odd},{OUTPUT}"))
    assert case.connect().exit_code == 0
    assert case.refresh_impatiently().failed_users == []
    assert case.bill() == 2


# Money


def priced(*values: str, offset: int = -1) -> str:
    """Return rows of a day with these amounts, each with its own line item."""
    texts = []
    for number, value in enumerate(values):
        row = changed(INPUT, '"value":"1.250000000000000000000000000000000"', f'"value":{value}')
        row = changed(row, '"line_item":"gpt-5.5-2026-04-23, input"', f'"line_item":"thing {number}"')
        texts.append(changed(row, '"day":-1', f'"day":{offset}'))
    return ",".join(texts)


AMOUNTS = {
    "below zero alone": (('"-5.00"',), "-5"),
    "zero in sum": (('"1.00"', '"-1.00"'), "0"),
    "zeros": (('"0E-6176"', '"-0.00"', "0"), "0"),
    "numbers": (("1.25", "0.75e0", "5E-1"), "2.5"),
    "exponents in texts": (('"125E-2"', '"7.5e-1"'), "2"),
    "the smallest": (('"0.000000000000000001"', '"1"'), "1.000000000000000001"),
    "many digits": (('"1.234567890123456789"', '"0.765432109876543211"'), "2"),
    "none": (("null", '"2.00"'), "2"),
}


@pytest.fixture(scope="module")
def amounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    texts = {
        f"user-{number}": usual(costs=priced(*values)) for number, (values, _) in enumerate(AMOUNTS.values())
    }
    with tried(tmp_path_factory.mktemp("amounts") / "home", texts) as case:
        yield case


@pytest.mark.parametrize("number", range(len(AMOUNTS)), ids=AMOUNTS)
def test_the_sums_are_exact(amounts: Case, number: int):
    _, total = list(AMOUNTS.values())[number]
    user = f"user-{number}"
    assert amounts.bill(user) == Decimal(total)
    ((shown,),) = amounts.sql(
        "SELECT value FROM user_metrics "
        f"WHERE user_id = '{user}' AND metric = 'total_spend' AND period = '7d'"
    )
    assert Decimal(shown) == Decimal(total)


def test_a_field_that_is_given_twice_has_one_meaning(play: Play):
    twice = changed(priced('"1.00"'), '"value":"1.00"', '"value":"1.50","value":"2.50"')
    other = changed(priced('"1.00"', '"1e0"'), '"value":"1.00"', '"value":"1.50","value":"2.50"')
    case = play(plain=usual(costs=twice), converted=usual(costs=other))
    assert case.connect_all().exit_code == 0
    case.refresh_impatiently()
    read = {user: case.status(user)["last_refresh_at"] is not None for user in ("plain", "converted")}
    assert read["plain"] == read["converted"]
    if read["plain"]:
        assert case.bill("plain") + 1 == case.bill("converted")
    else:
        assert all("value" in case.words(user) for user in read)


def test_undocumented_fields_are_ignored(play: Play):
    more = '"day":-1,"tomorrow":{"a":[1,{"b":null}]},"amount_usd":1e999,"project":7,"tags":["x"]'
    row = changed(INPUT, '"day":-1', more)
    used = changed(COMPLETIONS, '"day":-1', '"day":-1,"num_sessions_of_tomorrow":0.5,"tools":{"web":2}')
    key = changed(KEY, '"name":"prod key"', '"name":"prod key","scopes":[{"x":1}],"owner_kind":3')
    case = play(case=usual(costs=f"{row},{OUTPUT}", completions=used, api_keys=key))
    refreshed(case)
    assert_usual(case)


@pytest.mark.parametrize("name", ["project_id", "user_id", "api_key_id", "model"])
def test_an_empty_text_is_accepted(play: Play, name: str):
    used = re.sub(f'"{name}":"[^"]*"', f'"{name}":""', COMPLETIONS)
    assert used != COMPLETIONS
    case = play(case=usual(completions=used))
    refreshed(case)
    assert case.bill() == 2


# Windows


def days_of_costs(*offsets: int) -> str:
    return ",".join(priced('"1.00"', offset=offset) for offset in offsets)


def test_a_history_limit_on_usage_alone(play: Play):
    offsets = (-1, -20, -60, -80)
    used = ",".join(changed(COMPLETIONS, '"day":-1', f'"day":{offset}') for offset in offsets)
    endpoints = [*MEASURES]
    text = usual(
        costs=days_of_costs(*offsets),
        completions=used,
        _refuse_before_days=30,
        _refuse_before_days_of=endpoints,
    )
    case = play(case=text)
    refreshed(case)
    assert case.bill() == 4
    assert case.sql("SELECT date FROM daily_usage ORDER BY date") == [(day(-20),), (day(-1),)]
    assert case.status()["status"] == "active"


@pytest.mark.parametrize(("limit", "plan"), [(6, "growth"), (45, "growth"), (200, "enterprise")])
def test_all_days_openai_returns_are_loaded(play: Play, limit: int, plan: str):
    text = usual(costs=days_of_costs(-1, 1 - limit, -limit, -limit - 1), _refuse_before_days=limit)
    case = play(case=text)
    assert case.connect(plan).exit_code == 0
    result = case.refresh_impatiently()
    assert (result.failed_users, result.errors) == ([], [])
    assert case.by("date", "daily_costs") == {day(-1): 1, day(1 - limit): 1, day(-limit): 1}
    assert case.status()["status"] == "active"
    oldest = (datetime.now(UTC).date() - timedelta(days=limit)).isoformat()
    assert oldest in case.words()


def test_an_end_in_the_future_may_be_refused(play: Play):
    case = play(case=usual(costs=days_of_costs(-2, -1, 0), _refuse_future_end=True))
    refreshed(case)
    assert case.by("date", "daily_costs") == {day(-2): 1, day(-1): 1, day(0): 1}
    assert case.status()["status"] == "active"
    case.refresh_impatiently()
    assert case.bill() == 3
