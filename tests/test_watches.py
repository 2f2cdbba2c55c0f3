"""What looks at something time and again goes on, whatever one look raises."""

from __future__ import annotations

import asyncio

from proxy.upstream.monitor import each, for_ever
from tests.clock import virtual


@virtual
async def test_what_raises_is_reported_and_begins_anew() -> None:
    told: list[str] = []
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        raise ValueError("no")

    task = asyncio.create_task(for_ever("a watch", run, lambda where, e: told.append(f"{where}: {e}")))
    await asyncio.sleep(3.5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (runs, told) == (4, ["a watch: no"] * 4)


@virtual
async def test_what_ends_with_time_is_looked_at_at_once_and_then_time_and_again() -> None:
    looks: list[float] = []
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(each(60.0, lambda: looks.append(loop.time())))
    await asyncio.sleep(130.0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert looks == [0.0, 60.0, 120.0]
