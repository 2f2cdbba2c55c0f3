"""What looks at something time and again goes on, whatever one look raises."""

from __future__ import annotations

import asyncio

from proxy.watches import for_ever
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
