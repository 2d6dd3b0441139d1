"""Line items: what the texts seen live say, and that no text is lost or breaks the reading."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finora_pipeline.openai_admin.line_items import DIRECTIONS, MODALITIES, TIERS, LineItem, parse_line_item
from finora_pipeline.openai_admin.simulator.catalog import MODELS, SERVICES

LINES = (Path(__file__).parents[1] / "fixtures" / "line_items.txt").read_text().splitlines()
# Lines seen live that the grammar does not know. A new one belongs here or in the grammar.
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
    # A blank before the comma, as seen of a provisional name.
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
]


@pytest.mark.parametrize(("text", "model", "direction", "modality", "tier", "is_long_context"), EXPECTED)
def test_line_says(
    text: str,
    model: str | None,
    direction: str | None,
    modality: str | None,
    tier: str | None,
    is_long_context: bool,
) -> None:
    assert parse_line_item(text) == LineItem(text, model, direction, modality, tier, is_long_context)


@pytest.mark.parametrize("text", LINES)
def test_every_line_seen_live_is_read(text: str) -> None:
    assert parse_line_item(text).is_parsed == (text not in UNPARSED)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ",",
        "gpt-5-mini",
        "long context",
        "flex | ",
        "tts-1 speech synthesis",
        "gpt-4o, thoughts",
        "gpt-4o, input, short context",
        pytest.param("overnight | gpt-4o, input"),
    ],
)
def test_unknown_form_keeps_its_text_and_says_so(text: str) -> None:
    assert parse_line_item(text) == LineItem(text, is_parsed=False)


def test_modality_without_a_model_names_no_model() -> None:
    assert parse_line_item("audio, input") == LineItem("audio, input", None, "input", "audio")


def test_every_line_of_the_simulator_but_one_is_read() -> None:
    texts = [f"{model.name}, {way}" for model in MODELS for way in ("input", "cached input", "output")]
    texts += [line.text for service in SERVICES for line in service.lines]

    assert [text for text in texts if not parse_line_item(text).is_parsed] == ["tts-1 speech synthesis"]


# The same examples in every run, on however busy a machine.
REPEATABLE = settings(derandomize=True, deadline=None)

models = st.from_regex(r"[a-z][a-z0-9.:_-]{1,30}", fullmatch=True)


@REPEATABLE
@given(
    model=models,
    word=st.sampled_from(sorted(DIRECTIONS)),
    modality=st.none() | st.sampled_from(MODALITIES),
    tier=st.none() | st.sampled_from(TIERS),
    is_long_context=st.booleans(),
)
def test_every_line_of_the_grammar_is_read(
    model: str, word: str, modality: str | None, tier: str | None, is_long_context: bool
) -> None:
    prefix = f"{tier} | " if tier else ""
    name = f"{model} {modality}" if modality else model
    text = f"{prefix}{name}, {word}" + (", long context" if is_long_context else "")

    assert parse_line_item(text) == LineItem(text, model, DIRECTIONS[word], modality, tier, is_long_context)


@REPEATABLE
@given(
    text=st.text()
    | st.lists(st.sampled_from([*LINES, *DIRECTIONS, *MODALITIES, " | ", ", ", ",", " "])).map("".join)
)
def test_no_text_is_lost(text: str) -> None:
    item = parse_line_item(text)

    assert item.text == text
    assert item.direction in (None, *DIRECTIONS.values())
    assert item.modality in (None, *MODALITIES)
    assert item.tier in (None, *TIERS)
    if not item.is_parsed:
        assert item == LineItem(text, is_parsed=False)
