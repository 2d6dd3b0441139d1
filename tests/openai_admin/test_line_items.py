"""Line items: parsing of texts seen live; no text is lost or breaks the parser."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.endpoints import ENDPOINTS
from finora_pipeline.openai_admin.line_items import DIRECTIONS, MODALITIES, TIERS, LineItem, parse_line_item
from finora_pipeline.openai_admin.service_names import SERVICE_NAMES, service_phrase
from finora_pipeline.openai_simulator.catalog import MODELS, SERVICES

LINES = (Path(__file__).parents[1] / "fixtures" / "line_items.txt").read_text().splitlines()
# Line items seen live that the grammar lacks. A new one belongs here or in the grammar.
UNPARSED: set[str] = set()

EXPECTED = [
    # text, model, direction, modality, tier, long context
    ("gpt-4o-mini-2024-07-18, input", "gpt-4o-mini-2024-07-18", "input", None, None, False),
    ("gpt-5.5-2026-04-23, cached input", "gpt-5.5-2026-04-23", "cached_input", None, None, False),
    ("o1-pro, output", "o1-pro", "output", None, None, False),
    ("gpt-6-astra, input_tokens", "gpt-6-astra", "input", None, None, False),
    ("gpt-6-astra, input_cached_tokens", "gpt-6-astra", "cached_input", None, None, False),
    ("gpt-6-astra, input_cache_write_tokens", "gpt-6-astra", "cache_write", None, None, False),
    ("gpt-5.5-2026-04-23, cache writes", "gpt-5.5-2026-04-23", "cache_write", None, None, False),
    ("ft-gpt-4o-2024-08-06, input", "ft-gpt-4o-2024-08-06", "input", None, None, False),
    ("text-embedding-3-small, input", "text-embedding-3-small", "input", None, None, False),
    ("omni-moderation-2024-09-26, input", "omni-moderation-2024-09-26", "input", None, None, False),
    # A space before the comma, as seen of a provisional name.
    ("chat-latest , input", "chat-latest", "input", None, None, False),
    ("gpt-image-2 image, output", "gpt-image-2", "output", "image", None, False),
    ("gpt-realtime-2.1 audio, output", "gpt-realtime-2.1", "output", "audio", None, False),
    ("gpt-4o, input, long context", "gpt-4o", "input", None, None, True),
    ("priority | gpt-4o, output, long context", "gpt-4o", "output", None, "priority", True),
    (
        "priority | gpt-5.4-2026-03-05, input",
        "gpt-5.4-2026-03-05",
        "input",
        None,
        "priority",
        False,
    ),
    ("flex | gpt-5-mini", "gpt-5-mini", None, None, "flex", False),
    ("evals | gpt-4o-mini-2024-07-18, input", "gpt-4o-mini-2024-07-18", "input", None, "evals", False),
    ("assistants api | file search", None, None, None, "assistants api", False),
    ("web search tool calls", None, None, None, None, False),
    ("code interpreter", None, None, None, None, False),
    ("whisper", None, None, None, None, False),
    ("Image models", None, None, None, None, False),
    (
        "Image models, gpt-image-2.5-flare, 1536x2048",
        "gpt-image-2.5-flare",
        None,
        "image",
        None,
        False,
    ),
    ("dall-e 3, standard, 1024x1792, 1792x1024", "dall-e-3", None, "image", None, False),
    ("whisper-1, audio", "whisper-1", None, "audio", None, False),
    # The documentation's example of a line that names no model.
    ("input_tokens", None, "input", None, None, False),
    # Other letter case.
    ("GPT-6-Astra, Cached Input", "gpt-6-astra", "cached_input", None, None, False),
    ("PRIORITY | gpt-6-astra, Output, Long Context", "gpt-6-astra", "output", None, "priority", True),
    ("Whisper", None, None, None, None, False),
    ("Web Search Tool Calls", None, None, None, None, False),
    ("image models, gpt-image-2, 1024X1024", "gpt-image-2", None, "image", None, False),
    # The tiers on sale, one or several, with spaces left out.
    ("ultrafast | gpt-6-astra, output", "gpt-6-astra", "output", None, "ultrafast", False),
    ("fast | gpt-6-astra, output", "gpt-6-astra", "output", None, "fast", False),
    ("scale | gpt-6-astra, output", "gpt-6-astra", "output", None, "scale", False),
    ("batch | gpt-6-astra, output", "gpt-6-astra", "output", None, "batch", False),
    ("priority | batch | gpt-6-astra, output", "gpt-6-astra", "output", None, "priority | batch", False),
    ("fast|gpt-6-astra,output", "gpt-6-astra", "output", None, "fast", False),
    # Cache writes by retention.
    ("gpt-6-sol, cache writes - 12hr", "gpt-6-sol", "cache_write_12h", None, None, False),
    ("gpt-6-sol, Cache Writes - 12 HR", "gpt-6-sol", "cache_write_12h", None, None, False),
    ("gpt-6-sol, cache writes - 12 hours", "gpt-6-sol", "cache_write_12h", None, None, False),
    ("gpt-6-sol, cache writes - 30min", "gpt-6-sol", "cache_write", None, None, False),
    # The usage API's own names.
    ("gpt-6-sol, input_cache_write_30m_tokens", "gpt-6-sol", "cache_write", None, None, False),
    ("gpt-6-sol, input_cache_write_12h_tokens", "gpt-6-sol", "cache_write_12h", None, None, False),
    ("gpt-6-sol, input_uncached_tokens", "gpt-6-sol", "input", None, None, False),
    ("gpt-6-sol, input_cached_text_tokens", "gpt-6-sol", "cached_input", "text", None, False),
    ("gpt-6-sol, output_audio_tokens", "gpt-6-sol", "output", "audio", None, False),
    ("gpt-realtime-2.1, cached audio input", "gpt-realtime-2.1", "cached_input", "audio", None, False),
    # Whole lines that are a model's name, and training.
    ("gpt-5-mini", "gpt-5-mini", None, None, None, False),
    ("tts-1", "tts-1", None, None, None, False),
    ("o3", "o3", None, None, None, False),
    ("gpt-4o-2024-08-06, training", "gpt-4o-2024-08-06", "training", None, None, False),
    ("ft-gpt-4o-2024-08-06, training tokens", "ft-gpt-4o-2024-08-06", "training", None, None, False),
    ("ft:gpt-4o:Acme::AbC1, input", "ft:gpt-4o:Acme::AbC1", "input", None, None, False),
    ("gpt-6-sol output", "gpt-6-sol", "output", None, None, False),
]


@pytest.mark.parametrize(("text", "model", "direction", "modality", "tier", "is_long_context"), EXPECTED)
def test_a_line_item_is_parsed(
    text: str,
    model: str | None,
    direction: str | None,
    modality: str | None,
    tier: str | None,
    is_long_context: bool,
) -> None:
    assert parse_line_item(text) == LineItem(text, model, direction, modality, tier, is_long_context)


@pytest.mark.parametrize("text", LINES)
def test_every_line_item_seen_live_is_parsed(text: str) -> None:
    assert parse_line_item(text).is_parsed == (text not in UNPARSED)


@pytest.mark.parametrize(
    ("text", "model", "direction", "modality", "tier"),
    [
        ("", None, None, None, None),
        (" ", None, None, None, None),
        (",", None, None, None, None),
        ("flex | ", None, None, None, "flex"),
        ("promotional credit", None, None, None, None),
        ("Promotional credit, November 2026", None, None, None, None),
        ("tax, VAT", None, None, None, None),
        ("container", None, None, None, None),
        ("web search tool calls, gpt-5.5", None, None, None, None),
        ("tts-1 speech synthesis", "tts-1", "speech synthesis", None, None),
        ("gpt-4o, thoughts", "gpt-4o", "thoughts", None, None),
        ("sora, Seconds", "sora", "Seconds", None, None),
        ("gpt-4o, input, short context", "gpt-4o", "input", None, None),
        ("gpt-4o, batch, output", "gpt-4o", "output", None, None),
        ("overnight | gpt-4o, input", "gpt-4o", "input", None, "overnight"),
        ("Night Shift | gpt-4o, input", "gpt-4o", "input", None, "Night Shift"),
        ("gpt-6-astra hologram, output", "gpt-6-astra", "output", "hologram", None),
        ("gpt-6-astra, hologram output", "gpt-6-astra", "output", "hologram", None),
        ("gpt-6-astra hologram, thoughts", "gpt-6-astra", "thoughts", "hologram", None),
        ("gpt-6-sol, cache writes - 24hr", "gpt-6-sol", "cache writes - 24hr", None, None),
        ("Fine-tuning training, gpt-4o-2024-08-06", "gpt-4o-2024-08-06", "training", "Fine-tuning", None),
        ("GPT 6 Astra, output", "gpt 6 astra", "output", None, None),
    ],
)
def test_unknown_words_never_hide_the_model(
    text: str, model: str | None, direction: str | None, modality: str | None, tier: str | None
) -> None:
    assert parse_line_item(text) == LineItem(text, model, direction, modality, tier, is_parsed=False)


def test_modality_without_a_model_names_no_model() -> None:
    assert parse_line_item("audio, input") == LineItem("audio, input", None, "input", "audio")


def test_every_simulated_line_item_but_one_is_parsed() -> None:
    texts = [f"{model.name}, {way}" for model in MODELS for way in ("input", "cached input", "output")]
    texts += [line.text for service in SERVICES for line in service.lines]

    assert [text for text in texts if not parse_line_item(text).is_parsed] == ["tts-1 speech synthesis"]


# The same examples in every run, without a time limit on a busy machine.
REPEATABLE = settings(derandomize=True, deadline=None)

models = st.from_regex(r"[a-z][a-z0-9.:_-]{1,30}", fullmatch=True)
# Names as OpenAI gives them: with a version.
versioned = st.from_regex(r"[a-z]{1,6}-[0-9][a-z0-9.-]{0,12}", fullmatch=True)
unknown_words = st.from_regex(r"[xyz]{3,9}( [xyz]{3,9})?", fullmatch=True)


@REPEATABLE
@given(
    model=models,
    word=st.sampled_from(sorted(DIRECTIONS)),
    modality=st.none() | st.sampled_from(MODALITIES),
    tier=st.none() | st.sampled_from(TIERS),
    is_long_context=st.booleans(),
)
def test_every_line_item_of_the_grammar_is_parsed(
    model: str, word: str, modality: str | None, tier: str | None, is_long_context: bool
) -> None:
    prefix = f"{tier} | " if tier else ""
    name = f"{model} {modality}" if modality else model
    text = f"{prefix}{name}, {word}" + (", long context" if is_long_context else "")

    assert parse_line_item(text) == LineItem(text, model, DIRECTIONS[word], modality, tier, is_long_context)


@REPEATABLE
@given(
    model=versioned,
    prefix=st.just("") | unknown_words.map(lambda words: f"{words} | "),
    modality=st.just("") | unknown_words.map(lambda words: f" {words}"),
    directions=st.lists(st.sampled_from(sorted(DIRECTIONS)) | unknown_words, max_size=3),
    in_capitals=st.booleans(),
)
def test_a_model_is_found_among_any_words(
    model: str, prefix: str, modality: str, directions: list[str], in_capitals: bool
) -> None:
    text = ", ".join([f"{prefix}{model}{modality}", *directions])
    item = parse_line_item(text.upper() if in_capitals else text)

    assert item.model == model
    known = {DIRECTIONS[word] for word in directions if word in DIRECTIONS}
    assert item.direction in known if known else not item.is_parsed or item.direction is None
    assert item.is_parsed == (not prefix and not modality and len(known) == len(directions) <= 1)


@REPEATABLE
@given(
    text=st.text()
    | st.lists(st.sampled_from([*LINES, *DIRECTIONS, *MODALITIES, " | ", ", ", ",", " "])).map("".join)
)
def test_no_text_is_lost(text: str) -> None:
    item = parse_line_item(text)

    assert item.text == text
    if item.is_parsed:
        assert item.direction in (None, *DIRECTIONS.values())
        assert item.modality in (None, *MODALITIES)
    assert not item.model or not {*item.model.split()} & {"input", "output", "cached"}


def test_service_names_are_unambiguous_and_name_endpoints() -> None:
    keys = [(name.line_item, name.quantity_unit) for name in SERVICE_NAMES]

    assert len(keys) == len(set(keys))
    for name in SERVICE_NAMES:
        assert name.line_item == service_phrase(name.line_item)
        assert name.service in ENDPOINTS
