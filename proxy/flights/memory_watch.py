"""What operators see of the memory budget: gauges, refusals, and who holds most."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from typing import Final

from proxy.config import Settings
from proxy.flights.memory import Memory, budget_for
from proxy.telemetry import Log, Metrics

KINDS: Final = ("uploads", "answers", "unread", "embeddings")
TELL_SECONDS: Final = 5.0  # seconds between two warnings


def memory_for(
    settings: Settings,
    metrics: Metrics,
    log: Log,
    loop: asyncio.AbstractEventLoop,
    name: Callable[[bytes], str],
) -> Memory:
    """The memory budget by the settings, with its metrics. `name` gives a tenant's name for the log."""
    watch = MemoryWatch(metrics, log, name, loop.time)
    memory = Memory(budget_for(settings.memory_budget), on_refused=watch.refused)
    watch.begin(memory)
    return memory


class MemoryWatch:
    """Counts refusals, and logs now and then who holds most."""

    def __init__(
        self, metrics: Metrics, log: Log, name: Callable[[bytes], str], clock: Callable[[], float]
    ) -> None:
        """`name` gives a tenant's name for the log."""
        self._metrics = metrics
        self._log = log
        self._name = name
        self._clock = clock
        self._memory: Memory | None = None
        self._told = -math.inf

    def begin(self, memory: Memory) -> None:
        """Register its gauges."""
        self._memory = memory
        gauge = self._metrics.gauge
        gauge("memory_budget_bytes", "Memory budget for requests and answers.", lambda: memory.budget)
        for kind in KINDS:
            gauge(
                "memory_held_bytes",
                "Memory charged to the budget, by purpose.",
                lambda kind=kind: memory.kinds.get(kind, 0),  # type: ignore[misc]
                {"kind": kind},
            )

    def refused(self, kind: str) -> None:
        """A charge of this kind was refused."""
        self._metrics.memory_refused(kind)
        now, memory = self._clock(), self._memory
        if memory is None or now - self._told < TELL_SECONDS:
            return
        self._told = now
        held = " ".join(f"{self._shown(owner)}={size}" for owner, size in memory.heaviest())
        self._log.event(
            "warning", "memory budget exhausted", kind=kind, budget=memory.budget, held=memory.held, heaviest=held
        )

    def _shown(self, owner: Hashable) -> str:
        return self._name(owner) if isinstance(owner, bytes) else str(owner)[:64]
