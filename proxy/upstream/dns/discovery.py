"""Follows the engines that DNS names: what is found joins once it answers; what is not found any more leaves."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from proxy.telemetry import Log, Metrics
from proxy.upstream.dns.name import PREFIX, EngineName, NameFailed, resolver_of_system

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver

FLOOR: Final = 1.0
CEILING: Final = 60.0
"""Bounds of a TTL, in seconds."""
AGAIN: Final = 5.0  # seconds until the next look-up of a name that failed
EVERY: Final = 1.0  # seconds between two questions to an engine that has not answered yet
FIRST_SECONDS: Final = 2.0  # how long start-up waits for the first engines


class _Followed:
    """A name, what was found, and when it is looked up again."""

    __slots__ = ("due", "failure", "found", "name")

    def __init__(self, name: EngineName) -> None:
        self.name = name
        self.found: tuple[str, ...] = ()
        self.due = -math.inf
        self.failure = ""

    def settle(self, due: float, failure: str = "", found: tuple[str, ...] | None = None) -> None:
        self.due, self.failure = due, failure
        if found is not None:
            self.found = found


class Discovery:
    """The engines of the settings, and those that DNS names. A name that cannot be looked up keeps its engines."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        change: Callable[[Sequence[str]], Awaitable[None]],
        answers: Callable[[str], Awaitable[str]],
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float],
        resolver: Callable[[], Resolver] = resolver_of_system,
    ) -> None:
        """`change` is given all engines that are to be used; `answers` says why an engine does not answer yet, or
        nothing."""
        self._change = change
        self._answers = answers
        self._log = log
        self._clock = clock
        self._resolver = resolver
        self._fixed: list[str] = []
        self._names: dict[str, _Followed] = {}
        self._good: set[str] = set()  # found by a name, and has answered
        self._awaited: dict[str, str] = {}  # found, and why it does not answer yet
        self._used: list[str] = []
        self._news = asyncio.Event()
        self._take(urls)
        self._used = self.engines
        metrics.gauge(
            "engines_awaited", "Engines found in DNS that have not answered yet.", lambda: len(self._awaited)
        )

    def __repr__(self) -> str:
        return f"<Discovery names={len(self._names)} awaited={len(self._awaited)}>"

    @property
    def engines(self) -> list[str]:
        """All that are to be used now, each once."""
        found = (url for followed in self._names.values() for url in followed.found if url in self._good)
        return list(dict.fromkeys((*self._fixed, *found)))

    async def begin(self) -> None:
        """Find the first engines; where that takes long, `run` goes on."""
        if self._names:
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_SECONDS):
                    await self._round()

    async def change(self, urls: Sequence[str]) -> None:
        """Follow these URLs of the settings from now on."""
        self._take(urls)
        self._news.set()
        await self._apply()

    async def run(self) -> None:
        """Follow the names until cancelled."""
        while True:
            due = min((followed.due for followed in self._names.values()), default=math.inf) - self._clock()
            wait = min(due, EVERY) if self._awaited else due
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wait == math.inf else max(0.0, wait)):
                    await self._news.wait()
            self._news.clear()
            await self._round()

    def _take(self, urls: Sequence[str]) -> None:
        self._fixed = [url for url in urls if not url.startswith(PREFIX)]
        wanted = [url for url in urls if url.startswith(PREFIX)]
        self._names = {url: self._names.get(url) or _Followed(EngineName(url, self._resolver)) for url in wanted}

    async def _round(self) -> None:
        now = self._clock()
        await asyncio.gather(*(self._look_up(one) for one in self._names.values() if one.due <= now))
        found = {url for followed in self._names.values() for url in followed.found}
        self._good &= found
        self._awaited = {url: why for url, why in self._awaited.items() if url in found}
        await self._apply()  # what has left need not wait for what comes
        await asyncio.gather(*(self._ask(url) for url in sorted(found - self._good)))

    async def _look_up(self, one: _Followed) -> None:
        try:
            found = await one.name.look_up()
        except NameFailed as e:
            why = str(e)
            if why != one.failure:
                kept = f"; {len(one.found)} engines of before are kept"
                self._log.event("warning", "dns failed", name=one.name.url, detail=why + kept)
            one.settle(self._clock() + AGAIN, why)
            return
        if one.failure:
            self._log.event("info", "dns back", name=one.name.url)
        one.settle(self._clock() + min(max(found.ttl, FLOOR), CEILING), found=found.urls)

    async def _ask(self, url: str) -> None:
        why = await self._answers(url)
        if not why:
            self._awaited.pop(url, None)
            self._good.add(url)
            await self._apply()  # it need not wait for others that do not answer
            return
        if url not in self._awaited:
            self._log.event("info", "engine awaited", backend=url, detail=why)
        self._awaited[url] = why

    async def _apply(self) -> None:
        engines = self.engines
        if engines != self._used:
            self._used = engines
            await self._change(engines)
