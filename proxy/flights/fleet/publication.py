"""A flight of this node as other nodes read it: a reader of its log whose pipe leads to Redis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from proxy.errors import Code
from proxy.flights.fleet.messages import State, StreamHead, first_line
from proxy.flights.fleet.tail import Tail
from proxy.flights.flight import Flight
from proxy.flights.group import FlightGroup
from proxy.flights.phase import Phase
from proxy.flights.spec import Mode

MOST_LOG: Final = 4 << 20
"""Bytes of one published log in Redis. A longer stream still goes to the nodes that follow it, but nobody joins it
any more, and a node that missed a part has lost it."""
MOST_LOGS: Final = 32 << 20
"""Bytes of all published logs of one node: beyond them no further flight is published."""
MOST_APPEND: Final = 8 << 20  # bytes of one append; a stream that comes faster is published no further

Append = Callable[["Publication", tuple[bytes | int, ...], Callable[[Any], None]], None]


class Publication:
    """A `Pipe` for the log of one flight. One append is under way at a time; what comes meanwhile is the next, as
    the reader lags until the reply is here."""

    __slots__ = (
        "_append", "_build", "_closed", "_later", "_on_end", "_state", "_unsure", "_writing",
        "claim", "fence", "flight", "kept", "named", "reader", "sending", "tail",
    )  # fmt: skip

    def __init__(
        self,
        flight: Flight,
        claim: bytes,
        fence: bytes,
        *,
        group: FlightGroup,
        build: Callable[[Flight], bytes | None],
        append: Append,
        on_end: Callable[[Publication, bool], None],
        later: Callable[[Callable[[], None]], object],
        kept: float,
        named: bool,
    ) -> None:
        """`build`: of the engine that answers, None where it is not known. `append` sends one append; `on_end` is
        called once: with True when the stream is published to its end, whatever that is. `later`: the loop's
        `call_soon`. `kept`: seconds that the log stays in Redis after an append. `named`: clients come back to
        this very stream, so all that they may have had of it is published, also where this node stops."""
        self.flight, self.claim, self.fence, self.kept, self.named = flight, claim, fence, kept, named
        self.tail = Tail(fence)
        self.sending = False
        self._build = build
        self._append = append
        self._on_end = on_end
        self._later = later
        self._state: State = "open"
        self._closed = self._writing = False
        self._unsure = math.inf
        self.reader = group.attach(
            flight, usage=True, whole=False, attached=True, owner=self, storable=False, client=False
        )

    def __repr__(self) -> str:
        return f"<Publication {self.fence!r} {self.tail!r}>"

    def begin(self) -> None:
        """Publish what there is, and from now on what comes."""
        self.reader.write_to(self, whole_chunks=True)

    @property
    def unread_here(self) -> bool:
        """No client of this node reads the flight."""
        if self._closed:
            return False
        return all(isinstance(reader.owner, Publication) for reader in self.flight.subscribers)

    def write(self, data: bytes | memoryview) -> bool:
        """Append to the published stream. The end of the answer comes with the flight's tail, which is framing."""
        if self._closed:
            return True
        flight, new = self.flight, bytes(data)
        if flight.error is not None and flight.error.code is Code.SHUTTING_DOWN and not self.named:
            self.end(complete=False)  # of this node alone: its followers continue the stream
            return True
        if self.reader.done:
            new = new.removesuffix(flight.tail)
            self._state = "landed" if flight.phase is Phase.LANDED and flight.mode is Mode.STREAM else "failed"
        if flight.mode is not Mode.STREAM or len(new) > MOST_APPEND:
            self.end(complete=False)
            return True
        head = b""
        if self.tail.size == 0:
            encoded = self._head()
            if encoded is None:
                self.end(complete=False)
                return True
            head = encoded
        offset, before = self.tail.size, self.tail.digest
        self.tail.extend(new)
        after = self.tail.digest
        line = first_line(self.claim, self.fence, offset, after, self._state, head)
        self.sending = self._writing = True
        self._append(self, (offset, before, new, after, self._state.encode(), head, line), self.appended)
        self._writing = False
        return not self.sending

    def _head(self) -> bytes | None:
        build, head = self._build(self.flight), self.flight.head
        if build is None or head is None:
            return None
        return StreamHead(list(head.headers), build.hex(), self.flight.shape).encoded()

    def appended(self, reply: Any) -> None:
        """The append is done: `reply` is the number of nodes that were told. Anything else ends it."""
        self.sending = False
        if self._closed:
            return
        if not isinstance(reply, int) or reply < 0:
            self.end(complete=False)
        elif self._state != "open":
            self.end(complete=True)
        elif not self._writing:
            self.reader.resume()

    def unsure(self, now: float) -> float:
        """Seconds since Redis did not say for the first time whether other nodes follow it."""
        self._unsure = min(self._unsure, now)
        return now - self._unsure

    def sure(self) -> None:
        """Redis says it."""
        self._unsure = math.inf

    def keep(self, seconds: float) -> None:
        """From the next append on the log stays in Redis for so long."""
        self.kept = seconds

    def look(self) -> None:
        """The flight may have ended without a byte for this reader, as one body in place of a stream does."""
        if not self._closed and not self.sending and self.flight.finished and self._state == "open":
            self.end(complete=False)

    def end(self, *, complete: bool) -> None:
        """Publish nothing more."""
        if not self._closed:
            self._closed = True
            self._on_end(self, complete)
            self._later(self._leave)  # the flight may be writing to its readers at this moment

    def _leave(self) -> None:
        self.reader.end_writing()
        self.reader.leave()
