"""Owns the ticks of the pacers: once a second each is told what was seen, and its engine gets its limit.
Must not know requests, nor how a limit is found.
Called by the app, as one task."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from proxy.upstream.backends import Backend

TICK: Final = 1.0
"""Seconds. Longer than most first tokens take, so that a tick shows what the last one did."""
TOLD: Final = 2.0  # a limit is logged once it is so many times what was logged last, or that part of it


class LimitTicker:
    """Ticks for each engine that has a pacer."""

    def __init__(
        self,
        engines: Callable[[], Iterable[Backend]],
        *,
        clock: Callable[[], float],
        on_room: Callable[[], None],
        on_large: Callable[[Backend, int], None] = lambda engine, limit: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._engines = engines
        self._clock = clock  # that of the flights' times
        self._on_room = on_room
        self._on_large = on_large
        self._sleep = sleep
        self._told: dict[Backend, int] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._sleep(TICK)
            self.tick()

    def tick(self) -> None:
        engines = [engine for engine in self._engines() if engine.adaptive_limit is not None]
        self._told = {engine: told for engine, told in self._told.items() if engine in engines}
        room = False
        for engine in engines:
            if engine.adaptive_limit is None or engine.up is False:
                continue
            reached, engine.reached = engine.reached or engine.inflight >= engine.max_inflight, False
            limit = engine.adaptive_limit.tick(self._clock(), reached=reached, report=engine.report)
            room = room or limit > engine.max_inflight
            engine.max_inflight = limit
            told = self._told.setdefault(engine, limit)
            if limit >= told * TOLD or limit * TOLD <= told:
                self._told[engine] = limit
                self._on_large(engine, limit)
        if room:
            self._on_room()
