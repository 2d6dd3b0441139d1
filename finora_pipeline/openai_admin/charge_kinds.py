"""What a charge is for, and of what kind: charge_kinds.csv, one pattern per row, the first match wins.

`reads` says what a pattern is searched in: `phrase`, the line item without its model's name; `model`, that
name; `text`, a line item without a model. All are in lower case, with blanks for underscores.
"""

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from finora_pipeline.openai_admin.line_items import LineItem

# The service of a charge that has a model or a token type but matches no pattern, and of all others.
MODEL_TOKENS, OTHER = "model_tokens", "other"
COST_SERVICES = (
    *(MODEL_TOKENS, "embeddings", "moderation", "image", "speech", "transcription", "video", "realtime"),
    *("web_search", "file_search", "code_interpreter", "storage", "training", OTHER),
)
# The service of a usage endpoint's rows, for usage that nothing is charged for; others are `model_tokens`.
SERVICE_OF_USAGE = {
    "embeddings": "embeddings",
    "moderations": "moderation",
    "images": "image",
    "audio_speeches": "speech",
    "audio_transcriptions": "transcription",
    "vector_stores": "storage",
    "code_interpreter_sessions": "code_interpreter",
    "file_search_calls": "file_search",
    "web_search_calls": "web_search",
}
CHARGE_CATEGORIES = ("usage", "credit", "adjustment", "tax")


@dataclass(frozen=True, slots=True)
class ChargeKind:
    """The `cost_service` of a line item, and its `charge_category` where its text says so."""

    cost_service: str
    charge_category: str | None


@dataclass(frozen=True, slots=True)
class _Pattern:
    reads: str
    pattern: re.Pattern[str]
    cost_service: str | None
    charge_category: str | None


def _read() -> tuple[_Pattern, ...]:
    with (Path(__file__).parent / "charge_kinds.csv").open(newline="", encoding="utf-8") as file:
        return tuple(
            _Pattern(
                row["reads"],
                re.compile(row["pattern"]),
                row["cost_service"] or None,
                row["charge_category"] or None,
            )
            for row in csv.DictReader(file)
        )


PATTERNS = _read()


@lru_cache(maxsize=65536)
def kind_of(item: LineItem) -> ChargeKind:
    """The kind of a parsed line item. Never raises; an unknown text is `other`, or `model_tokens`."""
    text, model = _plain(item.text), _plain(item.model or "")
    texts = {"phrase": text.replace(model, " ", 1), "model": model, "text": "" if model else text}
    found = [one for one in PATTERNS if one.pattern.search(texts[one.reads])]
    service = next((one.cost_service for one in found if one.cost_service), None)
    category = next((one.charge_category for one in found if one.charge_category), None)
    if service is None:
        service = MODEL_TOKENS if (model or item.direction) and category is None else OTHER
    return ChargeKind(service, category)


def _plain(text: str) -> str:
    return text.lower().replace("_", " ")
