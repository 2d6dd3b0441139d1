"""What a charge is for and of what kind, read from its line item."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finora_pipeline.openai_admin.charge_kinds import (
    CHARGE_CATEGORIES,
    COST_SERVICES,
    PATTERNS,
    SERVICE_OF_USAGE,
    kind_of,
)
from finora_pipeline.openai_admin.endpoints import USAGE
from finora_pipeline.openai_admin.line_items import parse_line_item

CAPTURED = (Path(__file__).parents[1] / "fixtures" / "line_items.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("line_item", "service", "category"),
    [
        ("gpt-4o-2024-08-06, cached input", "model_tokens", None),
        ("input_tokens", "model_tokens", None),
        ("text-embedding-3-small, input", "embeddings", None),
        ("omni-moderation-2024-09-26, input", "moderation", None),
        ("dall-e 3, standard, 1024x1792, 1792x1024", "image", None),
        ("gpt-image-2.5-flare image, output", "image", None),
        ("Image models", "image", None),
        ("tts-1 speech synthesis", "speech", None),
        ("gpt-4o-mini-transcribe, input", "transcription", None),
        ("whisper-1, audio", "transcription", None),
        ("sora-2, video", "video", None),
        ("gpt-realtime-2.1 audio, output", "realtime", None),
        ("web search tool calls", "web_search", None),
        ("web_search_calls", "web_search", None),
        ("assistants api | file search", "file_search", None),
        ("file search storage", "storage", None),
        ("code interpreter", "code_interpreter", None),
        ("ft-gpt-4o-2024-08-06, training", "training", None),
        ("Promotional credit", "other", "credit"),
        ("Refund of gpt-4o", "other", "credit"),
        ("Invoice adjustment", "other", "adjustment"),
        ("Sales tax", "other", "tax"),
        ("something new", "other", None),
        # A fine-tune's own name says nothing of the charge.
        ("ft:gpt-4o:acme:credit-risk, input", "model_tokens", None),
        ("ft:gpt-4o:acme:tax-helper, output", "model_tokens", None),
    ],
)
def test_a_line_item_names_its_service_and_category(line_item: str, service: str, category: str | None):
    kind = kind_of(parse_line_item(line_item))
    assert (kind.cost_service, kind.charge_category) == (service, category)


def test_every_captured_line_item_has_a_service():
    unknown = [text for text in CAPTURED if kind_of(parse_line_item(text)).cost_service == "other"]
    assert unknown == []


@given(st.text(max_size=80))
def test_any_text_has_one_of_the_known_kinds(text: str):
    kind = kind_of(parse_line_item(text))
    assert kind.cost_service in COST_SERVICES
    assert kind.charge_category in (*CHARGE_CATEGORIES, None)


def test_the_table_names_known_kinds_and_endpoints_only():
    assert {one.cost_service for one in PATTERNS} <= {*COST_SERVICES, None}
    assert {one.charge_category for one in PATTERNS} <= {*CHARGE_CATEGORIES, None}
    assert all(one.cost_service or one.charge_category for one in PATTERNS)
    assert {one.reads for one in PATTERNS} == {"phrase", "model", "text"}
    assert set(SERVICE_OF_USAGE) <= {endpoint.name for endpoint in USAGE}
    assert set(SERVICE_OF_USAGE.values()) <= set(COST_SERVICES)
