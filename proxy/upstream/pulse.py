"""Notices pauses of this process: SIGSTOP, a virtual machine that slept, a long hold of the event loop. A
timeout that includes such a pause is not an engine's silence."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

EVERY: Final = 0.25  # seconds between two ticks
LATE: Final = 0.25  # seconds: a tick later than this is a pause; less is a busy event loop
KEPT: Final = 64  # pauses that are kept
AGAIN: Final = 2  # retries because of a pause


def _timed_out(error: Exception) -> bool:
    return isinstance(error, TimeoutError)


class Pulse:
    """A timer that notices when it runs late. Before `start`, `lost` is 0."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._pauses: deque[tuple[float, float]] = deque(maxlen=KEPT)  # (begin, end)
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
        """Seconds since `since` in which this process did not run, including a pause that no tick has noticed yet.
        At most EVERY too many for each pause."""
        if self._timer is None:
            return 0.0
        pauses = [*self._pauses, self._late()]
        return sum(max(0.0, end - max(since, begin)) for begin, end in pauses)

    async def patiently(
        self, attempt: Callable[[], Awaitable[T]], late: Callable[[Exception], bool] = _timed_out
    ) -> T:
        """Await an attempt; again, at most AGAIN times, where it timed out (`late`) while the process was
        paused."""
        for _ in range(AGAIN):
            began = self._clock()
            try:
                return await attempt()
            except Exception as e:
                if not late(e) or self.lost(began) <= EVERY:
                    raise
        return await attempt()

    def _late(self) -> tuple[float, float]:
        """The pause since the last tick; of length 0 where the next tick is not late."""
        now = self._clock()
        return (self._beaten, now) if now - self._beaten > EVERY + LATE else (now, now)

    def _beat(self) -> None:
        begin, end = self._late()
        if begin < end:
            self._pauses.append((begin, end))
        self.start()
