"""What holds for the JSON text of any page: its encoding, its size, and one reading for all readers."""

import math
import re
from typing import TypeAlias

import msgspec

from finora_pipeline.openai_admin.errors import AnswerTooLarge, UnreadableResponse

# A decoded value.
Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"
# Results that one page may have; a setting of the client may allow others.
ROWS_PER_PAGE = 200_000
# Escapes that stand for no text: a NUL, and half of a character beyond U+FFFF without its other half.
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
    """Raises `UnreadableResponse` unless all of it is UTF-8: decoders pass over what they need not read."""
    if body.isascii():
        return
    try:
        body.decode()
    except UnicodeDecodeError:
        raise UnreadableResponse("OpenAI's answer is not a text in UTF-8.") from None


def clean_text(body: bytes) -> bytes:
    """The text with each escape of a NUL or of half a character as the replacement character: the body itself
    where it has none. Such escapes are legal JSON, and no text that could be stored."""
    if b"\\" not in body or not _UNSTORABLE(body):
        return body
    return _ESCAPES.sub(lambda found: found[0] if found["kept"] else rb"\ufffd", body)


def check_size(body: bytes, most_rows: int) -> None:
    """Raises `AnswerTooLarge` for a text with so many objects that decoding them would take too much memory.

    A row is one object or two; what holds several times more is nothing that OpenAI documents.
    """
    most = 4 * most_rows + 10_000
    if len(body) > 2 * most and body.count(b"{") > most:
        raise AnswerTooLarge(f"OpenAI sent a page of more than {most_rows:,} rows; none of it was used.")


def check_rows(rows: int, most_rows: int) -> None:
    """Raises `AnswerTooLarge` for a page of more rows than one may have."""
    if rows > most_rows:
        raise AnswerTooLarge(f"OpenAI sent a page of {rows:,} rows, over the limit of {most_rows:,}.")


def decode_any(text: bytes | msgspec.Raw) -> Json:
    """Any JSON value; a number that no float holds, in a field that is not documented, becomes None. Not for
    money."""
    return _ANY_DECODER.decode(text)


def _finite(number: str) -> float | None:
    value = float(number)
    return value if math.isfinite(value) else None


_ANY_DECODER = msgspec.json.Decoder(float_hook=_finite)


def repeats_a_key(body: bytes, rows: int, amounts: int | None = None) -> bool:
    """Whether an object may have a key twice: SQL would take the first, we the last.

    Rows of a page mostly have the same keys, so that their number follows from the first row; where it is
    another, all are counted. Money is not taken on the trust that rows are alike.
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
    """How many keys a decoded value has, at any depth."""
    if isinstance(value, dict):
        return len(value) + sum(_keys_within(v) for v in value.values() if isinstance(v, dict | list))
    return sum(map(_keys_within, value)) if isinstance(value, list) else 0
