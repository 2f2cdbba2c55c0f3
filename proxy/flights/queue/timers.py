"""Timers by name on one event loop: each fires once, unless it is dropped or all are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from proxy.telemetry import Fault, raised


class Timers:
    """Of one loop; times are that loop's. What a callback raises is reported, and is nobody else's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_fault: Fault = raised) -> None:
        self._loop = loop
        self._on_fault = on_fault
        self._set: dict[Hashable, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._set)

    def set(self, name: Hashable, when: float, then: Callable[[], None]) -> None:
        """Call `then` at that time. One of this name that has been set already stays as it is."""
        handle = self._set.get(name)
        if handle is None or handle.when() < self._loop.time():  # the second: it is late, or did not go off
            self.drop(name)
            self._set[name] = self._loop.call_at(when, self._go, name, then)

    def drop(self, name: Hashable) -> None:
        handle = self._set.pop(name, None)
        if handle is not None:
            handle.cancel()

    def close(self) -> None:
        for name in tuple(self._set):
            self.drop(name)

    def _go(self, name: Hashable, then: Callable[[], None]) -> None:
        self._set.pop(name, None)  # before, so that it may set itself anew
        try:
            then()
        except Exception as e:  # noqa: BLE001 - a timer's border: what it raises would end in the loop's handler
            self._on_fault("a timer", e)
