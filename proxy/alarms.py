"""Owns timers by name: each goes off once, at its time, unless it is dropped or all of them are closed.
Must not know what they are for.
Called by the scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable


class Alarms:
    """Of one loop; times are that loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._set: dict[Hashable, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._set)

    def set(self, name: Hashable, when: float, then: Callable[[], None]) -> None:
        """Call `then` at that time. One of this name that has been set already stays as it is."""
        if name not in self._set:
            self._set[name] = self._loop.call_at(when, self._go, name, then)

    def drop(self, name: Hashable) -> None:
        handle = self._set.pop(name, None)
        if handle is not None:
            handle.cancel()

    def close(self) -> None:
        for name in tuple(self._set):
            self.drop(name)

    def _go(self, name: Hashable, then: Callable[[], None]) -> None:
        del self._set[name]  # before, so that it may set itself anew
        then()
