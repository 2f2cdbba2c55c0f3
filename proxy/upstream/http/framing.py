"""What a response's head says of its framing: where the body ends, and whether the connection may be reused. A
pure decision on a status and its header fields."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

import msgspec

MAX_HEADERS: Final = 128  # header fields of one answer; aiohttp's client has the same bound


class Kind(Enum):
    """Where a response ends (RFC 9112 6.3)."""

    NONE = "no body"
    LENGTH = "content-length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"


class Framing(msgspec.Struct, frozen=True, gc=False):
    kind: Kind
    length: int  # bytes of the body, for LENGTH
    keep: bool  # whether the connection may be reused after a complete response


_CHUNKS: Final = {keep: Framing(Kind.CHUNKED, 0, keep) for keep in (True, False)}


class InvalidResponse(Exception):
    """A response that cannot be read, or is ambiguous. The text is the reason."""


def framing_of(
    version: str, status: int, headers: Sequence[tuple[str, str]], *, bodiless: bool = False
) -> Framing | None:
    """The framing of a response; None for an interim (1xx) one. `headers` have lower-case names and a
    content-length of digits; `bodiless`: the response to HEAD. Raises InvalidResponse where two readers could
    differ.
    """
    if version not in ("1.1", "1.0"):
        raise InvalidResponse(f"unsupported version HTTP/{version}")
    if status < 100 or status == 101:
        raise InvalidResponse(f"unexpected status {status:03}")
    length: int | None = None
    chunked = close = False
    keep = version == "1.1"
    for name, value in headers:
        if name == "content-length":
            if length is not None:
                raise InvalidResponse("two Content-Length fields")
            length = int(value)
        elif name == "transfer-encoding":
            # No TE was sent, so no other coding is allowed, and the body would be passed on without its label.
            if chunked or value.lower() != "chunked" or version == "1.0":
                raise InvalidResponse(f"a Transfer-Encoding other than chunked ({value[:40]!r})")
            chunked = True
        elif name == "connection":
            tokens = {token.strip().lower() for token in value.split(",")}
            keep, close = keep or "keep-alive" in tokens, close or "close" in tokens
    if len(headers) > MAX_HEADERS:
        raise InvalidResponse(f"it has more than {MAX_HEADERS} headers")
    if chunked and length is not None:
        raise InvalidResponse("both Content-Length and Transfer-Encoding")
    if status < 200:
        if chunked or length is not None:
            raise InvalidResponse("an interim response with a body")
        return None
    keep = keep and not close
    if bodiless or status == 304:
        return Framing(Kind.NONE, 0, keep)
    if status == 204:  # one that announces a body is invalid, and the body may come all the same
        return Framing(Kind.NONE, 0, keep and not chunked and not length)
    if chunked:
        return _CHUNKS[keep]
    if length is not None:
        return Framing(Kind.LENGTH if length else Kind.NONE, length, keep)
    return Framing(Kind.UNTIL_CLOSE, 0, False)
