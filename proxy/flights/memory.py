"""The memory budget: how many bytes this process may hold for its clients, who holds them, and what operators see
of it.

Owners are opaque; sizes are given in bytes."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final

from proxy.config import Settings
from proxy.errors import Code, GatewayError
from proxy.telemetry import Log, Metrics

RESERVE: Final = 5
"""One part in so many of the budget is reserved for owners below an equal share."""
AUTO: Final = 4  # the default budget: one part in so many of the memory of machine or cgroup
LEAST: Final = 64 * 1024 * 1024
CGROUP_LIMITS: Final = (
    "/sys/fs/cgroup/memory.max",  # cgroup v2
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",  # v1
)
KINDS: Final = ("uploads", "answers", "unread", "embeddings")
TELL_SECONDS: Final = 5.0  # between two warnings


class Held:
    """Bytes that one request or connection holds, of one kind. `release` may be called again."""

    __slots__ = ("_memory", "kind", "owner", "size")

    def __init__(self, memory: Memory, owner: Hashable, kind: str) -> None:
        self._memory = memory
        self.owner = owner
        self.kind = kind
        self.size = 0

    def __repr__(self) -> str:
        return f"<Held {self.size} bytes of {self.kind}>"

    def resize(self, size: int) -> bool:
        """Hold so many bytes from now on. False: the budget is exhausted, and nothing has changed."""
        return self._memory.resize(self, size)

    def need(self, size: int) -> None:
        """The same, but raises GatewayError 503 if the budget is exhausted."""
        if not self._memory.resize(self, size):
            raise refused()

    def release(self) -> None:
        self._memory.resize(self, 0)


class Memory:
    """A budget in bytes. No owner may hold more than half of it, and its last fifth is for owners below an equal
    share: who fills memory is refused before the others are."""

    def __init__(self, budget: int, *, on_refused: Callable[[str], None] = lambda kind: None) -> None:
        self.budget = budget  # bytes
        self.held = 0
        self.kinds: dict[str, int] = {}  # bytes by kind
        self._owners: dict[Hashable, int] = {}
        self._on_refused = on_refused  # told the kind of what found no room

    def __repr__(self) -> str:
        return f"<Memory {self.held} of {self.budget} bytes, {len(self._owners)} owners>"

    def hold(self, owner: Hashable, kind: str, size: int = 0) -> Held:
        """Hold bytes for an owner. Raises GatewayError 503 where there is no room."""
        held = Held(self, owner, kind)
        held.need(size)
        return held

    def resize(self, held: Held, size: int) -> bool:
        more = size - held.size
        if more > 0 and not self._fits(held.owner, more):
            self._on_refused(held.kind)
            return False
        held.size = size
        self.held += more
        self.kinds[held.kind] = self.kinds.get(held.kind, 0) + more
        mine = self._owners.get(held.owner, 0) + more
        if mine:
            self._owners[held.owner] = mine
        else:
            self._owners.pop(held.owner, None)
        return True

    def heaviest(self, count: int = 3) -> list[tuple[Hashable, int]]:
        """The owners that hold most, and how many bytes each."""
        return sorted(self._owners.items(), key=lambda one: -one[1])[:count]

    def _fits(self, owner: Hashable, more: int) -> bool:
        mine = self._owners.get(owner, 0)
        if self.held + more > self.budget or mine + more > self.budget // 2:
            return False
        share = self.budget // (len(self._owners) + (mine == 0))
        return self.held + more <= self.budget - self.budget // RESERVE or mine + more <= share


def refused() -> GatewayError:
    """Of a request for which there is no memory."""
    return GatewayError(
        Code.MEMORY_FULL,
        "The gateway's memory budget is exhausted; retry shortly, or send a smaller request.",
        retry_after=1,
    )


def available(paths: tuple[str, ...] = CGROUP_LIMITS, meminfo: str = "/proc/meminfo") -> int:
    """Bytes of memory that this process may use at most: the machine's, or its cgroup's where that is less."""
    total = _total(meminfo)
    for path in paths:
        try:
            text = Path(path).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit() and 0 < int(text) < total:
            total = int(text)
    return total


def budget_for(setting: int) -> int:
    """The budget in bytes: as it is set, or a quarter of what there is."""
    return setting or max(LEAST, available() // AUTO)


def _total(meminfo: str) -> int:
    try:
        words = Path(meminfo).read_text("ascii").split()
        return int(words[words.index("MemTotal:") + 1]) * 1024
    except (OSError, UnicodeDecodeError, ValueError, IndexError):
        return 4 << 30


# -- for operators


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
