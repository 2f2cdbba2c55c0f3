"""An answer that passes through as it comes, and the token counts that are read from its bytes on the way."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, Ingest, Timeouts
from proxy.wire import Usage
from proxy.wire.frames import MAX_TOKENS

# A quote in a string of JSON is escaped, so this is a member's name wherever it stands.
_NAME: Final = b'"usage"'
_OBJECT: Final = re.compile(
    rb'"usage"[ \t\r\n]*+:[ \t\r\n]*+(\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\})'  # with objects of details in it
)
_PROMPT: Final = ("prompt_tokens", "input_tokens")
_COMPLETION: Final = ("completion_tokens", "output_tokens")
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

    def body(self, data: bytes) -> None:
        if self.done:
            return
        tap = self._tap
        tap.feed(data)
        if tap.usage is not None:
            self._usage = tap.usage
            self.flight.reports(tap.usage)  # it may be abandoned before its end
        elif self._events:
            self.flight.counts_events(tap.events)
        super().body(data)


def _usage(data: bytes) -> Usage | None:
    """The counts of an object; None where it has none, or implausible ones."""
    try:
        members = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    given = [[members[name] for name in names if name in members] for names in (_PROMPT, _COMPLETION)]
    numbers = [number for each in given for number in each]
    if not numbers or any(type(number) is not int or not 0 <= number <= MAX_TOKENS for number in numbers):
        return None
    prompt, completion = (each[0] if each else 0 for each in given)
    return Usage(prompt, completion, prompt + completion)
