"""An answer that passes through as it comes, and the token counts that are read from its bytes on the way."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, Ingest, Timeouts
from proxy.wire import Tokens, Usage

# A quote in a string of JSON is escaped, so this is a member's name wherever it stands.
_NAME: Final = b'"usage"'
_OBJECT: Final = re.compile(
    rb'"usage"[ \t\r\n]*+:[ \t\r\n]*+(\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\})'  # with objects of details in it
)
MOST_OBJECT: Final = 4096  # bytes of an object whose end is waited for


class UsageTap:
    """Takes the pieces of a body, or of a stream of events. The last counts are those of the answer: an engine
    that counts in each event counts upwards."""

    __slots__ = ("_rest", "events", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.events = 0  # blank lines: JSON in one line has none
        self._rest = b""

    def feed(self, piece: bytes) -> None:
        self.events += piece.count(b"\n\n") + (self._rest[-1:] == b"\n" and piece[:1] == b"\n")
        text, end = self._rest + piece, 0
        for found in _OBJECT.finditer(text):
            self.usage, end = _usage(found[1]) or self.usage, found.end()
        begun = text.rfind(_NAME, end)
        if begun < 0 or len(text) - begun > MOST_OBJECT:
            begun = max(end, len(text) - len(_NAME) + 1)
        self._rest = text[begun:]


class RawIngest(Ingest):
    """For paths whose answers may hold generated text: their tokens count against limits as a chat's do."""

    __slots__ = ("_tap",)

    def __init__(self, flight: Flight, timeouts: Timeouts, callbacks: Callbacks) -> None:
        super().__init__(flight, timeouts, callbacks)
        self._tap = UsageTap()

    def body(self, data: bytes, wired: bytes = b"") -> None:
        if self.done:
            return
        tap = self._tap
        tap.feed(data)
        if tap.usage is not None:
            self._usage = tap.usage
            self.flight.reports(tap.usage)  # it may be abandoned before its end
        elif self._events:
            self.flight.counts_events(tap.events)
        super().body(data, wired)


class _Counts(msgspec.Struct):
    """Of OpenAI's chat and completions, and of Responses and Messages."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None


_DECODER: Final = msgspec.json.Decoder(_Counts)


def _usage(data: bytes) -> Usage | None:
    """The counts of an object; None where it has none, or implausible ones."""
    try:
        counts = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    prompt = counts.input_tokens if counts.prompt_tokens is None else counts.prompt_tokens
    completion = counts.output_tokens if counts.completion_tokens is None else counts.completion_tokens
    if prompt is None and completion is None:
        return None
    return Usage(prompt or 0, completion or 0, (prompt or 0) + (completion or 0))
