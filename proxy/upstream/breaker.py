"""The circuit breaker of one engine: which failures open it, and how it is probed. Must not know clocks: `now`
is an argument."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
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


CALLERS: Final = 16  # whose failures are told apart; those of all others count as one more's
SILENT: Final = 2  # checks in succession that met silence, and no request that went well between them


class Failures:
    """Failures by whose requests they were: whether several callers had them, in bounded memory."""

    __slots__ = ("_by", "count")

    def __init__(self) -> None:
        self.count = 0
        self._by: dict[Hashable, int] = {}

    def add(self, who: Hashable | None) -> None:
        """One more. None: seen by ourselves, which counts as another caller's each time."""
        self.count += 1
        if who is not None and (who in self._by or len(self._by) < CALLERS):
            self._by[who] = self._by.get(who, 0) + 1

    @property
    def of_others(self) -> int:
        """All but those of the caller that has most of them."""
        return self.count - max(self._by.values(), default=0)

    def clear(self) -> None:
        self.count = 0
        self._by.clear()


class Breaker:
    """Closed, open or half open. An outcome is told once for each request, by `good` or `bad`; a probe that ends
    without one by `left`. What a 4xx is, is for the caller to say: the engine answered, so it is good.

    One caller's failures do not open it: what fails may be that caller's requests. They make it `suspect`; whoever
    sees that checks the engine by a request of our own, and tells the result by `checked`.
    """

    __slots__ = (
        "_bad", "_bad_before", "_closed_at", "_good", "_good_before", "_jitter", "_patience", "_probing", "_row",
        "_rules", "_silent", "_since", "_times", "state", "suspect", "until",
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
        self._row = Failures()
        self._since = float("-inf")
        self._good = self._good_before = 0
        self._bad, self._bad_before = Failures(), Failures()
        self.suspect = False  # a check of our own is to decide
        self._silent = 0

    def __repr__(self) -> str:
        return f"<Breaker {self.state.name.lower()} row={self._row.count} probing={self._probing}>"

    @property
    def probing(self) -> bool:
        """Whether a probe or a check is under way, whose outcome will decide."""
        return self.state is State.HALF_OPEN and (self._probing > 0 or self.suspect)

    def admits(self, now: float) -> bool:
        """Whether a request may go. Time makes an open one half open."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            if now < self.until:
                return False
            self.half_open()
        return (self._probing < self._rules.probes and not self.suspect) or now >= self._patience

    def half_open(self) -> None:
        """Probe it now: something else showed it alive."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN
            self._patience = 0.0

    def probe(self, now: float) -> None:
        """A probe goes. One that says nothing for the longest span does not hold the next one up."""
        self._probing += 1
        self._patience = now + self._rules.longest

    def abandoned(self) -> None:
        """A probe ended and says nothing: its client left."""
        self._probing -= 1

    def success(self, now: float, *, probe: bool = False) -> bool:
        """A request went well. True: the state changed."""
        if probe:
            self._probing -= 1
        if self.state is State.CLOSED:
            if self._row.count:
                self._row.clear()
                self._silent = 0
            if now - self._since >= self._rules.window / 2:
                self._roll(now)
            self._good += 1
        elif probe and self.state is State.HALF_OPEN:
            self._close(now)
            return True
        return False

    def failure(self, now: float, *, who: Hashable | None = None, probe: bool = False) -> bool:
        """A request of `who` failed. True: the state changed; it may be `suspect` now. Of what had been sent
        before it opened nothing counts any more: many fail at once."""
        if probe:
            self._probing -= 1
        if self.state is State.CLOSED:
            self._row.add(who)
            if now - self._since >= self._rules.window / 2:
                self._roll(now)
            self._bad.add(who)
            return self._judge(now)
        if probe and self.state is State.HALF_OPEN:
            if who is None:
                return self._open(now)
            self.suspect = True
            self._patience = now + self._rules.longest
        return False

    def checked(self, now: float, good: bool | None, *, silent: bool = False) -> bool:
        """What a check of our own has seen while it was `suspect`; None: nothing either way, as of an engine that
        is busy, or `silent`: not even its /health answered. True: the state changed."""
        if not self.suspect:
            return False  # it was decided meanwhile
        self.suspect = False
        if good is None and silent:
            self._silent += 1
            good = False if self._silent >= SILENT else None
        if good is False:
            return self._open(now)
        if good and self.state is State.CLOSED:
            self._row.clear()
            self._bad.clear()
            self._bad_before.clear()
            self._silent = 0
        elif good and self.state is State.HALF_OPEN:
            self._close(now)
            return True
        return False

    def _judge(self, now: float) -> bool:
        rules = self._rules
        bad = self._bad.count + self._bad_before.count
        seen = bad + self._good + self._good_before
        in_a_row = 0 < rules.failures <= self._row.count
        too_many = rules.rate > 0 and seen >= rules.least and bad >= rules.rate * seen
        if not (in_a_row or too_many):
            return False
        if in_a_row and self._row.of_others >= max(1, (rules.failures - 1) / 2):
            return self._open(now)
        others = self._bad.of_others + self._bad_before.of_others
        if too_many and others >= max(2, rules.rate * (seen - bad + others)):
            return self._open(now)
        self.suspect = True
        return False

    def _close(self, now: float) -> None:
        self.state = State.CLOSED
        self._closed_at = now
        self._row.clear()
        self._silent = 0
        self.suspect = False
        self._reset(now)

    def _open(self, now: float) -> bool:
        rules = self._rules
        if self.state is State.CLOSED and now - self._closed_at > FLAPS * rules.window:
            self._times = 0
        span = min(rules.longest, rules.span * 2.0 ** min(self._times, 32))
        self._times += 1
        self.until = now + span * (1.0 + self._jitter() / 4)
        self.state = State.OPEN
        self.suspect = False
        self._silent = 0
        return True

    def _roll(self, now: float) -> None:
        """The window in two halves: it holds between half of it and all of it."""
        if now - self._since >= self._rules.window:
            self._reset(now)
        else:
            self._good_before, self._bad_before = self._good, self._bad
            self._good, self._bad = 0, Failures()
            self._since = now

    def _reset(self, now: float) -> None:
        self._good = self._good_before = 0
        self._bad, self._bad_before = Failures(), Failures()
        self._since = now
