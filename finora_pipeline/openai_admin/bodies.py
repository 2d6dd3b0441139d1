"""An answer's body, decompressed while it comes, so that no answer takes more memory than it may."""

import zlib
from collections.abc import AsyncIterable, Callable

from finora_pipeline.openai_admin.errors import AnswerTooLarge, UnreadableResponse, quoted


async def read_body(
    received: AsyncIterable[bytes], encoding: str, most: int, may_be_cut: bool = False
) -> bytes:
    """A body of the content encoding, decompressed; at most `most` bytes of it are ever held.

    Raises `AnswerTooLarge`, unless it may be cut there; `UnreadableResponse` for an encoding not asked
    for; `zlib.error` for a broken one.
    """
    inflate = _inflater(encoding)
    chunks: list[bytes] = []
    size = 0
    async for part in received:
        waiting = part
        while waiting:
            chunk, waiting = inflate(waiting, most + 1 - size) if inflate else (waiting, b"")
            chunks.append(chunk)
            size += len(chunk)
            if size > most:
                if may_be_cut:
                    return b"".join(chunks)[:most]
                raise AnswerTooLarge(
                    f"OpenAI sent more than {most / 1_048_576:g} MiB in one answer; none of it was used."
                )
    return b"".join(chunks)


def _inflater(encoding: str) -> Callable[[bytes, int], tuple[bytes, bytes]] | None:
    """What decompresses a part of a body up to a length, and gives back what is left of the part."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in ("gzip", "x-gzip", "deflate"):
        raise UnreadableResponse(
            f"OpenAI's answer is compressed in a way not asked for ({quoted(name, 40)})."
        )
    state = [zlib.decompressobj(wbits=47)]

    def inflate(part: bytes, most: int) -> tuple[bytes, bytes]:
        if state[0].eof:
            # Several compressed parts may follow each other.
            state[0] = zlib.decompressobj(wbits=47)
        chunk = state[0].decompress(part, most)
        return chunk, state[0].unconsumed_tail or (state[0].unused_data if state[0].eof else b"")

    return inflate
