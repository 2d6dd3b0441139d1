"""Usage that splits a charge: differing names, cache writes, services, fine-tunes."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.load import KINDS, load_pending
from finora_pipeline.warehouse.metrics import refresh_metrics
from finora_pipeline.warehouse.sql import section
from tests.warehouse.landing import DAY, bucket, cost_day, cost_row, land, page_of, rows

NOON = datetime(2026, 6, 15, 12, tzinfo=UTC)
Refreshed = Callable[..., Warehouse]
USED = (
    *("completions", "decisions", "audio_transcriptions", "audio_speeches", "images"),
    *("file_search_calls", "web_search_calls", "code_interpreter_sessions", "vector_stores"),
)


def charge(usd: str, line_item: str | None, quantity: int | None = None, unit: str | None = None) -> str:
    more = ""
    if quantity is not None:
        more += f',"quantity":{quantity}.0'
    if unit is not None:
        more += f',"quantity_unit":"{unit}"'
    return cost_row(f'"{usd}"', line_item)[:-1] + more + "}"


def use(member: int | None, model: str | None, **measures: Any) -> dict[str, Any]:
    ids = {"user_id": None, "api_key_id": None} if member is None else {}
    ids = ids or {"user_id": f"user-{member}", "api_key_id": f"key-{member}"}
    return {"project_id": "proj_a", "model": model, **ids, **measures}


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory) -> Refreshed:
    """Load charges and usage by endpoint, for one or several days, and compute metrics."""

    def refresh(*days: tuple[Sequence[str], dict[str, Sequence[dict[str, Any]]]]) -> Warehouse:
        warehouse = Warehouse(tmp_path_factory.mktemp("matched"))
        buckets: dict[str, list[Any]] = defaultdict(list)
        for n, (charges, used) in enumerate(days):
            day = DAY + timedelta(days=n)
            buckets["costs"].append(cost_day([*charges], day))
            for endpoint in USED:
                buckets[endpoint].append(bucket(list(used.get(endpoint, [])), day))
        for endpoint, of_days in buckets.items():
            land(warehouse, page_of(*of_days), endpoint=ENDPOINTS[endpoint], fetched_at=NOON)
        load_pending(warehouse, KINDS, "run-1")
        assert refresh_metrics(warehouse, DAY + timedelta(days=len(days))).unequal == []
        return warehouse

    return refresh


def by_member(
    warehouse: Warehouse, *, day: date = DAY, model: str | None = None
) -> dict[str | None, Decimal]:
    """Return each member's cost on a day, equal to its key's: both are numbered alike."""
    where = f"WHERE date = '{day}'" + ("" if model is None else f" AND model = '{model}'")
    members, keys = (
        dict(rows(warehouse, f"SELECT {column}, sum(amount_usd) FROM {table} {where} GROUP BY ALL"))
        for table, column in (("daily_member_costs", "member_id"), ("daily_key_costs", "api_key_id"))
    )
    assert {id and id.replace("key", "user"): usd for id, usd in keys.items()} == members
    return {id and id.removeprefix("user-"): usd for id, usd in members.items() if usd}


def models(warehouse: Warehouse, day: date = DAY) -> dict[str, Decimal]:
    return dict(rows(warehouse, f"SELECT model, amount_usd FROM daily_model_costs WHERE date = '{day}'"))


def usd(**amounts: str) -> dict[str | None, Decimal]:
    return {None if name == "unattributed" else name[1:]: Decimal(amount) for name, amount in amounts.items()}


WRITES = [
    use(
        1, "gpt-6-sol", input_tokens=130_000, input_cached_tokens=0, input_uncached_tokens=90_000,
        output_tokens=10_000, num_model_requests=5, input_cache_write_tokens=40_000,
        input_cache_write_30m_tokens=40_000, input_cache_write_12h_tokens=0,
    ),
    use(
        2, "gpt-6-sol", input_tokens=90_000, input_cached_tokens=0, input_uncached_tokens=10_000,
        output_tokens=20_000, num_model_requests=5, input_cache_write_tokens=80_000,
        input_cache_write_30m_tokens=0, input_cache_write_12h_tokens=80_000,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "twelve_hours", ["cache writes - 12hr", "Cache Writes - 12HR", "input_cache_write_12h_tokens"]
)
def test_cache_writes_are_split_by_their_own_measure(twelve_hours: str, refreshed: Refreshed):
    charges = [
        charge("1.00", "gpt-6-sol, input", 100_000, "tokens"),
        charge("0.50", "gpt-6-sol, cache writes", 40_000, "tokens"),
        charge("2.00", f"gpt-6-sol, {twelve_hours}", 80_000, "tokens"),
        charge("3.00", "gpt-6-sol, output", 30_000, "tokens"),
    ]
    warehouse = refreshed((charges, {"completions": WRITES}))
    assert by_member(warehouse) == usd(_1="2.40", _2="4.10")
    query = (
        "SELECT model, amount_usd, input_tokens + output_tokens, cost_per_1k_tokens FROM daily_model_costs"
    )
    assert rows(warehouse, query) == [("gpt-6-sol", Decimal("6.50"), 250_000, Decimal("0.026"))]


BOTH_KINDS = [{"input_cache_write_30m_tokens": 40}, {"input_cache_write_12h_tokens": 80}]
WITHOUT_COUNTER = [
    # Older pages lack the measure of 30 minutes, or both measures.
    ("cache writes", [{"input_cache_write_12h_tokens": 0}, {"input_cache_write_12h_tokens": 60}], "42"),
    ("cache writes", [{}, {}], "24"),
    ("cache writes - 12hr", [{}, {}], "24"),
    ("cache writes - 12hr", [{"input_cache_write_30m_tokens": n} for n in (40, 60)], "06"),
    # Of both kinds, or of a kind unknown to usage.
    ("input_cache_write_tokens", BOTH_KINDS, "24"),
    ("cache writes - 24hr", BOTH_KINDS, "24"),
]


def test_cache_writes_without_a_measure_are_split_by_all_input(refreshed: Refreshed):
    days = []
    for line_item, counters, _ in WITHOUT_COUNTER:
        used = [
            use(n, "gpt-6-sol", input_tokens=1_000, output_tokens=0, input_cache_write_tokens=40 * n, **more)
            for n, more in enumerate(counters, 1)
        ]
        days.append(([charge("6.00", f"gpt-6-sol, {line_item}")], {"completions": used}))
    warehouse = refreshed(*days)
    for n, (line_item, _, parts) in enumerate(WITHOUT_COUNTER):
        expected = {id: Decimal(part) for id, part in zip("12", parts, strict=True) if part != "0"}
        assert (line_item, by_member(warehouse, day=DAY + timedelta(days=n))) == (line_item, expected)


def test_a_service_is_one_row_split_by_its_own_usage(refreshed: Refreshed):
    charges = [
        charge("0.60", "whisper", 100, "duration_minutes"),
        charge("0.50", "assistants api | file search", 200),
        charge("1.00", "web search tool calls", 100),
    ]
    seconds = [use(n, "whisper-1", seconds=s, num_model_requests=3) for n, s in ((1, 4000), (2, 2000))]
    files = [use(n, None, num_requests=calls) for n, calls in ((1, 150), (2, 50))]
    searches = [
        use(n, "gpt-5.5", num_requests=calls, num_model_requests=calls) for n, calls in ((1, 75), (2, 25))
    ]
    used = {"audio_transcriptions": seconds, "file_search_calls": files, "web_search_calls": searches}
    warehouse = refreshed((charges, used))
    assert by_member(warehouse, model="whisper") == usd(_1="0.40", _2="0.20")
    assert by_member(warehouse, model="assistants api | file search") == usd(_1="0.375", _2="0.125")
    assert by_member(warehouse, model="web search tool calls") == usd(_1="0.75", _2="0.25")
    assert by_member(warehouse) == usd(_1="1.525", _2="0.575")
    assert models(warehouse) == {
        "whisper": Decimal("0.60"),
        "assistants api | file search": Decimal("0.50"),
        "web search tool calls": Decimal("1.00"),
    }
    assert rows(warehouse, "SELECT requests FROM daily_model_costs WHERE model = 'whisper'") == [(6,)]


PAIRS = [
    # line item, endpoint, name in usage, a measure
    ("Whisper", "audio_transcriptions", "whisper-1", "seconds"),
    ("priority | whisper", "audio_transcriptions", "whisper-1", "seconds"),
    ("whisper-1, audio", "audio_transcriptions", "whisper-1", "seconds"),
    ("file search", "file_search_calls", None, "num_requests"),
    ("File Search Tool Calls", "file_search_calls", None, "num_requests"),
    ("file_search_calls", "file_search_calls", None, "num_requests"),
    ("Web Search Tool Calls", "web_search_calls", "gpt-5.5", "num_requests"),
    ("web search tool calls, gpt-5.5", "web_search_calls", "gpt-5.5", "num_requests"),
    ("dall-e 3, standard, 1024x1792", "images", "dall-e-3", "images"),
    ("DALL-E 3, HD", "images", "dall-e-3", "images"),
    ("Image models, gpt-image-2, 1024x1024", "images", "gpt-image-2", "images"),
    ("Image models, gpt-image-2, 1024x1024", "images", "gpt-image-2-2026-04-21", "images"),
    ("Image models", "images", "gpt-image-2", "images"),
    ("tts", "audio_speeches", "tts-1", "characters"),
    ("tts-1", "audio_speeches", "tts-1", "characters"),
    ("TTS HD", "audio_speeches", "tts-1-hd", "characters"),
    ("tts-1 speech synthesis", "audio_speeches", "tts-1", "characters"),
    ("text-to-speech, tts-1", "audio_speeches", "tts-1", "characters"),
    ("ft-gpt-4o-2024-08-06, output", "completions", "ft:gpt-4o-2024-08-06:acme::abc", "output_tokens"),
    ("ft-gpt-4o, output", "completions", "ft:gpt-4o-2024-08-06:acme::abc", "output_tokens"),
    ("ft:gpt-4o:Acme::AbC, output", "completions", "ft:gpt-4o:Acme::AbC", "output_tokens"),
    ("GPT-6-Astra, Output", "completions", "gpt-6-astra", "output_tokens"),
    ("gpt-6-astra, output", "completions", "GPT-6-Astra-2026-07-01", "output_tokens"),
    ("GPT 6 Astra, output", "completions", "gpt-6-astra", "output_tokens"),
    ("ultrafast | gpt-6-astra, output", "completions", "gpt-6-astra", "output_tokens"),
    ("Night Shift | gpt-6-astra hologram, output", "completions", "gpt-6-astra-2026-07-01", "output_tokens"),
    ("gpt-6-astra, output, in the dark", "completions", "gpt-6-astra", "output_tokens"),
    # Only usage shows where the model's name ends.
    ("o3 deep research, output", "completions", "o3-deep-research", "output_tokens"),
    ("o3 Deep Research hologram, output", "completions", "o3-deep-research-2025-06-26", "output_tokens"),
    ("Realtime minutes of chat-latest", "completions", "chat-latest", "num_model_requests"),
    ("Fast answers: gpt-6-astra", "completions", "gpt-6-astra", "num_model_requests"),
    ("gpt-6-astra, input_tokens", "decisions", "gpt-6-astra", "input_tokens"),
]


@pytest.fixture(scope="module")
def paired(refreshed: Refreshed) -> Warehouse:
    """Load each pair on its own day, with usage of another model by another member."""
    days = []
    for line_item, endpoint, name, measure in PAIRS:
        used = {
            "completions": [use(2, "gpt-4.1-mini", num_model_requests=9, input_tokens=9, output_tokens=9)]
        }
        mine = [use(n, name, **{"num_model_requests": 1, measure: 100 * n}) for n in (1, 3)]
        used[endpoint] = used.get(endpoint, []) + mine
        days.append(([charge("4.00", line_item)], used))
    return refreshed(*days)


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=[pair[0] for pair in PAIRS])
@pytest.mark.slow
def test_costs_and_usage_meet_under_one_name(number: int, paired: Warehouse):
    day = DAY + timedelta(days=number)
    assert by_member(paired, day=day) == usd(_1="1.00", _3="3.00")
    label = "SELECT DISTINCT coalesce(model, line_item) FROM daily_costs WHERE date ="
    ((charged,),) = rows(paired, f"{label} '{day}'")
    assert models(paired, day) == {charged: Decimal(4), "gpt-4.1-mini": Decimal(0)}


def test_fine_tunes_of_a_base_share_its_line(refreshed: Refreshed):
    line = charge("3.00", "ft-gpt-4o-2024-08-06, input", 3000, "tokens")
    used = [
        use(n, f"ft:gpt-4o-2024-08-06:acme::{n}", num_model_requests=1, input_tokens=1000 * n) for n in (1, 2)
    ]
    base = use(3, "gpt-4o-2024-08-06", num_model_requests=1, input_tokens=50)
    warehouse = refreshed(([line], {"completions": [*used, base]}))
    assert by_member(warehouse) == usd(_1="1.00", _2="2.00")
    found = rows(
        warehouse, "SELECT model, input_tokens, cost_per_1k_tokens FROM daily_model_costs ORDER BY 1"
    )
    assert found == [("ft-gpt-4o-2024-08-06", 3000, Decimal(1)), ("gpt-4o-2024-08-06", 50, None)]


def test_tiers_are_split_by_their_own_usage(refreshed: Refreshed):
    tiers = {1: "default", 2: "priority", 3: "ultrafast"}
    used = [
        use(n, "gpt-6-astra", service_tier=tier, num_model_requests=1, input_tokens=0, output_tokens=100)
        for n, tier in tiers.items()
    ]
    in_batch = use(4, "gpt-6-astra", batch=True, num_model_requests=1, input_tokens=0, output_tokens=100)
    plain = charge("1.00", "gpt-6-astra, output")
    fast = [charge("2.00", "fast | gpt-6-astra, output"), charge("6.00", "ULTRAFAST | gpt-6-astra, output")]
    # A tier without usage is split by all usage; so are calls.
    other = charge("3.00", "evals | gpt-6-astra, output")
    named = charge("5.00", "batch | gpt-6-astra, output")
    warehouse = refreshed(
        ([plain, *fast], {"completions": used}),
        ([plain, other], {"completions": used}),
        ([plain, named], {"completions": [*used[:1], in_batch]}),
        ([charge("3.00", "fast | gpt-6-astra")], {"completions": used}),
    )
    days = [by_member(warehouse, day=DAY + timedelta(days=n)) for n in range(4)]
    third = Decimal("1.333333333333333333")
    assert days == [
        usd(_1="1", _2="2", _3="6"),
        {"1": third + Decimal("1e-18"), "2": third, "3": third},
        usd(_1="1", _4="5"),
        usd(_2="3"),
    ]


def test_tokens_of_other_measures_are_split_by_those_measures(refreshed: Refreshed):
    images = [use(n, "gpt-image-2", images=count, num_model_requests=1) for n, count in ((1, 3), (2, 1))]
    line = charge("4.00", "gpt-image-2 image, output", 12_672, "tokens")
    assert by_member(refreshed(([line], {"images": images}))) == usd(_1="3", _2="1")


def test_a_used_model_is_not_mistaken_for_a_longer_name(refreshed: Refreshed):
    used = [use(1, "gpt-4o", num_model_requests=1, output_tokens=5)]
    warehouse = refreshed(([charge("1.00", "gpt-4o-mini hologram, output")], {"completions": used}))
    assert models(warehouse) == {"gpt-4o-mini": Decimal(1), "gpt-4o": Decimal(0)}
    assert by_member(warehouse) == usd(unattributed="1")


WITHOUT_USE = [
    "promotional credit", "gpt-4o, training", "code interpreter", "vector store storage", "container", None
]  # fmt: skip


@pytest.mark.slow
def test_charges_without_matching_usage_have_no_member(refreshed: Refreshed):
    used = {
        "completions": [
            use(n, "gpt-4o", num_model_requests=1, input_tokens=1000, output_tokens=0) for n in (1, 2)
        ],
        "code_interpreter_sessions": [{"project_id": "proj_a", "num_sessions": 3}],
        "vector_stores": [{"project_id": "proj_a", "usage_bytes": 5}],
    }
    tokens = charge("2.00", "gpt-4o, input", 2000, "tokens")
    warehouse = refreshed(*(([charge("-5.00", line_item), tokens], used) for line_item in WITHOUT_USE))
    for n, line_item in enumerate(WITHOUT_USE):
        day = DAY + timedelta(days=n)
        assert by_member(warehouse, day=day) == usd(_1="1", _2="1", unattributed="-5")
        own = "gpt-4o" if line_item == "gpt-4o, training" else line_item or "not attributed"
        assert set(models(warehouse, day)) == {"gpt-4o", own}
    per_1k = "SELECT DISTINCT cost_per_1k_tokens FROM daily_model_costs WHERE model = 'gpt-4o'"
    assert rows(warehouse, per_1k) == [(Decimal(1),)]
    for table, id in (("daily_member_costs", "member_id"), ("daily_key_costs", "api_key_id")):
        ((found, distinct),) = rows(
            warehouse, f"SELECT count(*), count(DISTINCT (date, project_id, {id}, model)) FROM {table}"
        )
        assert found == distinct


def test_file_search_by_gibibyte_hours_is_storage(refreshed: Refreshed):
    charges = [
        charge("1.00", "assistants api | file search", 72, "gibibyte_hours"),
        charge("2.00", "file search", 40),
    ]
    calls = [use(1, None, num_requests=40)]
    stores = [{"project_id": "proj_a", "usage_bytes": 5}]
    warehouse = refreshed((charges, {"file_search_calls": calls, "vector_stores": stores}))
    assert by_member(warehouse) == usd(_1="2", unattributed="1")


def test_usage_without_costs_and_costs_without_usage_reconcile(refreshed: Refreshed):
    used = [use(1, "gpt-4o", num_model_requests=3, input_tokens=700, output_tokens=0)]
    searches = [use(1, "gpt-4o", num_requests=3, num_model_requests=3)]
    charges = [charge("1.00", "gpt-live-1, output", 500, "tokens")]
    warehouse = refreshed((charges, {"completions": used, "web_search_calls": searches}))
    assert models(warehouse) == {"gpt-live-1": Decimal(1), "gpt-4o": Decimal(0)}
    assert rows(warehouse, "SELECT severity, token_residual FROM reconciliation") == [(None, Decimal(-200))]
    assert rows(warehouse, section("reconciliation", "check")) == []
    assert rows(warehouse, section("reconciliation", "token_check")) == [
        ("use without costs", 1, Decimal(200))
    ]


LINES = [
    "gpt-6-sol, input", "gpt-6-sol, cached input", "gpt-6-sol, output", "gpt-6-sol, cache writes",
    "gpt-6-sol, cache writes - 12hr", "gpt-6-sol, cache writes - 24hr", "GPT-6-SOL, Output", "gpt-6-sol",
    "fast | gpt-6-sol, output", "night | gpt-6-sol, thoughts", "gpt-6-sol, training", "whisper",
    "file search", "web search tool calls", "Image models", "promotional credit", "sol, output", None,
]  # fmt: skip
COUNTERS = (
    *("input_tokens", "input_cached_tokens", "input_uncached_tokens", "output_tokens"),
    *("input_cache_write_tokens", "input_cache_write_30m_tokens", "input_cache_write_12h_tokens"),
)
members = st.none() | st.integers(0, 4)
used_rows = st.builds(
    lambda member, model, counts: use(member, model, num_model_requests=1, **counts),
    members,
    st.sampled_from(["gpt-6-sol", "gpt-6-sol-2026-07-01", "sol", None]),
    st.dictionaries(st.sampled_from(COUNTERS), st.integers(0, 10**13)),
).flatmap(lambda row: st.sampled_from([row, row | {"service_tier": "fast"}, row | {"batch": True}]))
called = st.lists(
    st.builds(lambda n, count: use(n, "gpt-6-sol", num_requests=count), members, st.integers(0, 50)),
    max_size=3,
)
amounts = st.decimals(-(10**6), 10**9, places=18, allow_nan=False)
any_day = st.tuples(
    st.dictionaries(st.sampled_from(LINES), amounts, min_size=1, max_size=10).map(
        lambda charges: [charge(f"{amount:f}", line_item) for line_item, amount in charges.items()]
    ),
    st.fixed_dictionaries(
        {
            "completions": st.lists(used_rows, max_size=8),
            "web_search_calls": called,
            "file_search_calls": called,
        }
    ),
)


SLOW = (HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large)


@settings(max_examples=3, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(days=st.lists(any_day, min_size=8, max_size=12))
@pytest.mark.slow
def test_models_members_and_keys_add_up_to_any_bill(days, refreshed: Refreshed):
    warehouse = refreshed(*days)
    query = "SELECT date, sum(amount_usd) FROM {} GROUP BY date ORDER BY date"
    bill = rows(warehouse, query.format("daily_costs"))
    assert len(bill) == len(days)
    for table in ("daily_model_costs", "daily_member_costs", "daily_key_costs"):
        assert rows(warehouse, query.format(table)) == bill
