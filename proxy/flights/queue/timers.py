"""Timers by name on one event loop: each fires once, unless it is dropped or all are closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable

from proxy.telemetry import Fault, raised


class Timers:
    """Timers of one event loop, by its clock. An exception in a callback is reported and affects no other
    timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_fault: Fault = raised) -> None:
        self._loop = loop
        self._on_fault = on_fault
        self._set: dict[Hashable, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._set)

    def set(self, name: Hashable, when: float, then: Callable[[], None]) -> None:
        """Call `then` at that time. A timer of this name that is set already stays as it is."""
        handle = self._set.get(name)
        if handle is None or handle.when() < self._loop.time():  # overdue: it is late, or was lost
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
        self._set.pop(name, None)  # before, so that the callback may set it anew
        try:
            then()
        except Exception as e:  # noqa: BLE001 - a timer's border: what it raises would end in the loop's handler
            self._on_fault("a timer", e)
