"""The event loop of a measurement: when it last polled the sockets, how late it runs, timers of microseconds. The
standard loop, not uvloop: uvloop reads sockets itself, so no kernel stamp would reach this program."""

from __future__ import annotations

import asyncio
import ctypes
import os
import selectors
import struct
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

PROBE_NS: Final = 10_000_000
"""The loop's lag is looked at every 10 ms. 100 wake-ups a second cost 1.5 % of a core (measured, idle)."""


class TimestampingSelector(selectors.DefaultSelector):
    """Remembers the last moment before which nothing that it reports now had come.

    A socket that was not ready at one look received whatever it holds after that look. So a look that finds
    nothing is dated before the loop falls asleep, and bytes read in one turn cannot be older than the look of
    the turn before: that bounds how far merged segments can lie apart. Costs one poll more, 1.3 µs, in a turn
    that sleeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.not_before_ns = time.monotonic_ns()  # nothing that is being read now was there at this time
        self._look_ns = self.not_before_ns
        self.read_ahead: Callable[[int], None] | None = None
        """Told each descriptor that can be read, at once: before other callbacks have their turn."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        look = time.monotonic_ns()
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            self.not_before_ns, self._look_ns = self._look_ns, look
        else:
            self.not_before_ns = self._look_ns = look
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
    """Waits for absolute times of CLOCK_MONOTONIC. By timerfd on Linux: some 50 µs late on an idle machine.

    asyncio's own timers are rounded up to whole milliseconds by epoll, so arrivals would be up to 1 ms late.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._fd = _timerfd()
        self._waiter: asyncio.Future[None] | None = None
        if self._fd is not None:
            loop.add_reader(self._fd, self._fire)

    async def until(self, due_ns: int) -> None:
        """Returns at once where `due_ns` has passed."""
        left = due_ns - time.monotonic_ns()
        if left <= 0:
            return
        if self._fd is None:
            await asyncio.sleep(left / 1e9)
            return
        self._waiter = self._loop.create_future()
        _settime(self._fd, due_ns, 0)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _fire(self) -> None:
        assert self._fd is not None
        if _expirations(self._fd) and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        if self._fd is not None:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None


class Probe:
    """Samples how late the loop is: every tick of a fixed schedule, the missed ones too, each by its own lateness.

    A loop that is blocked for 50 ms misses five ticks; all five count, or blocked time would be under-sampled.
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
        """Forget what was before the run began, and the ticks that are overdue from then."""
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
    """Reports the lateness of each tick that is due by now; returns when the next one is."""
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
