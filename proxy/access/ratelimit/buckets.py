"""The arithmetic of rate limits: leaky buckets, permits, and a bounded table of callers. `now` is an argument, in
seconds of any monotonic clock. The scripts in `redis.py` compute the same."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from proxy.access.caller import Rates

SLACK: Final = 1e-6
"""Units by which a meter may exceed its size: the sum of rounding errors."""
ROOM: Final = 65_536
"""Callers with a bucket each. Bounded, as clients can invent callers (addresses)."""
STREAM_WAIT: Final = 1.0
"""Retry-After for the limit of requests under way, in seconds: their ends are unknown."""

Kind = Literal["requests", "tokens", "streams"]
Whose = Literal["caller", "global"]


class Limit(NamedTuple):
    """The limit of one meter: its leak rate and its size."""

    rate: float  # units a second, above 0
    size: float  # units of a burst


class Limits(NamedTuple):
    """The limits of one caller, or of all callers together. None: no limit."""

    requests: Limit | None = None
    tokens: Limit | None = None
    streams: int | None = None

    @property
    def any(self) -> bool:
        return self.requests is not None or self.tokens is not None or self.streams is not None


class Levels(NamedTuple):
    """The levels of the meters, and the number of requests under way."""

    requests: float = 0.0
    tokens: float = 0.0
    streams: int = 0


UNBOUNDED: Final = Limits()
NO_RATES: Final = Rates()


@lru_cache(maxsize=1024)  # few distinct rates: they come from the keys file
def limits_of(rates: Rates, default: Rates) -> Limits:
    """The limits by a caller's own rates, else by those of the settings. 0: no limit.

    Without a configured burst, the burst is the requests of one second, at least 1. That of tokens is a minute's.
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


