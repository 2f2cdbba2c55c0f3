"""The messages between nodes, and the head of a published stream. What others wrote is data: anything but an exact
message is none.

Pure: no clock, no I/O."""

from __future__ import annotations

import re
from binascii import hexlify, unhexlify
from typing import Final, Literal, cast

import msgspec

from proxy.redis import FENCE
from proxy.wire.fold import Shape

State = Literal["open", "landed", "failed"]
Kind = Literal["join", "left", "gone", "alone", "more", "drop"]

MAX_HEAD: Final = 16 * 1024  # bytes of an encoded head
_WORDS: Final = re.compile(
    rb"(join|left|gone|alone|more|drop) ([!-~]{1,400}) ([0-9a-f]{16}\.[0-9]{1,19})"
    rb"(?: ([0-9]{1,12}) ([0-9a-f]{32}) (open|landed|failed) ([0-9a-f]*))?(?: ([0-9a-f]{16}|[0-9a-f]{32}))?"
)
_LAST: Final = {"join": 16, "left": 16, "drop": 32}
"""Characters of the last word: a node, or the hashed name of a stream."""


class Message(msgspec.Struct, frozen=True):
    """One message in a node's inbox.

    - `join`, `left`: a node follows a flight of this node, or no longer.
    - `gone`: the flight ends without an answer; `alone`: it is not published.
    - `more`: the stream's bytes from `offset`, and the digest after them.
    - `drop`: no client comes back to the stream with this hashed name.
    """

    kind: Kind
    claim: bytes
    fence: bytes
    offset: int = 0
    digest: bytes = b""
    state: State = "open"
    head: bytes = b""
    data: bytes = b""
    name: bytes = b""


class StreamHead(msgspec.Struct, frozen=True):
    """What a follower needs to know of a stream besides its frames."""

    headers: list[tuple[str, str]]
    build: str  # of the engine that makes it, hexadecimal
    shape: Shape | None = None

    def encoded(self) -> bytes:
        return hexlify(msgspec.json.encode(self))


def read_head(encoded: object) -> StreamHead | None:
    """The head; None for anything that is none."""
    try:
        if not isinstance(encoded, bytes) or not 0 < len(encoded) <= MAX_HEAD:
            return None
        return msgspec.json.decode(unhexlify(encoded), type=StreamHead)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
        return None


def first_line(claim: bytes, fence: bytes, offset: int, digest: bytes, state: State, head: bytes) -> bytes:
    """The first line of `more`; the data follows it."""
    return b"more %b %b %d %b %b %b" % (claim, fence, offset, digest, state.encode(), head)


def read_message(payload: object) -> Message | None:
    """The message; None for anything that is none."""
    if not isinstance(payload, bytes):
        return None
    line, _, data = payload.partition(b"\n")
    words = _WORDS.fullmatch(line)
    if words is None:
        return None
    word, claim, fence, offset, digest, state, head, last = words.groups(default=b"")
    kind = cast(Kind, word.decode())
    if len(last) != _LAST.get(kind, 0):
        return None
    if kind != "more":
        return None if offset or data else Message(kind, claim, fence, name=last if kind == "drop" else b"")
    if not offset:
        return None
    return Message(kind, claim, fence, int(offset), digest, cast(State, state.decode()), head, data)


def leader_of(fence: object) -> bytes | None:
    """The node whose fence it is; None for anything that is none."""
    words = FENCE.fullmatch(fence) if isinstance(fence, bytes) else None
    return words[1] if words is not None else None
