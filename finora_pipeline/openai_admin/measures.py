"""The measures of usage, one row each: OpenAI's name, the column, its unit and its comment.

The decoder's fields (`results.py`), the columns of `daily_usage` with their comments, and the SQL that loads,
sums and compares them follow from this table.

    input_tokens = cached + uncached + cache writes; uncached, cached and output each = text + audio + image
"""

from dataclasses import dataclass

REQUESTS, TOKENS = "requests", "tokens"


@dataclass(frozen=True, slots=True)
class Measure:
    """A whole number of a usage row.

    `field`: its name in OpenAI's result object; `column`: its name in `daily_usage`; `unit`: a plural, such
    as tokens or seconds; `comment`: the column's, shown to analysts.
    """

    field: str
    column: str
    unit: str
    comment: str


def _tokens(name: str, comment: str) -> Measure:
    return Measure(name, name, TOKENS, comment)


# In the order of the columns. A table gains columns at its end only, so a new measure is the last row.
MEASURES: tuple[Measure, ...] = (
    Measure("num_model_requests", "requests", REQUESTS, "Requests to a model"),
    Measure("num_requests", "calls", "calls", "Tool calls: file searches and web searches"),
    _tokens("input_tokens", "Input tokens in total: cached, uncached and cache writes"),
    _tokens("input_cached_tokens", "Part of input_tokens: read from the cache"),
    _tokens("input_uncached_tokens", "Part of input_tokens: neither read from the cache nor written to it"),
    _tokens("input_cache_write_tokens", "Part of input_tokens: written to the cache"),
    _tokens("input_cache_write_30m_tokens", "Part of input_cache_write_tokens: kept for 30 minutes"),
    _tokens("input_cache_write_12h_tokens", "Part of input_cache_write_tokens: kept for 12 hours"),
    _tokens("input_text_tokens", "Part of input_uncached_tokens: text"),
    _tokens("input_cached_text_tokens", "Part of input_cached_tokens: text"),
    _tokens("output_tokens", "Output tokens in total"),
    _tokens("output_text_tokens", "Part of output_tokens: text"),
    _tokens("input_audio_tokens", "Part of input_uncached_tokens: audio"),
    _tokens("input_cached_audio_tokens", "Part of input_cached_tokens: audio"),
    _tokens("output_audio_tokens", "Part of output_tokens: audio"),
    _tokens("input_image_tokens", "Part of input_uncached_tokens: images"),
    _tokens("input_cached_image_tokens", "Part of input_cached_tokens: images"),
    _tokens("output_image_tokens", "Part of output_tokens: images"),
    Measure("images", "images", "images", "Images generated"),
    Measure("seconds", "seconds", "seconds", "Seconds of audio transcribed"),
    Measure("characters", "characters", "characters", "Characters turned into speech"),
    Measure("usage_bytes", "usage_bytes", "bytes", "Bytes stored in vector stores"),
    Measure("num_sessions", "sessions", "sessions", "Code interpreter sessions"),
)
TOKEN_MEASURES: tuple[str, ...] = tuple(measure.field for measure in MEASURES if measure.unit == TOKENS)
