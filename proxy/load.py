"""Owns what engines report of their load: the few lines of vLLM's /metrics that matter, asked for gently, weighed.
Must not know requests or how engines are chosen: it leaves one number at each engine.
Called by the app, as one task."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, NamedTuple

from proxy.backends import Backend
from proxy.errors import GatewayError

TIMEOUT: Final = 2.0  # seconds for one page
SILENT: Final = 60.0  # seconds until an engine that reports nothing is asked again
FULL: Final = 0.8  # of the KV cache: above it vLLM soon preempts, and computes again what it had
PRESSURE: Final = 8.0  # requests that a KV cache with nothing free counts for

_LINE: Final = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|(?:gpu|kv)_cache_usage_perc)(?:\{[^\n]*\})?[ \t]+(\S+)",
    re.MULTILINE,
)


class Report(NamedTuple):
    """What an engine says of itself: requests, and the used share of its KV cache, 0 to 1."""

    running: float
    waiting: float
    kv_cache: float


def parse(page: bytes) -> Report | None:
    """A page of Prometheus' text format. Requests are summed over its engines and models, of the caches the
    fullest counts. None where it says nothing of requests: it is no vLLM's."""
    sums = {b"num_requests_running": 0.0, b"num_requests_waiting": 0.0}
    kv_cache = 0.0
    seen = False
    for name, text in _LINE.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        if not math.isfinite(value) or value < 0:
            continue
        if name in sums:
            sums[name] += value
            seen = True
        else:
            kv_cache = max(kv_cache, min(1.0, value))
    return Report(sums[b"num_requests_running"], sums[b"num_requests_waiting"], kv_cache) if seen else None


def weigh(report: Report, ours: int, weight: float = 1.0) -> float:
    """The load that a report adds to `ours`, the requests that we have there: what others have there, once more
    all that waits, and the pressure on its KV cache. In requests, times `weight`."""
    others = max(0.0, report.running + report.waiting - ours)
    pressure = PRESSURE * max(0.0, report.kv_cache - FULL) / (1.0 - FULL)
    return weight * (others + report.waiting + pressure)


class LoadWatch:
    """Asks each engine for its load, one round after the other."""

    def __init__(
        self,
        engines: Callable[[], Iterable[Backend]],
        *,
        every: float,
        weight: float = 1.0,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engines = engines
        self._every = every
        self._weight = weight
        self._clock = clock
        self._sleep = sleep
        self._silent: dict[Backend, float] = {}  # until when

    async def run(self) -> None:
        """For ever. A round never begins before the one before it has ended."""
        while True:
            await self._sleep(self._every)
            await self.look()

    async def look(self) -> None:
        """One round. With one engine there is nothing to choose, and nothing is asked."""
        engines = list(self._engines())
        self._silent = {engine: until for engine, until in self._silent.items() if engine in engines}
        if len(engines) > 1:
            await asyncio.gather(*(self._ask(engine) for engine in engines))

    async def _ask(self, engine: Backend) -> None:
        if engine.up is False:
            engine.report, engine.reported = None, 0.0
            self._silent.pop(engine, None)  # who comes back may be another
            return
        if self._clock() < self._silent.get(engine, 0.0):
            return
        report = None
        ours = engine.inflight
        try:
            async with asyncio.timeout(TIMEOUT):
                status, page = await engine.pool.get("/metrics")
            report = parse(page) if status == 200 else None
            if report is None:
                self._silent[engine] = self._clock() + SILENT
        except (GatewayError, TimeoutError):
            pass  # no word is no load: the health check is what judges it
        engine.report = report
        engine.reported = weigh(report, ours, self._weight) if report is not None else 0.0
