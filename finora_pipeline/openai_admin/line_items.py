"""From a cost line's free text to model, direction, modality and tier.

`line_item` is text for people, not a schema, and new forms appear without notice. The grammar seen so
far is below as data; a text that does not fit keeps its whole amount under its own name and is reported
as unparsed, never dropped.

    line     := [tier " | "] model [" " modality] ", " direction [", long context"] | service
"""

import re
from dataclasses import dataclass
from functools import lru_cache

# Words of a direction, as OpenAI writes them, to the name our tables use.
DIRECTIONS = {
    "input": "input",
    "input_tokens": "input",
    "cached input": "cached_input",
    "input_cached_tokens": "cached_input",
    "output": "output",
    "output_tokens": "output",
    "cache writes": "cache_write",
    "input_cache_write_tokens": "cache_write",
}
MODALITIES = ("text", "image", "audio")
# What stands before " | ": a service tier, or the surface that made the call.
TIERS = ("priority", "flex", "evals", "assistants api")
# Lines that name a service and no model.
SERVICES = ("web search tool calls", "file search", "Image models", "code interpreter", "whisper")
LONG_CONTEXT = "long context"
# Lines priced by something other than direction: pattern → modality; `model` is captured.
OTHER_FORMS = (
    (re.compile(r"Image models, (?P<model>[^,]+), \d+x\d+"), "image"),
    (re.compile(r"(?P<model>dall-e[ -]\d+)(, (standard|hd))?(, \d+x\d+)*"), "image"),
    (re.compile(r"(?P<model>[^,| ]+), audio"), "audio"),
)
_MODEL_ONLY = re.compile(r"[a-z0-9][a-z0-9.:_-]*\d[a-z0-9.:_-]*")


@dataclass(frozen=True, slots=True)
class LineItem:
    """What a cost line's text says. Fields that it does not say are None.

    `direction`: input, cached_input, output or cache_write. `modality`: text, image or audio where it
    is named. `tier`: priority, flex, or the surface (evals, assistants api). `is_parsed` is False for a
    text that does not fit the grammar.
    """

    text: str
    model: str | None = None
    direction: str | None = None
    modality: str | None = None
    tier: str | None = None
    is_long_context: bool = False
    is_parsed: bool = True


@lru_cache(maxsize=65536)
def parse_line_item(text: str) -> LineItem:
    """Reads one `line_item`. Never fails: what does not fit comes back with `is_parsed=False`."""
    prefix, separator, rest = text.partition(" | ")
    tier = prefix.strip() if separator and prefix.strip() in TIERS else None
    if separator and tier is None:
        return LineItem(text, is_parsed=False)
    body = rest.strip() if tier else text.strip()

    if body in SERVICES:
        return LineItem(text, tier=tier)
    parts = [part.strip() for part in body.split(",")]
    is_long_context = parts[-1] == LONG_CONTEXT
    if is_long_context:
        parts.pop()
    if parts and parts[-1] in DIRECTIONS:
        direction = DIRECTIONS[parts.pop()]
        name = ", ".join(parts) or None
        modality = None
        if name and name.rpartition(" ")[2] in MODALITIES:
            name, _, modality = name.rpartition(" ")
            name = name.strip() or None
        return LineItem(text, name, direction, modality, tier, is_long_context)
    for pattern, modality in OTHER_FORMS:
        if match := pattern.fullmatch(body):
            # Usage pages write `dall-e-3` for what a cost line calls `dall-e 3`.
            return LineItem(text, match["model"].replace(" ", "-"), None, modality, tier)
    if tier and _MODEL_ONLY.fullmatch(body):
        return LineItem(text, body, tier=tier)
    return LineItem(text, is_parsed=False)