@lru_cache(maxsize=2048)
def part_of(bounds: Limits, parts: int) -> Limits:
    """The limits of one of so many processes. A burst has room for one request at least, so of limits smaller than
    `parts` the sum of the parts is more."""
    if parts == 1:
        return bounds
    requests, tokens, streams = bounds
    return Limits(
        Limit(requests.rate / parts, max(1.0, requests.size / parts)) if requests is not None else None,
        Limit(tokens.rate / parts, tokens.size / parts) if tokens is not None else None,
        max(1, streams // parts) if streams is not None else None,
    )


def over(bounds: Limits, levels: Levels, tokens: float, requests: int = 1) -> Kind | None:
    """The first limit that a request of so many tokens would exceed. `requests`: 0 to check its tokens alone."""
    if requests and bounds.requests is not None and levels.requests + 1 > bounds.requests.size + SLACK:
        return "requests"
    if bounds.tokens is not None and tokens > 0 and levels.tokens + tokens > bounds.tokens.size + SLACK:
        return "tokens"
    if requests and bounds.streams is not None and levels.streams >= bounds.streams:
        return "streams"
    return None


def wait(bounds: Limits, levels: Levels, tokens: float) -> float:
    """Seconds until a request of so many tokens is within the limits, if no other comes; infinite: never."""
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
    """The limit that refused a request (None: admitted), and the levels afterwards. A refusal charges nothing."""

    over: tuple[Whose, Kind] | None
    own: Levels
    everyone: Levels


@dataclass(slots=True, eq=False)
class Claim:
    """What one request is to be charged."""

    permit: str  # its id among the requests under way, in all processes
    caller: str
    own: Limits
    everyone: Limits
    tokens: int
    requests: int = 1  # 0: it is admitted already, and claims its tokens
    slots: int = 1  # 0: another request's permit is for it too; its limits have no `streams`
    spilled: bool = False  # charged to the bucket that callers share while the table is full
    permitted: bool = False  # it holds its permit


class Bucket:
    """The meters of one caller, or of all. GCRA in its leaky-bucket form (ITU-T I.371: both forms decide alike):
    it counts units instead of times, so rounding errors of times do not add up."""

    __slots__ = ("at", "bounds", "requests", "streams", "tokens")

    def __init__(self, now: float) -> None:
        self.requests = self.tokens = 0.0
        self.streams = 0
        self.at = now
        self.bounds = UNBOUNDED

    def __repr__(self) -> str:
        return f"<Bucket requests={self.requests:g} tokens={self.tokens:g} streams={self.streams}>"

    def levels(self, bounds: Limits, now: float) -> Levels:
        """The levels now, after the leak since the last call. A clock that runs backwards leaks nothing."""
        past, self.at, self.bounds = max(0.0, now - self.at), now, bounds
        # A meter without a limit counts nothing.
        self.requests = max(0.0, self.requests - bounds.requests.rate * past) if bounds.requests else 0.0
        self.tokens = max(0.0, self.tokens - bounds.tokens.rate * past) if bounds.tokens else 0.0
        return self.read()

    def read(self) -> Levels:
        """The levels at the last update."""
        return Levels(self.requests, self.tokens, self.streams)

    def add(self, requests: float, tokens: float) -> None:
        """Charge; negative numbers refund. A level is never below 0."""
        if self.bounds.requests is not None:
            self.requests = max(0.0, self.requests + requests)
        if self.bounds.tokens is not None:
            self.tokens = max(0.0, self.tokens + tokens)

    def idle(self, now: float) -> bool:
        """Whether it equals a new one."""
        return not self.streams and not any(self.levels(self.bounds, now))


class LocalLimits:
    """The limits of one process: they decide where there is no Redis, or where it does not answer.

    In any interval the charges less the refunds are at most the burst and the leak. A bucket is removed only when
    it is empty, so that no caller resets its own by inventing others: callers that come while the table is full
    share one bucket.
    """

    def __init__(self, now: float, *, room: int = ROOM, parts: int = 1) -> None:
        """`parts`: processes that divide the limits among them while they have no Redis in common."""
        self._room = room
        self._parts = parts
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
        """Decide, and charge where no limit is exceeded. `force`: charge, as Redis has decided."""
        own = self._bucket(claim.caller, now)
        claim.spilled = own is self._spill
        caller_bounds, global_bounds = part_of(claim.own, self._parts), part_of(claim.everyone, self._parts)
        caller_levels, global_levels = own.levels(caller_bounds, now), self._everyone.levels(global_bounds, now)
        if not force:
            kind = over(caller_bounds, caller_levels, claim.tokens, claim.requests)
            if kind is not None:
                return Decision(("caller", kind), caller_levels, global_levels)
            kind = over(global_bounds, global_levels, claim.tokens, claim.requests)
            if kind is not None:
                return Decision(("global", kind), caller_levels, global_levels)
        for bucket in (own, self._everyone):
            bucket.add(claim.requests, claim.tokens)
        slots = claim.requests and claim.slots
        own.streams += slots
        self._everyone.streams += slots
        claim.permitted = claim.permitted or bool(claim.requests)
        return Decision(None, own.read(), self._everyone.read())

    def refund(
        self, claim: Claim, now: float, *, requests: int = 0, tokens: float = 0, stream: bool = False
    ) -> None:
        """Correct a charge: negative numbers refund, positive ones charge, also beyond the limit: that debt leaks
        away first. `stream`: end its permit."""
        own = self._spill if claim.spilled else self._bucket(claim.caller, now)
        for bucket, bounds in ((own, claim.own), (self._everyone, claim.everyone)):
            bucket.levels(part_of(bounds, self._parts), now)
            bucket.add(requests, tokens)
        if stream:
            if not claim.permitted:
                raise AssertionError("a permit was returned twice")
            claim.permitted = False
            own.streams -= claim.slots
            self._everyone.streams -= claim.slots

    def _bucket(self, caller: str, now: float) -> Bucket:
        bucket = self._buckets.get(caller)
        if bucket is not None:
            self._buckets.move_to_end(caller)
            return bucket
        for name, old in self._oldest(2):  # two checks for each new one keep the table clean
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
