"""Polls engines for their load, one round after the other, and leaves a report and one number at each."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from proxy.errors import GatewayError
from proxy.upstream.backends import Backend
from proxy.upstream.load import parse, weigh

TIMEOUT: Final = 2.0  # seconds for one /metrics page
ABSENT: Final = frozenset({404, 405, 501})
SILENT: Final = 60.0  # seconds until an engine without a report is polled again


class LoadPoller:
    """Polls each engine for its load, one round after the other."""

    def __init__(
        self,
        engines: Callable[[], Iterable[Backend]],
        *,
        every: float,
        weight: float = 1.0,
        spare: float = math.inf,
        on_start: Callable[[Backend, float], None] = lambda engine, at: None,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`spare`: seconds between two polls of an engine whose load decides nothing; `on_start`: called with the
        Unix time at which an engine's process started, as the engine reports it."""
        self._engines = engines
        self._every = every
        self._weight = weight
        self._spare = spare
        self._on_start = on_start
        self._asked: dict[Backend, float] = {}  # time of the last poll
        self._clock = clock
        self._sleep = sleep
        self._silent: dict[Backend, float] = {}  # not polled until

    async def run(self) -> None:
        """Poll until cancelled. Rounds never overlap."""
        while True:
            await self._sleep(self._every)
            await self.look()

    async def look(self) -> None:
        """One round. A single engine without an adaptive limit is polled only every `spare` seconds, for its start
        time: there is no choice to make."""
        engines = list(self._engines())
        self._silent = {engine: until for engine, until in self._silent.items() if engine in engines}
        self._asked = {engine: at for engine, at in self._asked.items() if engine in engines}
        wanted = (self._weight > 0 and len(engines) > 1) or any(
            engine.adaptive_limit is not None for engine in engines
        )
        now = self._clock()
        due = (e for e in engines if wanted or e not in self._asked or now >= self._asked[e] + self._spare)
        await asyncio.gather(*map(self._ask, due))

    async def _ask(self, engine: Backend) -> None:
        if engine.up is False:
            engine.report_load(None)
            self._silent.pop(engine, None)  # it may come back as another engine
            return
        if self._clock() < self._silent.get(engine, 0.0):
            return
        report = None
        self._asked[engine] = self._clock()
        ours = engine.inflight
        try:
            async with asyncio.timeout(TIMEOUT):
                status, page = await engine.pool.get("/metrics")
            report = parse(page) if status == 200 else None
            if report is None:  # a missing page stays missing until a restart
                self._silent[engine] = math.inf if status in ABSENT else self._clock() + SILENT
        except (GatewayError, TimeoutError):
            pass  # no report means no load here: the health check judges the engine
        engine.report_load(report, weigh(report, ours, self._weight) if report is not None else 0.0)
        if report is not None and report.started is not None:
            self._on_start(engine, report.started)
