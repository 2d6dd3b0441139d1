"""Reads an answer's body and decompresses it piece by piece, within a limit of memory."""

import zlib
from collections.abc import AsyncIterable, Callable

from finora_pipeline.openai_admin.errors import AnswerTooLarge, UnreadableResponse, quoted


async def read_body(
    received: AsyncIterable[bytes], encoding: str, most: int, may_be_cut: bool = False
) -> bytes:
    """Read a body and decompress its content encoding; holds at most `most` bytes of it.

    A longer body is cut there if it may be, else raises `AnswerTooLarge`. Raises `UnreadableResponse` for
    an encoding that was not requested and `zlib.error` for corrupt data.
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
    """A function that decompresses a part up to a length and returns what is left of the part.

    None for a body that is not compressed.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in ("gzip", "x-gzip", "deflate"):
        raise UnreadableResponse(
            f"OpenAI's answer has an encoding that was not requested ({quoted(name, 40)})."
        )
    state = [zlib.decompressobj(wbits=47)]

    def inflate(part: bytes, most: int) -> tuple[bytes, bytes]:
        if state[0].eof:
            # RFC 1952 allows several gzip members in a row.
            state[0] = zlib.decompressobj(wbits=47)
        chunk = state[0].decompress(part, most)
        return chunk, state[0].unconsumed_tail or (state[0].unused_data if state[0].eof else b"")

    return inflate
