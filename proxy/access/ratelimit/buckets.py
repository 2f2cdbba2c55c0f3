"""The arithmetic of rate limits: leaky buckets, permits, and a bounded table of callers. `now` is an argument,
in seconds of any monotonic clock. Redis runs the same sums (`redis.py`)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from proxy.access.caller import Rates

SLACK: Final = 1e-6
"""Units by which a meter may be over: what rounding in many small steps adds up to."""
ROOM: Final = 65_536
"""Callers that are kept apart. Clients make callers up, so there is an end to it."""
STREAM_WAIT: Final = 1.0
"""Retry-After for the limit of requests under way, in seconds: their ends are unknown."""

Kind = Literal["requests", "tokens", "streams"]
Whose = Literal["caller", "global"]


class Limit(NamedTuple):
    """Of one meter: what leaks away, and what it holds."""

    rate: float  # units a second, above 0
    size: float  # units that may come at once


class Limits(NamedTuple):
    """All that bounds one caller, or everyone together. None is no bound."""

    requests: Limit | None = None
    tokens: Limit | None = None
    streams: int | None = None

    @property
    def any(self) -> bool:
        return self.requests is not None or self.tokens is not None or self.streams is not None


class Levels(NamedTuple):
    """How full the meters are, and how many requests are under way."""

    requests: float = 0.0
    tokens: float = 0.0
    streams: int = 0


UNBOUNDED: Final = Limits()
NO_RATES: Final = Rates()


@lru_cache(maxsize=1024)  # of keys there are few: rates are not made up by clients
def limits_of(rates: Rates, default: Rates) -> Limits:
    """A caller's own rates, and where it has none those of the settings. 0 is no limit.

    Without a burst, what comes in one second may come at once, and one request at least. A minute's tokens may
    come at once.
    """
    rps = default.rps if rates.rps is None else rates.rps
    burst = default.burst if rates.burst is None else rates.burst
    minute = default.tokens_per_minute if rates.tokens_per_minute is None else rates.tokens_per_minute
    streams = default.streams if rates.streams is None else rates.streams
    return Limits(
        Limit(rps, burst or math.ceil(rps)) if rps else None,
        Limit(minute / 60, minute) if minute else None,
        streams or None,
    )


def over(bounds: Limits, levels: Levels, tokens: float, asked: int = 1) -> Kind | None:
    """The first ceiling that one more request, of so many tokens, would pass. `asked` is 0 for tokens alone."""
    if asked and bounds.requests is not None and levels.requests + 1 > bounds.requests.size + SLACK:
        return "requests"
    if bounds.tokens is not None and tokens > 0 and levels.tokens + tokens > bounds.tokens.size + SLACK:
        return "tokens"
    if asked and bounds.streams is not None and levels.streams >= bounds.streams:
        return "streams"
    return None


def wait(bounds: Limits, levels: Levels, tokens: float) -> float:
    """Seconds until such a request could pass, if nothing else came; infinite where it never can."""
    longest = 0.0
    if bounds.requests is not None:
        longest = max(longest, (levels.requests + 1 - bounds.requests.size) / bounds.requests.rate)
    if bounds.tokens is not None and tokens > 0:
        if tokens > bounds.tokens.size:
            return math.inf
        longest = max(longest, (levels.tokens + tokens - bounds.tokens.size) / bounds.tokens.rate)
    if bounds.streams is not None and levels.streams >= bounds.streams:
        longest = max(longest, STREAM_WAIT)
    return longest


class Decision(NamedTuple):
    """What was decided, and the levels after it. Refused, a request has taken nothing."""

    over: tuple[Whose, Kind] | None
    own: Levels
    everyone: Levels


@dataclass(slots=True, eq=False)
class Claim:
    """What one request wants."""

    permit: str  # its name among the requests under way, everywhere
    caller: str
    own: Limits
    everyone: Limits
    tokens: int
    asked: int = 1  # requests that are asked for: 0 where it was let in before, and asks for its tokens
    spilled: bool = False  # counted with others in the bucket of those for whom the table had no room
    permitted: bool = False  # its permit has been taken and not given back


class Bucket:
    """The meters of one caller, or of everyone. GCRA in its form as a leaky bucket (ITU-T I.371 has both, and they
    decide alike): what one takes is counted as itself, so no rounding of times adds up."""

    __slots__ = ("at", "bounds", "requests", "streams", "tokens")

    def __init__(self, now: float) -> None:
        self.requests = self.tokens = 0.0
        self.streams = 0
        self.at = now
        self.bounds = UNBOUNDED

    def __repr__(self) -> str:
        return f"<Bucket requests={self.requests:g} tokens={self.tokens:g} streams={self.streams}>"

    def levels(self, bounds: Limits, now: float) -> Levels:
        """The meters as they have leaked until now. A clock that went back leaks nothing."""
        past, self.at, self.bounds = max(0.0, now - self.at), now, bounds
        # A meter that nothing bounds counts nothing.
        self.requests = max(0.0, self.requests - bounds.requests.rate * past) if bounds.requests else 0.0
        self.tokens = max(0.0, self.tokens - bounds.tokens.rate * past) if bounds.tokens else 0.0
        return self.read()

    def read(self) -> Levels:
        """As they were looked at last."""
        return Levels(self.requests, self.tokens, self.streams)

    def add(self, requests: float, tokens: float) -> None:
        """Charge, or give back: a meter never says less than nothing."""
        if self.bounds.requests is not None:
            self.requests = max(0.0, self.requests + requests)
        if self.bounds.tokens is not None:
            self.tokens = max(0.0, self.tokens + tokens)

    def idle(self, now: float) -> bool:
        """Whether it says the same as a new one."""
        return not self.streams and not any(self.levels(self.bounds, now))


class LocalLimits:
    """The limits as one process knows them: decides alone where there is no Redis, or none that answers.

    In any stretch of time what was charged, less what was given back, is at most the burst and what leaked. A
    bucket is forgotten only when it says nothing any more, so nobody resets his own by making callers up: those
    who come while the table is full share one bucket.
    """

    def __init__(self, now: float, *, room: int = ROOM) -> None:
        self._room = room
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()
        self._spill = Bucket(now)
        self._everyone = Bucket(now)

    def __len__(self) -> int:
        return len(self._buckets)

    def __repr__(self) -> str:
        return f"<LocalLimits callers={len(self)} {self._everyone!r}>"

    @property
    def streams(self) -> int:
        """Requests under way."""
        return self._everyone.streams

    def acquire(self, claim: Claim, now: float, *, force: bool = False) -> Decision:
        """Decide, and take where nothing is over. `force`: it was decided elsewhere."""
        own = self._bucket(claim.caller, now)
        claim.spilled = own is self._spill
        mine, all_ = own.levels(claim.own, now), self._everyone.levels(claim.everyone, now)
        if not force:
            kind = over(claim.own, mine, claim.tokens, claim.asked)
            if kind is not None:
                return Decision(("caller", kind), mine, all_)
            kind = over(claim.everyone, all_, claim.tokens, claim.asked)
            if kind is not None:
                return Decision(("global", kind), mine, all_)
        for bucket in (own, self._everyone):
            bucket.add(claim.asked, claim.tokens)
        own.streams += claim.asked
        self._everyone.streams += claim.asked
        claim.permitted = claim.permitted or bool(claim.asked)
        return Decision(None, own.read(), self._everyone.read())

    def refund(
        self, claim: Claim, now: float, *, requests: int = 0, tokens: float = 0, stream: bool = False
    ) -> None:
        """Correct what was taken: numbers below 0 are given back, above 0 are charged, over the ceiling too: the
        debt has to leak away first. `stream`: its permit ends."""
        own = self._spill if claim.spilled else self._bucket(claim.caller, now)
        for bucket, bounds in ((own, claim.own), (self._everyone, claim.everyone)):
            bucket.levels(bounds, now)
            bucket.add(requests, tokens)
        if stream:
            if not claim.permitted:
                raise AssertionError("a permit was given back twice")
            claim.permitted = False
            own.streams -= 1
            self._everyone.streams -= 1

    def _bucket(self, caller: str, now: float) -> Bucket:
        bucket = self._buckets.get(caller)
        if bucket is not None:
            self._buckets.move_to_end(caller)
            return bucket
        for name, old in self._oldest(2):  # two looked at for each one made: the table holds what lives
            if old.idle(now):
                del self._buckets[name]
            else:
                self._buckets.move_to_end(name)
        if len(self._buckets) >= self._room:
            return self._spill
        bucket = self._buckets[caller] = Bucket(now)
        return bucket

    def _oldest(self, count: int) -> Iterator[tuple[str, Bucket]]:
        for _ in range(min(count, len(self._buckets))):
            name = next(iter(self._buckets))
            yield name, self._buckets[name]
