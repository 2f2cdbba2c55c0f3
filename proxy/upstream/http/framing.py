"""Owns what an answer's head says of its framing: what ends the answer, and whether its connection may be kept.
Must not know bytes, parsers or sockets: a pure decision on a status and its header fields.
Called by the answer that is being read."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

MAX_HEADERS: Final = 128  # header fields of one answer; aiohttp's client has the same bound


class Kind(Enum):
    """What ends an answer (RFC 9112 6.3)."""

    NONE = "no body"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


class Framing(NamedTuple):
    kind: Kind
    length: int  # bytes of the body, where the kind is LENGTH
    keep: bool  # whether the connection outlives an answer that ends as it should


_CHUNKS: Final = {keep: Framing(Kind.CHUNKED, 0, keep) for keep in (True, False)}


class InvalidResponse(Exception):
    """An answer that cannot be read, or not beyond doubt. The text says why."""


def framing_of(
    version: str, status: int, headers: Sequence[tuple[str, str]], *, bodiless: bool = False
) -> Framing | None:
    """None for an interim (1xx) answer. `headers` have lower-case names and their content-length is digits;
    `bodiless` is an answer to HEAD. Raises Refused where two readers could understand it differently.
    """
    if version not in ("1.1", "1.0"):
        raise InvalidResponse(f"it answers as HTTP/{version}")
    if status < 100 or status == 101:
        raise InvalidResponse(f"it answers with status {status:03}")
    length: int | None = None
    chunked = close = False
    keep = version == "1.1"
    for name, value in headers:
        if name == "content-length":
            if length is not None:
                raise InvalidResponse("it has two lengths")
            length = int(value)
        elif name == "transfer-encoding":
            # No other was asked for (no TE was sent), and the body would be passed on without its label.
            if chunked or value.lower() != "chunked" or version == "1.0":
                raise InvalidResponse(f"its transfer encoding is not chunked alone ({value[:40]!r})")
            chunked = True
        elif name == "connection":
            tokens = {token.strip().lower() for token in value.split(",")}
            keep, close = keep or "keep-alive" in tokens, close or "close" in tokens
    if len(headers) > MAX_HEADERS:
        raise InvalidResponse(f"it has more than {MAX_HEADERS} headers")
    if chunked and length is not None:
        raise InvalidResponse("it has both a length and a transfer encoding")
    if status < 200:
        if chunked or length is not None:
            raise InvalidResponse("an interim answer of it claims to have a body")
        return None
    keep = keep and not close
    if bodiless or status == 304:
        return Framing(Kind.NONE, 0, keep)
    if status == 204:  # one that claims a body is against the rules, and the body may come none the less
        return Framing(Kind.NONE, 0, keep and not chunked and not length)
    if chunked:
        return _CHUNKS[keep]
    if length is not None:
        return Framing(Kind.LENGTH if length else Kind.NONE, length, keep)
    return Framing(Kind.UNTIL_CLOSE, 0, False)
