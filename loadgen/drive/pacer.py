"""When requests are due: constant, Poisson, gamma, ramps, traces. An iterator of absolute times in seconds, the
same for the same arguments. Knows no clock."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

RampStrategy = Literal["linear", "exponential"]


class Ramp(msgspec.Struct, frozen=True, kw_only=True):
    """Rates in requests per second, from the first request to the last of `over`."""

    strategy: RampStrategy
    start: float
    end: float
    over: int  # requests

    def rate_at(self, index: int) -> float:
        """By the share of the requests that have been sent, as vLLM ramps."""
        done = min(index / max(self.over - 1, 1), 1.0)
        if self.strategy == "linear":
            return self.start + (self.end - self.start) * done
        return float(self.start * (self.end / self.start) ** done)


def gaps(rate: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Seconds between arrivals, of mean 1/rate.

    `burstiness` is the shape of a gamma distribution, as vLLM's flag: 1 is Poisson, below 1 burstier, above 1
    more even, infinite is constant. The coefficient of variation is 1/sqrt(burstiness).
    """
    while True:
        yield gap(rate, burstiness, rng)


def gap(rate: float, burstiness: float, rng: random.Random) -> float:
    if math.isinf(burstiness):
        return 1 / rate
    if burstiness == 1:
        return rng.expovariate(rate)
    return rng.gammavariate(burstiness, 1 / (rate * burstiness))


def open_loop_times(rate: float, burstiness: float = 1.0, *, seed: int = 0) -> Iterator[float]:
    """Arrival times in seconds, without end; an infinite rate is everything at once.

    The gaps are not rescaled to an exact total (as vLLM does), so a Poisson process stays one. The first request
    comes after the first gap, but a constant rate starts at 0.
    """
    if math.isinf(rate):
        return itertools.repeat(0.0)
    if math.isinf(burstiness):
        return (index / rate for index in itertools.count())
    return itertools.accumulate(gaps(rate, burstiness, random.Random(seed)))  # noqa: S311 - not for secrets


def counted_times(rate: float, count: int, burstiness: float = 1.0, *, seed: int = 0) -> Iterator[float]:
    """`count` arrival times within count/rate seconds, so that the rate is exact.

    For Poisson arrivals this is the process itself, given its count: n of n + 1 exponential gaps over their sum
    are n ordered uniform times (Devroye 1986, V.3).
    """
    if math.isinf(burstiness):
        return itertools.islice(open_loop_times(rate, burstiness), count)
    drawn = list(itertools.islice(gaps(rate, burstiness, random.Random(seed)), count + 1))  # noqa: S311 - not for secrets
    scale = count / rate / (sum(drawn) or 1.0)
    return (at * scale for at in itertools.accumulate(drawn[:-1]))


def ramp_times(shape: Ramp, burstiness: float = 1.0, *, seed: int = 0) -> Iterator[float]:
    """Arrival times in seconds whose rate changes with each request; after the last one the final rate holds."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    steps = (gap(shape.rate_at(index), burstiness, rng) for index in itertools.count())
    return itertools.accumulate(steps, initial=0.0)


def trace_times(times: Iterable[float | None], speed: float = 1.0) -> Iterator[float]:
    """A trace's own times in seconds, `speed` times as fast. Raises ValueError if one is missing or runs
    backwards."""
    last = 0.0
    for index, at in enumerate(times):
        if at is None:
            raise ValueError(f"request {index} of the trace has no time")
        due = at / speed
        if due < last:
            raise ValueError(f"request {index} of the trace is due {last - due:g} s before the previous one")
        last = due
        yield due
