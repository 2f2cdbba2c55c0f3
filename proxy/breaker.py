"""Owns the circuit breaker of one engine: when failures close the way to it, and how it is tried again.
Must not know engines, requests or clocks: it is told outcomes, and the time as an argument.
Called by backends, which holds one for each engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

FLAPS: Final = 2.0
"""Opened again within so many windows of its closing, it stays open twice as long as the last time."""


class State(Enum):
    CLOSED = 0  # all is well
    HALF_OPEN = 1  # a few probes may go; the first that ends decides
    OPEN = 2  # nothing goes


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """What opens it, and for how long. Seconds."""

    failures: int = 5  # in a row; 0: these never open it
    rate: float = 0.5  # of what ended within `window`; 0: never
    least: int = 20  # outcomes within the window before their rate says anything
    window: float = 10.0
    span: float = 1.0  # open for so long the first time; doubled each time after
    longest: float = 30.0
    probes: int = 1  # at a time, half open


class Breaker:
    """Closed, open or half open. An outcome is told once for each request, by `good` or `bad`; a probe that ends
    without one by `left`. What a 4xx is, is for the caller to say: the engine answered, so it is good."""

    __slots__ = (
        "_bad", "_bad_before", "_closed_at", "_good", "_good_before", "_jitter", "_patience", "_probing", "_row",
        "_rules", "_since", "_times", "state", "until",
    )  # fmt: skip

    def __init__(self, rules: BreakerRules | None = None, jitter: Callable[[], float] = random.random) -> None:
        self.state = State.CLOSED
        self.until = 0.0  # open: when it is half open
        self._rules = rules or BreakerRules()
        self._jitter = jitter  # 0 to 1: replicas that opened together must not probe together
        self._times = 0  # opened in succession
        self._closed_at = float("-inf")
        self._probing = 0
        self._patience = 0.0  # half open: when a probe that says nothing is no longer waited for
        self._row = 0
        self._since = float("-inf")
        self._good = self._bad = self._good_before = self._bad_before = 0

    def __repr__(self) -> str:
        return f"<Breaker {self.state.name.lower()} row={self._row} probing={self._probing}>"

    @property
    def probing(self) -> bool:
        """Whether a probe is under way, whose outcome will decide."""
        return self.state is State.HALF_OPEN and self._probing > 0

    def admits(self, now: float) -> bool:
        """Whether a request may go. Time makes an open one half open."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            if now < self.until:
                return False
            self.half()
        return self._probing < self._rules.probes or now >= self._patience

    def half(self) -> None:
        """Probe it now: something else showed it alive."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN
            self._patience = 0.0

    def probe(self, now: float) -> None:
        """A probe goes. One that says nothing for the longest span does not hold the next one up."""
        self._probing += 1
        self._patience = now + self._rules.longest

    def left(self) -> None:
        """A probe ended and says nothing: its client left."""
        self._probing -= 1

    def good(self, now: float, *, probe: bool = False) -> bool:
        """A request went well. True: the state changed."""
        if probe:
            self._probing -= 1
        if self.state is State.CLOSED:
            self._row = 0
            if now - self._since >= self._rules.window / 2:
                self._roll(now)
            self._good += 1
        elif probe and self.state is State.HALF_OPEN:
            self.state = State.CLOSED
            self._closed_at = now
            self._row = 0
            self._reset(now)
            return True
        return False

    def bad(self, now: float, *, probe: bool = False) -> bool:
        """A request failed, and not by its own fault. True: the state changed. Of what had been sent before it
        opened nothing counts any more: many fail at once."""
        if probe:
            self._probing -= 1
        if self.state is State.CLOSED:
            rules = self._rules
            self._row += 1
            if now - self._since >= rules.window / 2:
                self._roll(now)
            self._bad += 1
            bad = self._bad + self._bad_before
            seen = bad + self._good + self._good_before
            in_a_row = 0 < rules.failures <= self._row
            if in_a_row or (rules.rate > 0 and seen >= rules.least and bad >= rules.rate * seen):
                return self._open(now)
        elif probe and self.state is State.HALF_OPEN:
            return self._open(now)
        return False

    def _open(self, now: float) -> bool:
        rules = self._rules
        if self.state is State.CLOSED and now - self._closed_at > FLAPS * rules.window:
            self._times = 0
        span = min(rules.longest, rules.span * 2.0 ** min(self._times, 32))
        self._times += 1
        self.until = now + span * (1.0 + self._jitter() / 4)
        self.state = State.OPEN
        return True

    def _roll(self, now: float) -> None:
        """The window in two halves: it holds between half of it and all of it, in four numbers."""
        if now - self._since >= self._rules.window:
            self._reset(now)
        else:
            self._good_before, self._bad_before = self._good, self._bad
            self._good = self._bad = 0
            self._since = now

    def _reset(self, now: float) -> None:
        self._good = self._bad = self._good_before = self._bad_before = 0
        self._since = now
