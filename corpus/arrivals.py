"""Arrival times: point processes whose rate, gap CV and dispersion are those of published traces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from corpus.draw import Draw


class Arrivals(Protocol):
    def times(self, count: int, chance: Draw) -> list[float]:
        """`count` times in seconds, ascending, the first within the first gap after 0."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """Independent gamma gaps: burstiness 1 is Poisson, less is burstier (gap CV = burstiness ** -0.5), inf even.

    vLLM's `--burstiness` is the same number.
    """

    rate: float
    burstiness: float = 1.0

    def times(self, count: int, chance: Draw) -> list[float]:
        mean = 1 / self.rate
        found, now = [], 0.0
        for _ in range(count):
            even = math.isinf(self.burstiness)
            now += mean if even else chance.gamma(self.burstiness, mean)
            found.append(now)
        return found


@dataclass(frozen=True, slots=True)
class Modulated:
    """Poisson whose rate is drawn anew from a gamma (relative variance `variance`) every `memory` seconds or so.

    The times between redraws are exponential, so the rate's autocovariance is variance * rate^2 * exp(-t/memory),
    and the dispersion (variance over mean of counts in windows of w seconds) is
    1 + rate * w * variance * F(w / memory), with F(u) = 2/u * (1 - (1 - exp(-u)) / u).
    """

    rate: float
    variance: float
    memory: float

    def times(self, count: int, chance: Draw) -> list[float]:
        found: list[float] = []
        start = 0.0
        while len(found) < count:
            end = start + chance.exponential(self.memory)
            rate = chance.gamma(1 / self.variance, self.rate) if self.variance else self.rate
            now = start + chance.exponential(1 / rate) if rate > 1e-9 else end
            while now < end and len(found) < count:
                found.append(now)
                now += chance.exponential(1 / rate)
            start = end
        return found

    def dispersion(self, window: float) -> float:
        return 1 + self.rate * window * self.variance * _smoothed(window / self.memory)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Bursts between long idle gaps: Poisson arrivals for an exponential time, then a gamma pause.

    `on` and `off` are mean seconds; `off_shape` below 1 makes a few pauses very long, and the gap CV is theirs.
    """

    rate: float
    on: float
    off: float
    off_shape: float

    def times(self, count: int, chance: Draw) -> list[float]:
        gap = self.on / (self.rate * (self.on + self.off))
        found: list[float] = []
        start = 0.0
        while len(found) < count:
            end = start + chance.exponential(self.on)
            now = start + chance.exponential(gap)
            while now < end and len(found) < count:
                found.append(now)
                now += chance.exponential(gap)
            start = end + chance.gamma(self.off_shape, self.off)
        return found


@dataclass(frozen=True, slots=True)
class Slotted:
    """A process seen through a coarse clock: every time falls back to its slot, then is jittered within it.

    With `jitter` off the raw grid is kept, as published: a naive replay then fires a whole slot at once.
    """

    inner: Arrivals
    slot: float
    jitter: bool = True

    def times(self, count: int, chance: Draw) -> list[float]:
        grid = [math.floor(t / self.slot) * self.slot for t in self.inner.times(count, chance)]
        return sorted(t + chance.unit() * self.slot for t in grid) if self.jitter else grid


def modulated(rate: float, dispersion_1s: float, dispersion_10s: float) -> Modulated:
    """The modulated process with these dispersions of counts in windows of 1 s and 10 s (solved, not fitted)."""
    low, high = 1e-3, 1e4  # longer memory raises the ratio
    wanted = (dispersion_10s - 1) / (dispersion_1s - 1) / 10
    for _ in range(100):
        memory = math.sqrt(low * high)
        if _smoothed(10 / memory) / _smoothed(1 / memory) < wanted:
            low = memory
        else:
            high = memory
    return Modulated(rate, (dispersion_1s - 1) / (rate * _smoothed(1 / memory)), memory)


def _smoothed(u: float) -> float:
    return 1.0 if u < 1e-6 else 2 / u * (1 - (1 - math.exp(-u)) / u)
