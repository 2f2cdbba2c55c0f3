"""The interface of an API whose answers are streams of typed events, and what one event says."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, Final

import msgspec

from proxy.errors import GatewayError
from proxy.wire.frames import MAX_TOKENS, Usage
from proxy.wire.sse import data_of, field_of

NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


SMALL: Final = 64 * 1024
"""Bytes of a part of an event, or of a body, that is read as a value: 4 MiB of long integers take 90 ms."""
NO_PART: Final = msgspec.Raw(b"null")


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What an event says, or a whole body."""

    content: bool = False  # generated text, reasoning or a tool call
    opening: bool = False  # sent before anything is generated
    idle: bool = False  # it keeps the connection open and belongs to no answer
    end: bool = False  # the answer is complete
    error: bool = False
    prompt: int = 0  # tokens, where the completion's are not known yet
    usage: Usage | None = None
    id: str | None = None  # under which the engine keeps the answer


NOTHING: Final = Seen()
CONTENT: Final = Seen(content=True)
OPENING: Final = Seen(opening=True)
IDLE: Final = Seen(idle=True)
ERROR: Final = Seen(error=True)


class EventApi(ABC):
    """One API. Has no state."""

    keep_alive: bytes
    """An event or a comment that clients ignore."""

    decoder: msgspec.json.Decoder[Any]
    """Of an event's data."""

    delta: re.Pattern[bytes]
    """The beginning of an event with generated content, as nearly every one is: its JSON is not read."""

    @abstractmethod
    def read(self, event: Any) -> Seen:
        """What a decoded event says."""

    def read_event(self, frame: bytes) -> Seen:
        """What one raw event says. Never raises: what cannot be read says nothing."""
        if self.delta.match(frame) is not None:
            return CONTENT
        data = event_data(frame)
        if isinstance(data, Seen):
            return data
        try:
            return self.read(self.decoder.decode(data))
        except NOT_JSON:
            return NOTHING

    @abstractmethod
    def read_body(self, body: bytes) -> Seen:
        """What a whole successful body says. Never raises."""

    @abstractmethod
    def error_event(self, error: GatewayError, request_id: str, number: int) -> bytes:
        """An error inside a stream. `number`: events before it."""

    @abstractmethod
    def passed_event(self, error: Any, status: int, request_id: str, number: int) -> bytes:
        """The same for the JSON value of an engine's error, under this status."""


def is_under(path: str, root: str) -> bool:
    """Whether a path in its normal form is `root` or below it."""
    return path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/")


def event_data(frame: bytes) -> bytes | Seen:
    """The data of an event, or what an event without data says."""
    data = data_of(frame)
    if data is not None:
        return data
    return ERROR if b"error" in (value.strip() for value in field_of(frame, b"event")) else IDLE


def value_of(part: msgspec.Raw) -> Any:
    """The value of a small part; None for one that is large or cannot be read."""
    if len(bytes(part)) > SMALL:
        return None
    try:
        return msgspec.json.decode(part)
    except NOT_JSON:
        return None


def plausible(count: object) -> int:
    """A count of tokens that an engine sent; 0 where it is none."""
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MAX_TOKENS else 0


def words_in(error: Any, status: int) -> str:
    """The message of an engine's error, whatever its shape."""
    inner = error.get("error", error) if isinstance(error, dict) else error
    message = inner.get("message") if isinstance(inner, dict) else None
    return message if isinstance(message, str) else f"The engine answered {status}."
