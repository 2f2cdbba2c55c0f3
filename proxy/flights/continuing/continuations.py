"""Which streams are continued at one time, and which requests are not continued again. Reads no clock but the one
that it is given, and does no I/O but keep-alives."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Final

from proxy.flights.flight import Flight
from proxy.wire import KEEP_ALIVE

LONGEST_WAIT: Final = 30.0
"""Seconds that a broken stream may wait for an engine, or until few enough others are continued."""
BLAMED_SECONDS: Final = 600.0
MOST_BLAMED: Final = 256  # requests


class Continuation:
    """One stream that is continued. `granted`: its next request may be sent."""

    __slots__ = ("_events", "flight", "go", "granted", "most")

    def __init__(self, flight: Flight, most: int, go: Callable[[], None]) -> None:
        self.flight, self.most, self.go = flight, most, go
        self.granted = False
        self._events = flight.content_events

    def silent(self) -> bool:
        """Whether no content has come since the last call."""
        before, self._events = self._events, self.flight.content_events
        return before == self._events


class Continuations:
    """The streams of this process that are continued. Those beyond their share wait for one that ends, in their
    order; what bounds that wait is `LONGEST_WAIT`, which the scheduler keeps."""

    def __init__(
        self, later: Callable[[float, Callable[[], None]], Any], clock: Callable[[], float], *, keep_alive: float
    ) -> None:
        """`later` calls back after seconds. `keep_alive`: seconds between two comments to readers of a stream that
        is silent while it is continued; 0: none."""
        self._later, self._clock, self._every = later, clock, keep_alive
        self._granted: dict[Continuation, None] = {}
        self._waiting: dict[Continuation, None] = {}
        self._queued: dict[Continuation, None] = {}
        self._blamed: OrderedDict[Hashable, float] = OrderedDict()
        self._timer: Any = None

    def __len__(self) -> int:
        return len(self._granted) + len(self._waiting) + len(self._queued)

    def __repr__(self) -> str:
        return f"<Continuations granted={len(self._granted)} waiting={len(self._waiting)}>"

    def take(self, flight: Flight, most: int, go: Callable[[], None]) -> Continuation:
        """Continue a stream. `most`: streams that may be continued at one time; beyond them it is granted later,
        and `go` called."""
        continuation = Continuation(flight, most, go)
        if self._waiting or len(self._granted) >= most:
            self._waiting[continuation] = None
        else:
            self._grant(continuation)
        self._watch()
        return continuation

    def queued(self, flight: Flight) -> Continuation:
        """For a stream that waits in the queue before it is continued: its readers get keep-alives."""
        continuation = Continuation(flight, 0, _nothing)
        self._queued[continuation] = None
        self._watch()
        return continuation

    def give_back(self, continuation: Continuation) -> None:
        """It has ended. Later calls do nothing."""
        self._waiting.pop(continuation, None)
        self._queued.pop(continuation, None)
        if self._granted.pop(continuation, continuation) is not None:
            return
        while self._waiting and len(self._granted) < (first := next(iter(self._waiting))).most:
            del self._waiting[first]
            self._grant(first)
            self._later(0.0, first.go)

    def blame(self, flight: Flight) -> None:
        """Two engines died over this request: its tenant's requests with this prompt are not continued for a
        while."""
        cause = _cause(flight)
        self._blamed[cause] = self._clock() + BLAMED_SECONDS
        self._blamed.move_to_end(cause)
        if len(self._blamed) > MOST_BLAMED:
            self._blamed.popitem(last=False)

    def blamed(self, flight: Flight) -> bool:
        """Whether engines died over a request of this tenant with this prompt."""
        return bool(self._blamed) and self._blamed.get(_cause(flight), 0.0) > self._clock()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _grant(self, continuation: Continuation) -> None:
        continuation.granted = True
        self._granted[continuation] = None

    def _tick(self) -> None:
        """Tell the readers of silent streams that their connections live."""
        self._timer = None
        for continuation in (*self._granted, *self._waiting, *self._queued):
            if continuation.silent() and not continuation.flight.ended:
                continuation.flight.remark(KEEP_ALIVE)
        self._watch()

    def _watch(self) -> None:
        if self._timer is None and self._every > 0 and len(self):
            self._timer = self._later(self._every, self._tick)


def _cause(flight: Flight) -> Hashable:
    """What may kill engines: a tenant's prompt for a model, whatever the seed and whether its answer is shared. Of
    a large request, whose members are not here, the whole."""
    spec, api_request = flight.spec, flight.spec.api_request
    what = b"null" if api_request is None or api_request.large is not None else api_request.prompt
    if what == b"null":
        what = spec.key or spec.body
    digest = hashlib.blake2b(what, digest_size=16).digest()
    return flight.queue_state.resolve_tenant(), spec.path, spec.model, digest


def _nothing() -> None:
    """It has no turn of this kind."""
