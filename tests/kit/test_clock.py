"""The virtual clock: it jumps, it never hangs, it leaves nothing running."""

from __future__ import annotations

import asyncio

import pytest

from tests.kit.clock import Deadlock, run_virtual, virtual


@virtual
async def test_the_clock_jumps_to_the_next_timer() -> None:
    loop = asyncio.get_running_loop()
    seen: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                await loop.create_future()
        seen.append((name, loop.time()))

    async with asyncio.TaskGroup() as group:
        group.create_task(wait("day", 86400.0 * 3))
        group.create_task(wait("minute", 60.0))
    assert seen == [("minute", 60.0), ("day", 86400.0 * 3)]


def test_a_deadlock_raises_instead_of_hanging() -> None:
    async def for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock):
        run_virtual(for_ever())


def test_a_task_leaked_in_virtual_time_is_caught() -> None:
    kept: list[asyncio.Task[object]] = []

    async def leak() -> None:
        kept.append(asyncio.get_running_loop().create_task(asyncio.Event().wait()))

    with pytest.raises(AssertionError, match="1 tasks left running"):
        run_virtual(leak())


def test_a_result_and_an_error_come_out_of_virtual_time() -> None:
    async def divide(by: int) -> float:
        await asyncio.sleep(3600)
        return 1 / by

    assert run_virtual(divide(2)) == 0.5
    with pytest.raises(ZeroDivisionError):
        run_virtual(divide(0))
