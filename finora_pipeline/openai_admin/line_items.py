"""Parses a cost's line item into model, direction, modality and tier.

`line_item` is text for people, not a schema, and new forms appear without notice. The known words are data
below. An unknown word is kept as text in its column and never hides the model; the amount always counts.

    line      := [tier " | "] model [" " modality] {", " phrase} | [tier " | "] service {", " phrase}
    phrase    := direction | modality | "long context" | size or quality of images
    service   := a line_item of service_names.csv
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from finora_pipeline.openai_admin.service_names import SERVICE_NAMES, service_phrase

# The words of a direction, as `_spelled` writes them → its name in our tables.
DIRECTIONS = {
    "input": "input",
    "uncached input": "input",
    "input uncached": "input",
    "cached input": "cached_input",
    "input cached": "cached_input",
    "output": "output",
    # Without a duration: kept for 30 minutes. In the usage API this name covers both kinds.
    "cache write": "cache_write",
    "cache writes": "cache_write",
    "cache writes 30m": "cache_write",
    "input cache write": "cache_write",
    "input cache write 30m": "cache_write",
    "cache writes 12h": "cache_write_12h",
    "input cache write 12h": "cache_write_12h",
    "training": "training",
}
MODALITIES = ("text", "image", "audio", "video")
# The text before " | ": a service tier, or the product that made the call.
TIERS = (
    "batch",
    "default",
    "fast",
    "flex",
    "priority",
    "scale",
    "standard",
    "ultrafast",
    "assistants api",
    "evals",
)
LONG_CONTEXT = "long context"
SERVICES = frozenset(name.line_item for name in SERVICE_NAMES)
_IMAGE_SERVICES = frozenset(name.line_item for name in SERVICE_NAMES if name.service == "images")
# Usage of these has no model, or the model of the request that called the tool.
_TOOLS = ("code_interpreter_sessions", "file_search_calls", "vector_stores", "web_search_calls")
_TOOL_SERVICES = frozenset(name.line_item for name in SERVICE_NAMES if name.service in _TOOLS)
_IMAGE_PHRASE = re.compile(r"\d+x\d+|standard|hd|low|medium|high")
_SEPARATOR = re.compile(r"\s*\|\s*")
_DURATION = re.compile(r"\b(\d+) ?([hm])(?:rs?|ours?|ins?|inutes?)?$")
# Usage says `dall-e-3` where a line item says `dall-e 3`.
_DALL_E = re.compile(r"(dall-e) (\d+)", re.IGNORECASE)
# A name with a hyphen and a digit, or of the o series, is a model anywhere in the text.
_MODEL = re.compile(r"(?=.*\d)[a-z][\w.:/]*-[\w.:/-]+|o\d[\w.:-]*", re.IGNORECASE)
# At the start also a name with a hyphen or a digit, or a single word before a comma, except `_NOT_MODELS`.
_FIRST_MODEL = re.compile(r"[a-z][\w.:/-]*[\d:-][\w.:/-]*", re.IGNORECASE)
_NOT_MODELS = frozenset(
    [
        *("adjustment", "credit", "credits", "discount", "fee", "refund", "tax", "vat"),
        *("fine-tuning", "pre-paid", "speech-to-text", "text-to-speech", "true-up"),
    ]
)
# Words that cannot be part of a model's name.
_VOCABULARY = frozenset(word for words in DIRECTIONS for word in words.split()) | {*MODALITIES, "tokens"}


@dataclass(frozen=True, slots=True)
class LineItem:
    """The parsed text of a line item; a field is None if the text does not mention it.

    `direction`: a value of DIRECTIONS, or the unknown words after the model, unchanged. `modality`: one of
    MODALITIES or an unknown word in its place. `tier`: one of TIERS, or another text before " | ".
    `is_parsed`: False if the text has a word that the grammar does not know.
    """

    text: str
    model: str | None = None
    direction: str | None = None
    modality: str | None = None
    tier: str | None = None
    is_long_context: bool = False
    is_parsed: bool = True


@dataclass(slots=True)
class _Phrases:
    """The parsed phrases after the model; `unknown` are those that are not in the grammar."""

    direction: str | None = None
    modality: str | None = None
    is_long_context: bool = False
    is_of_images: bool = False
    is_known: bool = True
    unknown: list[str] = field(default_factory=list[str])

    def add(self, phrase: str) -> None:
        """Parse a phrase."""
        if phrase.lower() == LONG_CONTEXT:
            self.is_long_context = True
        elif _IMAGE_PHRASE.fullmatch(phrase.lower()):
            self.is_of_images = True
        elif not self._take_direction(phrase):
            self.unknown.append(phrase)

    def add_words(self, words: list[str]) -> None:
        """Parse the words next to the model: a modality, or a direction without its comma."""
        if not words or self._take_direction(" ".join(words)):
            return
        if self.direction or self.unknown:
            self.is_known = False
            self.modality = self.modality or " ".join(words)
        else:
            self.unknown.append(" ".join(words))

    def take_model(self) -> str | None:
        """Remove the first phrase that names a model from the unknown ones and return it, or None."""
        model = next((phrase for phrase in self.unknown if _MODEL.fullmatch(phrase)), None)
        if model:
            self.unknown.remove(model)
        return model

    def _take_direction(self, phrase: str) -> bool:
        direction, modality, is_known = _direction_of(phrase)
        if not (direction or modality) or (direction and self.direction):
            return False
        self.direction = direction or self.direction
        self.modality = self.modality or modality
        self.is_known &= is_known
        return True


@lru_cache(maxsize=65536)
def parse_line_item(text: str) -> LineItem:
    """Parse a `line_item`. Never raises: unknown words are kept, with `is_parsed=False`."""
    *prefixes, body = _SEPARATOR.split(" ".join(text.split()))
    tiers = [prefix.lower() if prefix.lower() in TIERS else prefix for prefix in prefixes if prefix]
    first, *rest = (part.strip() for part in _DALL_E.sub(r"\1-\2", body).split(","))
    phrases = _Phrases()
    for phrase in filter(None, rest):
        phrases.add(phrase)
    service = service_phrase(first)
    if service in SERVICES:
        model = None if service in _TOOL_SERVICES else phrases.take_model()
        phrases.is_of_images = model is not None and service in _IMAGE_SERVICES
        is_parsed = True
    else:
        model = _parse_first(first, phrases)
        phrases.is_of_images |= model is not None and model.startswith("dall-e")
        is_bare = model is not None and bool(_MODEL.fullmatch(model))
        is_parsed = is_bare or bool(phrases.direction or phrases.modality or phrases.is_of_images)
    if model is None and not phrases.is_known:
        phrases.modality = None
    is_parsed &= phrases.is_known and not phrases.unknown and not (model and " " in model)
    return LineItem(
        text,
        model if model is None or ":" in model else model.lower(),
        phrases.direction or (", ".join(phrases.unknown) or None if model else None),
        phrases.modality or ("image" if phrases.is_of_images else None),
        " | ".join(tiers) or None,
        phrases.is_long_context,
        is_parsed and all(tier in TIERS for tier in tiers),
    )


def _parse_first(first: str, phrases: _Phrases) -> str | None:
    """The model named in the first part; the part's other words are added to the phrases."""
    words = first.split()
    if not words or _direction_of(first)[2]:
        phrases.add_words(words)
        return phrases.take_model()
    is_model = _FIRST_MODEL.fullmatch(words[0]) or (first.isalpha() and phrases.unknown)
    at = 0 if is_model and words[0].lower() not in _NOT_MODELS else None
    if at is None and (phrases.direction or words[0].lower() in _NOT_MODELS):
        at = next((n for n, word in enumerate(words) if _MODEL.fullmatch(word)), None)
    if at is not None:
        phrases.add_words(words[:at] + words[at + 1 :])
        return words[at]
    model = phrases.take_model()
    if model is None and phrases.direction:
        # A line item with a direction begins with a model, in whatever form.
        size = next((n for n, word in enumerate(words) if word.lower() in _VOCABULARY), len(words))
        phrases.add_words(words[size:])
        return " ".join(words[:size]) or None
    phrases.add_words(words)
    return model


def _direction_of(phrase: str) -> tuple[str | None, str | None, bool]:
    """The direction and modality in a phrase, and whether the grammar knows all its words.

    Unknown words next to a known direction are taken as a modality; without one they mean nothing.
    """
    words = phrase.replace("_", " ").replace(" - ", " ").split()
    modality = next((word.lower() for word in words if word.lower() in MODALITIES), None)
    rest = [word for word in words if word.lower() not in (modality, "token", "tokens")]
    if not rest:
        return None, modality, True
    if direction := DIRECTIONS.get(_spelled(rest)):
        return direction, modality, True
    unknown = [word for word in rest if word.lower() not in _VOCABULARY]
    direction = DIRECTIONS.get(_spelled([word for word in rest if word not in unknown]))
    # A number may be a new duration of cache writes, with another price.
    if direction is None or any(any(map(str.isdigit, word)) for word in unknown):
        return None, None, False
    return direction, modality or " ".join(unknown), False


def _spelled(words: Sequence[str]) -> str:
    """The words of a direction in the spelling of DIRECTIONS."""
    return _DURATION.sub(r"\1\2", " ".join(words).lower().replace("-", " "))
