"""CLOCK_MONOTONIC as the one clock of a run, and the mapping of the kernel's CLOCK_REALTIME stamps onto it. The
readers of the two clocks are arguments, so that tests set the time."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from typing import Final

Nanoseconds = Callable[[], int]
TRIES: Final = 5  # the tightest of these double reads counts, so that a preemption between the two does not


class Clock:
    """The offset between the two clocks, sampled over the run; a stamp is converted by the samples around it.

    The kernel stamps packets by CLOCK_REALTIME, which NTP slews (by up to 0.5 ms a second) and may step.
    Samples a quarter of a second apart bound a slew's error to 0.1 µs; a step shows as a jump.
    """

    def __init__(self, monotonic: Nanoseconds = time.monotonic_ns, realtime: Nanoseconds = time.time_ns) -> None:
        self._monotonic = monotonic
        self._realtime = realtime
        self._at: list[int] = []  # realtime
        self._offsets: list[int] = []  # realtime - monotonic
        self.zero = 0  # the run's start on the monotonic clock; set by the runner
        self.sample()

    def __repr__(self) -> str:
        return f"<Clock, {len(self._at)} samples, drift {self.drift_ns} ns, largest step {self.step_ns} ns>"

    def now(self) -> int:
        """Nanoseconds on the monotonic clock."""
        return self._monotonic()

    def sample(self) -> None:
        best: tuple[int, int, int] | None = None
        for _ in range(TRIES):
            before = self._monotonic()
            real = self._realtime()
            after = self._monotonic()
            if best is None or after - before < best[0]:
                best = (after - before, real, real - (before + after) // 2)
        assert best is not None
        self._at.append(best[1])
        self._offsets.append(best[2])

    def from_kernel(self, realtime_ns: int) -> int:
        """A kernel stamp on the monotonic clock, by linear interpolation between the samples around it."""
        at, offsets = self._at, self._offsets
        after = bisect.bisect_right(at, realtime_ns)
        if after == 0:
            return realtime_ns - offsets[0]
        if after == len(at):
            return realtime_ns - offsets[-1]
        span = at[after] - at[after - 1]
        done = realtime_ns - at[after - 1]
        return realtime_ns - offsets[after - 1] - (offsets[after] - offsets[after - 1]) * done // max(span, 1)

    def since_start(self, monotonic_ns: int) -> int:
        return monotonic_ns - self.zero

    def start_unix_ns(self) -> int:
        """CLOCK_REALTIME at the run's start."""
        return self.zero + self._offsets[0]

    @property
    def drift_ns(self) -> int:
        """The last offset against the first."""
        return self._offsets[-1] - self._offsets[0]

    @property
    def step_ns(self) -> int:
        """The largest change between two samples: a slew makes it small, a step does not."""
        pairs = zip(self._offsets, self._offsets[1:], strict=False)
        return max((abs(b - a) for a, b in pairs), default=0)
