"""The watch on engines: one task for each, and its end when all of them have ended."""

from __future__ import annotations

import asyncio
from typing import cast

from proxy.upstream.backends import Backend, Backends
from proxy.upstream.health_checks import HealthChecks
from proxy.upstream.http.pool import Pool
from tests.kit.clock import virtual


class Engine:
    """A pool that lives, and may take its time to end a look that is cancelled."""

    def __init__(self, slow: float = 0.0) -> None:
        self.slow = slow
        self.looks: list[float] = []
        self.ended = 0

    async def get(self, path: str, *, fresh: bool = False) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()
        if path == "/health":
            self.looks.append(loop.time())
        try:
            if self.slow:
                await asyncio.Event().wait()
        finally:
            over = loop.create_future()
            loop.call_later(self.slow, over.set_result, None)
            await over
            self.ended += 1
        return 200, b"{}"


def engine(name: str, slow: float = 0.0) -> tuple[Backend, Engine]:
    made = Engine(slow)
    return Backend(name, cast(Pool, made), 1, up=True), made


@virtual
async def test_the_watch_ends_when_all_its_looks_have_ended() -> None:
    (one, quick), (other, slow) = engine("a"), engine("b", 3.0)
    backends = Backends([one, other])
    task = asyncio.ensure_future(HealthChecks(backends, timeout=60.0).run(1.0))
    await asyncio.sleep(1.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (slow.looks, slow.ended, len(quick.looks)) == ([1.0], 1, 1)
    assert asyncio.get_running_loop().time() == 4.5
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual
async def test_an_engine_that_stays_is_watched_once_when_others_come() -> None:
    (one, first), (other, second) = engine("a"), engine("b")
    backends = Backends([one])
    task = asyncio.ensure_future(HealthChecks(backends).run(2.0))
    await asyncio.sleep(1.0)
    backends.change([other], [])
    await asyncio.sleep(4.5)
    assert (first.looks, second.looks) == ([2.0, 4.0], [3.0, 5.0])
    backends.change([], [])
    await asyncio.sleep(2.0)
    assert (first.looks, second.looks) == ([2.0, 4.0, 6.0], [3.0, 5.0, 7.0])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
