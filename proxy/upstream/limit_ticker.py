"""Ticks the adaptive limits: once a second each one gets what was seen of its engine, and the engine gets its
limit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from proxy.upstream.backends import Backend

TICK: Final = 1.0
"""Seconds. Longer than most TTFTs, so that a tick shows the effect of the last one."""
LOGGED: Final = 2.0  # a limit is logged when it has changed by this factor since the last line


class LimitTicker:
    """Ticks the limit of each engine that has an adaptive one. `on_room`: a limit has grown; `on_large`: a
    limit has changed by the factor LOGGED."""

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
        self._clock = clock  # the clock of the flights' times
        self._on_room = on_room
        self._on_large = on_large
        self._sleep = sleep
        self._logged: dict[Backend, int] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._sleep(TICK)
            self.tick()

    def tick(self) -> None:
        engines = [engine for engine in self._engines() if engine.adaptive_limit is not None]
        self._logged = {engine: limit for engine, limit in self._logged.items() if engine in engines}
        room = False
        for engine in engines:
            if engine.adaptive_limit is None or engine.up is False:
                continue
            limit = engine.adaptive_limit.tick(self._clock(), reached=engine.take_reached(), report=engine.report)
            room = room or limit > engine.most
            engine.limit(limit)
            logged = self._logged.setdefault(engine, limit)
            if limit >= logged * LOGGED or limit * LOGGED <= logged:
                self._logged[engine] = limit
                self._on_large(engine, limit)
        if room:
            self._on_room()
