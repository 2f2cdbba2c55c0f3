"""Waits for the first bytes of an answer, which last equally long at most."""

from __future__ import annotations

import asyncio

from proxy.flights import Subscriber

EARLY = 0.001  # seconds: uvloop's timers have whole milliseconds


class Waits:
    """Readers that wait, each for so many seconds at most, by one timer for all of them: one of its own takes each
    stream 5 µs. The first to begin is the first whose time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: dict[Subscriber, float] = {}  # by the loop's clock, the earliest first
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._until)

    async def ready(self, reader: Subscriber) -> bool:
        """Wait until there is something to answer this reader with. False: it has waited long, and nothing has
        come."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        until = self._until[reader] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(until, self._wake, loop)
        try:
            while not reader.visible:
                if loop.time() >= until - EARLY:
                    return False
                await reader.changed()
            return True
        finally:
            self._until.pop(reader, None)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake the readers whose time is over, and set the timer for the next one."""
        self._timer = None
        now = loop.time()
        while self._until:
            reader, until = next(iter(self._until.items()))
            if until - EARLY > now:
                self._timer = loop.call_at(until, self._wake, loop)
                return
            del self._until[reader]
            reader.wake()
