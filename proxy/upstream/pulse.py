"""Notices pauses of this process: SIGSTOP, a virtual machine that slept, a long hold of the event loop. A
timeout that includes such a pause is not an engine's silence."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

EVERY: Final = 0.25  # seconds between two beats
LATE: Final = 0.25  # a beat later than this was a pause; less is a busy loop
KEPT: Final = 64  # pauses that are remembered
AGAIN: Final = 2  # times that something is tried again because the process was paused


def _timed_out(error: Exception) -> bool:
    return isinstance(error, TimeoutError)


class Pulse:
    """A timer that notices that it runs late. Until it is started nothing is ever lost."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._pauses: deque[tuple[float, float]] = deque(maxlen=KEPT)  # each with its begin and its end
        self._beaten = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Pulse {'beats' if self._timer is not None else 'stopped'}, {len(self._pauses)} pauses>"

    def start(self) -> None:
        self._beaten = self._clock()
        self._timer = self._loop.call_later(EVERY, self._beat)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lost(self, since: float) -> float:
        """Seconds of the time since then in which this process did not run; a pause that no beat has noticed yet
        counts too. At most EVERY too many for each pause."""
        if self._timer is None:
            return 0.0
        pauses = [*self._pauses, self._late()]
        return sum(max(0.0, end - max(since, begin)) for begin, end in pauses)

    async def patiently(
        self, attempt: Callable[[], Awaitable[T]], late: Callable[[Exception], bool] = _timed_out
    ) -> T:
        """Await an attempt; once more where its time ran out (`late`) while the process was paused."""
        for _ in range(AGAIN):
            began = self._clock()
            try:
                return await attempt()
            except Exception as e:
                if not late(e) or self.lost(began) <= EVERY:
                    raise
        return await attempt()

    def _late(self) -> tuple[float, float]:
        """The pause since the last beat; of no length where the next beat is not late."""
        now = self._clock()
        return (self._beaten, now) if now - self._beaten > EVERY + LATE else (now, now)

    def _beat(self) -> None:
        begin, end = self._late()
        if begin < end:
            self._pauses.append((begin, end))
        self.start()
