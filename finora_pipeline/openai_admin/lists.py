"""Checks pages of directory lists, whose objects need an id and may have any other content."""

import msgspec

from finora_pipeline.openai_admin.errors import UnexpectedShape, UnreadableResponse, quoted
from finora_pipeline.openai_admin.json_text import (
    ROWS_PER_PAGE,
    Json,
    check_rows,
    check_size,
    check_text,
    clean_text,
    decode_any,
)


class _ListPage(msgspec.Struct, gc=False):
    data: list[msgspec.Raw]
    has_more: bool = False
    last_id: str | None = None


class ObjectList(msgspec.Struct, frozen=True):
    """A checked page of a directory list.

    `ids`: those of its objects; `after`: the cursor of the next page; `is_canonical`: SQL can read the body.
    """

    ids: list[str]
    has_more: bool
    after: str | None
    is_canonical: bool


def check_list(body: bytes, most_rows: int = ROWS_PER_PAGE) -> ObjectList:
    """Check a page of a directory list. Raises `UnreadableResponse` for anything but a list.

    An object without an id is skipped, since nothing can refer to it.
    """
    check_text(body)
    check_size(body, most_rows)
    try:
        head = _LIST_DECODER.decode(clean_text(body))
        objects = _objects(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        kind = UnexpectedShape if isinstance(error, msgspec.ValidationError) else UnreadableResponse
        raise kind(f"OpenAI's answer is not a list of objects: {quoted(str(error))}.") from None
    check_rows(len(objects), most_rows)
    ids = [str(item["id"]) for item in objects if item]
    again = msgspec.json.encode(decode_any(clean_text(body)))
    is_canonical = len(ids) == len(objects) and b"\\" not in body and again.count(b'":') == body.count(b'":')
    return ObjectList(ids, head.has_more, head.last_id or (ids[-1] if ids else None), is_canonical)


def _objects(body: bytes) -> list[dict[str, Json]]:
    """The objects of a list with their ids as text; an empty one for an object without an id."""
    found: list[dict[str, Json]] = []
    for item in _LIST_DECODER.decode(clean_text(body)).data:
        decoded = decode_any(item)
        fields = decoded if isinstance(decoded, dict) else {}
        known = fields.get("id")
        is_id = isinstance(known, str | int) and not isinstance(known, bool) and known != ""
        found.append(fields | {"id": str(known)} if is_id else {})
    return found


def canonical_list(body: bytes) -> bytes:
    """A checked page of a list, reduced to objects with an id, in a form that SQL can read."""
    return msgspec.json.encode({"data": [item for item in _objects(body) if item]})


_LIST_DECODER = msgspec.json.Decoder(_ListPage)
