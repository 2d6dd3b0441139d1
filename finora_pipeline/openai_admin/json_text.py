"""Checks of the JSON text of any page: encoding, size, and keys that an object has twice."""

import math
import re
from typing import TypeAlias

import msgspec

from finora_pipeline.openai_admin.errors import AnswerTooLarge, UnreadableResponse

# A decoded value.
Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"
# Default limit of results per page (`Limits.rows_per_page`).
ROWS_PER_PAGE = 200_000
# Escapes of no storable text: NUL, and half of a surrogate pair.
_UNSTORABLE = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])").search
_ESCAPES = re.compile(
    rb"(?P<kept>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|\\(?!u(?:0000|[dD][89a-fA-F])).)|\\u[0-9a-fA-F]{4}",
    re.DOTALL,
)
_RESULTS_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
_KEYS_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KEYS_OF_EACH = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


def check_text(body: bytes) -> None:
    """Raise `UnreadableResponse` unless the whole body is UTF-8; decoders skip parts unchecked."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError:
        raise UnreadableResponse("OpenAI's answer is not UTF-8 text.") from None


def clean_text(body: bytes) -> bytes:
    """The body with U+FFFD for each escape of NUL or of half a surrogate pair.

    Such escapes are legal JSON, but DuckDB, Postgres and Parquet cannot store their text. Returns the body
    itself if it has none.
    """
    if b"\\" not in body or not _UNSTORABLE(body):
        return body
    return _ESCAPES.sub(lambda found: found[0] if found["kept"] else rb"\ufffd", body)


def check_size(body: bytes, most_rows: int) -> None:
    """Raise `AnswerTooLarge` for a text with too many objects to decode in reasonable memory.

    A documented row is one object or two; the limit allows several times more.
    """
    most = 4 * most_rows + 10_000
    if len(body) > 2 * most and body.count(b"{") > most:
        raise AnswerTooLarge(f"OpenAI sent a page of more than {most_rows:,} rows; none of it was used.")


def check_rows(rows: int, most_rows: int) -> None:
    """Raise `AnswerTooLarge` for a page with more rows than allowed."""
    if rows > most_rows:
        raise AnswerTooLarge(f"OpenAI sent a page of {rows:,} rows, over the limit of {most_rows:,}.")


def decode_any(text: bytes | msgspec.Raw) -> Json:
    """Decode any JSON value; a number beyond the range of floats becomes None. Not for amounts."""
    return _ANY_DECODER.decode(text)


def _finite(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


_ANY_DECODER = msgspec.json.Decoder(float_hook=_finite)


def repeats_a_key(body: bytes, rows: int, amounts: int | None = None) -> bool:
    """Whether an object of a page may have a key twice.

    SQL takes the first value, our decoder the last. The rows of a page usually have the same keys, so their
    number follows from the first row; if it differs, all keys are counted. `amounts`, the number of amounts
    in a page of costs, is compared as well.
    """
    keys = body.count(b'":')
    are_alike = keys == _keys_if_alike(body, rows)
    if are_alike and (amounts is None or amounts == body.count(b'"amount"') == body.count(b'"value"')):
        return False
    return keys != _keys_within(decode_any(body))


def _keys_if_alike(body: bytes, rows: int) -> int:
    page = _KEYS_DECODER.decode(body)
    buckets = _KEYS_OF_EACH.decode(page["data"])
    first = next((bucket["results"] for bucket in buckets if bytes(bucket["results"]) != b"[]"), None)
    of_row = _keys_within(decode_any(_RESULTS_DECODER.decode(first)[0])) if first and rows else 0
    return len(page) + sum(map(len, buckets)) + rows * of_row


def _keys_within(value: Json) -> int:
    """The number of keys in a decoded value, at any depth."""
    if isinstance(value, dict):
        return len(value) + sum(_keys_within(v) for v in value.values() if isinstance(v, dict | list))
    return sum(map(_keys_within, value)) if isinstance(value, list) else 0
