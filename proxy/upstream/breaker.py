"""The circuit breaker of one engine: which failures open it, and how it is probed. Must not know clocks: `now`
is an argument."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Final

FLAPS: Final = 2.0
"""A breaker that opens again within this many windows after closing stays open twice as long as the last time."""


class State(Enum):
    CLOSED = 0  # requests go
    HALF_OPEN = 1  # a few probes go; the first outcome decides
    OPEN = 2  # no request goes


_CLOSED: Final = State.CLOSED  # a global is cheaper to look up than a member of a class


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """What opens a breaker, and for how long. Times in seconds."""

    failures: int = 5  # consecutive; 0 disables this rule
    rate: float = 0.5  # share of the outcomes within `window`; 0 disables this rule
    least: int = 20  # outcomes within the window before their rate counts
    window: float = 10.0
    span: float = 1.0  # open for this long the first time; doubled each time after
    longest: float = 30.0
    probes: int = 1  # at a time, while half-open


CALLERS: Final = 16  # whose failures are counted apart; all others count as one caller
SILENT: Final = 2  # consecutive check-ups that timed out, without a success between them


class Failures:
    """Failures by caller, in bounded memory: whether several callers had them."""

    __slots__ = ("_by", "count")

    def __init__(self) -> None:
        self.count = 0
        self._by: dict[Hashable, int] = {}

    def add(self, who: Hashable | None) -> None:
        """Count one. `who` None: of a request of our own, which counts as another caller's each time."""
        self.count += 1
        if who is not None and (who in self._by or len(self._by) < CALLERS):
            self._by[who] = self._by.get(who, 0) + 1

    @property
    def of_others(self) -> int:
        """All but those of the caller with the most."""
        return self.count - max(self._by.values(), default=0)

    def clear(self) -> None:
        self.count = 0
        self._by.clear()


class Breaker:
    """A circuit breaker: closed, open or half-open. Each request reports one outcome, `success` or `failure`; a
    probe without an outcome reports `abandoned`. A 4xx is a success: the engine answered.

    The failures of a single caller do not open it: its requests may be at fault. They make it `suspect`; then the
    engine is checked by requests of the gateway's own, and `checked` gets the result.
    """

    __slots__ = (
        "_bad", "_bad_before", "_closed_at", "_elsewhere", "_good", "_good_before", "_jitter", "_patience",
        "_probing", "_row", "_rules", "_silent", "_since", "_times", "state", "suspect", "until",
    )  # fmt: skip

    def __init__(self, rules: BreakerRules | None = None, jitter: Callable[[], float] = random.random) -> None:
        self.state = State.CLOSED
        self.until = 0.0  # open until then
        self._rules = rules or BreakerRules()
        self._jitter = jitter  # 0 to 1: replicas that opened together must not probe together
        self._times = 0  # opened in succession
        self._closed_at = float("-inf")
        self._probing = 0
        self._patience = 0.0  # half-open: until then a probe without an outcome is waited for
        self._row = Failures()
        self._since = float("-inf")
        self._good = self._good_before = 0
        self._bad, self._bad_before = Failures(), Failures()
        self.suspect = False  # a check-up decides
        self._silent = 0
        self._elsewhere = False  # another process probes

    def __repr__(self) -> str:
        return f"<Breaker {self.state.name.lower()} row={self._row.count} probing={self._probing}>"

    @property
    def probing(self) -> bool:
        """Whether a probe or a check-up is in flight, here or elsewhere, whose outcome decides."""
        return self.state is State.HALF_OPEN and (self._probing > 0 or self.suspect or self._elsewhere)

    def admits(self, now: float) -> bool:
        """Whether a request may go. An open breaker becomes half-open when its time is over."""
        if self.state is State.CLOSED:
            return True
        if self.state is State.OPEN:
            if now < self.until:
                return False
            self.half_open()
        free = self._probing < self._rules.probes and not self.suspect and not self._elsewhere
        return free or now >= self._patience

    def half_open(self) -> None:
        """Allow a probe now: the engine was seen to be alive."""
        if self.state is State.OPEN:
            self.state = State.HALF_OPEN
            self._patience = 0.0

    def probe(self, now: float) -> None:
        """A probe starts. Without an outcome it blocks the next probe for `longest` seconds at most."""
        self._probing += 1
        self._patience = now + self._rules.longest

    def abandoned(self) -> None:
        """A probe ended without an outcome: its client disconnected."""
        self._probing -= 1

    def follow(self, now: float, seconds: float) -> None:
        """Another process has opened its breaker of this engine: be open for so long, two times the longest span
        at most."""
        self.state = State.OPEN
        self.until = now + min(seconds, 2 * self._rules.longest)
        self.suspect = self._elsewhere = False

    def follow_probe(self, now: float) -> None:
        """Another process probes the engine. Without an outcome that blocks probes here for `longest` seconds."""
        if self.state is not State.CLOSED:
            self.state = State.HALF_OPEN
            self._elsewhere = True
            self._patience = now + self._rules.longest

    def follow_abandoned(self) -> None:
        """Another process' probe has ended without an outcome."""
        self._elsewhere = False

    def follow_close(self, now: float) -> bool:
        """Another process has closed its breaker of this engine. True: the state changed."""
        if self.state is State.CLOSED:
            return False
        self._close(now)
        return True

    def success(self, now: float, *, probe: bool = False) -> bool:
        """A request succeeded. True: the state changed."""
        if probe:
            self._probing -= 1
        if self.state is _CLOSED:
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
        """A request of the caller `who` failed. True: the state changed; it may be `suspect` now. While it is
        open, failures of requests sent before do not count: many fail at once."""
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
        """The result of a check-up of a `suspect` engine. None: undecided, as with a busy engine; `silent`: not
        even /health answered. True: the state changed."""
        if not self.suspect:
            return False  # decided meanwhile
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
        self.suspect = self._elsewhere = False
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
        """Move the window by half: it covers between `window` / 2 and `window` seconds."""
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
