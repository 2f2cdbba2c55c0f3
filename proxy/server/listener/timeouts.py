"""Timeouts of a client connection: for its next head, for a client that does not read (a slow reader), for its
close. Reads no clock: facts and the time are arguments."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

CLOSING_SECONDS: Final = 60.0
"""From the close of a connection until it is aborted with its unread bytes."""

Over = Literal["head", "stall", "closing"]
"""The timeout that has passed: for a head to arrive, for the client to read, for the connection to close."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds; infinite is no limit."""

    head: float = 15.0
    stall: float = math.inf
    idle: float = 75.0
    closing: float = CLOSING_SECONDS

    @property
    def every(self) -> float:
        """Seconds between two checks, a fraction of the shortest timeout."""
        return min(1.0, self.head / 4, self.stall / 4, self.closing / 4)


class Watched:
    """The state of one connection between two checks."""

    __slots__ = ("_closing", "_head", "_opened", "_requests", "_taken", "_took")

    def __init__(self, now: float) -> None:
        self._opened = self._took = now
        self._head: float | None = None  # when a part of the next head was there
        self._requests = 0
        self._taken = 0
        self._closing: float | None = None  # when it was seen to close

    def look(
        self,
        now: float,
        times: Times,
        *,
        requests: int,
        waits: bool,
        partial: bool,
        unread: int,
        taken: int,
        closing: bool,
    ) -> Over | None:
        """The timeout that has passed, if any. `requests`: their number so far; `waits`: for the next one;
        `partial`: a part of its head has come; `unread`: bytes in the write buffer; `taken`: bytes that the client
        has read."""
        if not unread or taken > self._taken:
            self._took = now
        self._taken = taken
        if unread and now - self._took >= times.stall:
            return "stall"
        if closing:
            if self._closing is None:
                self._closing = now
            return "closing" if now - self._closing >= times.closing else None
        if not waits:
            return None
        if not requests:
            return "head" if now - self._opened >= times.head else None
        if requests != self._requests or not partial:
            self._requests, self._head = requests, None
        if not partial:
            return None  # idle, between two requests
        if self._head is None:
            self._head = now
        return "head" if now - self._head >= times.head else None
