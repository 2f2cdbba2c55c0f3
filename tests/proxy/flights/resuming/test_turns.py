"""Clients that come back together: so many are written to in one event loop iteration, in order, none is lost."""

from __future__ import annotations

import asyncio

from proxy.flights.resuming.turns import Turns


async def iterations(turns: Turns, count: int) -> list[list[int]]:
    """Which of so many tasks got their turn, by iteration."""
    served: list[int] = []

    async def one(number: int) -> None:
        await turns.take()
        served.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    seen: list[list[int]] = []
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        seen.append(served.copy())
        served.clear()
    return [numbers for numbers in seen if numbers]


async def test_so_many_have_their_turn_in_one_iteration_and_the_others_follow_in_order() -> None:
    turns = Turns(4)
    for _ in range(2):  # the second time as the first
        seen = await iterations(turns, 11)
        assert [number for numbers in seen for number in numbers] == list(range(11))
        assert max(map(len, seen)) <= 4
        assert len(seen) <= 4
    assert repr(turns) == "<Turns 4 of 4 left, 0 wait>"


async def test_one_that_leaves_while_it_waits_takes_no_turn() -> None:
    turns = Turns(1)
    tasks = [asyncio.create_task(turns.take()) for _ in range(4)]
    await asyncio.sleep(0)
    assert [task.done() for task in tasks] == [True, False, False, False]
    tasks[1].cancel()
    await asyncio.wait(tasks, timeout=5)
    assert [task.done() for task in tasks] == [True] * 4
    assert [task.cancelled() for task in tasks] == [False, True, False, False]


async def test_a_turn_of_an_idle_loop_comes_at_once() -> None:
    turns = Turns(2)
    for _ in range(10):
        task = asyncio.create_task(turns.take())
        await asyncio.sleep(0)
        assert task.done()
        await asyncio.sleep(0)
