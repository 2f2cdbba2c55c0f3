"""Owns the asking of engines for their load: one round after the other, gently, and one number left at each.
Must not know requests, nor how engines are chosen.
Called by the app, as one task."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from proxy.backends import Backend
from proxy.errors import GatewayError
from proxy.load import parse, weigh

TIMEOUT: Final = 2.0  # seconds for one page
ABSENT: Final = frozenset({404, 405, 501})
SILENT: Final = 60.0  # seconds until an engine that reports nothing is asked again


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
        """One round. With one engine there is nothing to choose, and nothing is asked, but for its pacer."""
        engines = list(self._engines())
        self._silent = {engine: until for engine, until in self._silent.items() if engine in engines}
        if len(engines) > 1 or any(engine.pacer is not None for engine in engines):
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
            if report is None:  # what it does not have it will not have until it has been away
                self._silent[engine] = math.inf if status in ABSENT else self._clock() + SILENT
        except (GatewayError, TimeoutError):
            pass  # no word is no load: the health check is what judges it
        engine.report = report
        engine.reported = weigh(report, ours, self._weight) if report is not None else 0.0
