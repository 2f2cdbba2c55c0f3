"""The event loop of a measurement: when it last polled the sockets, how late it runs, timers of microseconds. The
standard loop, not uvloop: uvloop reads sockets itself, so no kernel stamp would reach this program."""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import os
import selectors
import struct
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

PROBE_NS: Final = 10_000_000
"""The loop's lag is sampled every 10 ms. 100 wake-ups a second cost 1.5 % of a core (measured, idle)."""


class TimestampingSelector(selectors.DefaultSelector):
    """Remembers the latest time before which none of the data that it reports now had arrived.

    A socket that was not ready at one poll received its data after that poll. So a poll that finds nothing is
    dated before the loop sleeps, and bytes read in one iteration are not older than the poll of the previous
    iteration. This bounds how far apart merged segments can be. It costs one more poll, 1.3 µs, in an iteration
    that sleeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.not_before_ns = time.monotonic_ns()  # no data that is being read now had arrived by then
        self._poll_ns = self.not_before_ns
        self.read_ahead: Callable[[int], None] | None = None
        """Called with each readable descriptor at once, before other callbacks run."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        polled = time.monotonic_ns()
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            self.not_before_ns, self._poll_ns = self._poll_ns, polled
        else:
            self.not_before_ns = self._poll_ns = polled
            ready = super().select(timeout)
        if self.read_ahead is not None:
            for key, events in ready:
                if events & selectors.EVENT_READ:
                    self.read_ahead(key.fd)
        return ready


def new_loop() -> asyncio.SelectorEventLoop:
    """For `asyncio.Runner(loop_factory=...)`."""
    return asyncio.SelectorEventLoop(TimestampingSelector())


def selector_of(loop: asyncio.AbstractEventLoop) -> TimestampingSelector | None:
    selector = getattr(loop, "_selector", None)
    return selector if isinstance(selector, TimestampingSelector) else None


# Timers


class Timer:
    """Waits for absolute times of CLOCK_MONOTONIC. By timerfd on Linux: about 50 µs late on an idle machine.

    epoll rounds asyncio's timers up to whole milliseconds, so arrivals would be up to 1 ms late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fd = _timerfd()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap: due, order, future
        self._order = itertools.count()
        if self._fd is not None:
            loop.add_reader(self._fd, self._fire)

    async def until(self, due_ns: int) -> None:
        """Return at `due_ns`, or at once if it has passed. Any number of tasks may wait."""
        left = due_ns - time.monotonic_ns()
        if left <= 0:
            return
        if self._fd is None:
            await asyncio.sleep(left / 1e9)
            return
        waiter = self._loop.create_future()
        heapq.heappush(self._waiters, (due_ns, next(self._order), waiter))
        if self._waiters[0][2] is waiter:
            _settime(self._fd, due_ns, 0)
        await waiter  # if it is cancelled, `_fire` discards it when its time comes

    def _fire(self) -> None:
        assert self._fd is not None
        if not _expirations(self._fd):
            return
        now = time.monotonic_ns()
        while self._waiters and (self._waiters[0][0] <= now or self._waiters[0][2].done()):
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)
        if self._waiters:
            _settime(self._fd, self._waiters[0][0], 0)

    def close(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None


class Probe:
    """Samples the loop's lag at every tick of a fixed schedule, missed ticks included.

    A loop that is blocked for 50 ms misses five ticks. All five count, or blocked time would be under-sampled.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, interval_ns: int = PROBE_NS) -> None:
        self.samples = array("q")  # nanoseconds late
        self._loop = loop
        self._interval = interval_ns
        self._next = time.monotonic_ns() + interval_ns
        self._handle: asyncio.TimerHandle | None = None
        self._fd = _timerfd()
        if self._fd is not None:
            _settime(self._fd, self._next, interval_ns)
            loop.add_reader(self._fd, self._tick)
        else:
            self._handle = loop.call_later(interval_ns / 1e9, self._tick)

    def clear(self) -> None:
        """Discard the samples from before the run, and the ticks that are overdue."""
        self._next = late_ticks(time.monotonic_ns(), self._next, self._interval, lambda late: None)
        del self.samples[:]

    def _tick(self) -> None:
        if self._fd is not None:
            _expirations(self._fd)
        now = time.monotonic_ns()
        self._next = late_ticks(now, self._next, self._interval, self.samples.append)
        if self._fd is None:
            self._handle = self._loop.call_later(max(self._next - now, 0) / 1e9, self._tick)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None


def late_ticks(now: int, due: int, interval: int, report: Callable[[int], None]) -> int:
    """Report the lateness of each tick that is due by `now`; return when the next one is due. Nanoseconds."""
    while due <= now:
        report(now - due)
        due += interval
    return due


# timerfd; Python has it from 3.13 on

_TFD_FLAGS: Final = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_ABSOLUTE: Final = 1
_libc: Any = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def _timerfd() -> int | None:
    if _libc is None:
        return None
    fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_FLAGS)
    return fd if fd >= 0 else None


def _settime(fd: int, due_ns: int, interval_ns: int) -> None:
    spec = struct.pack("@4q", *divmod(interval_ns, 10**9), *divmod(due_ns, 10**9))
    if _libc.timerfd_settime(fd, _ABSOLUTE, spec, None):
        raise OSError(ctypes.get_errno(), "timerfd_settime")


def _expirations(fd: int) -> int:
    try:
        return int.from_bytes(os.read(fd, 8), sys.byteorder)
    except BlockingIOError:
        return 0
