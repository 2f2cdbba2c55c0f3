"""Waits of readers for the first bytes of an answer: each as long as its own timer would, by one for all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.flights import Flight, FlightSpec, Mode, Subscriber
from proxy.flights.phase import Phase
from proxy.server.waits import Waits
from tests.kit.clock import virtual

SECONDS = 10.0


def reader() -> Subscriber:
    flight = Flight(FlightSpec("POST", "/", b"", Mode.STREAM, "r"))
    one = Subscriber(flight)
    flight.subscribers.add(one)
    return one


def answer(flight: Flight) -> None:
    flight.enter(Phase.CONNECTING)
    flight.enter(Phase.PREFILL)
    flight.add(b"data: {}\n\n")
    flight.flush()


@virtual
async def test_each_waits_its_own_time_by_one_timer() -> None:
    loop, waits = asyncio.get_running_loop(), Waits(SECONDS)
    ends: dict[int, tuple[float, bool]] = {}
    timers: list[float] = []
    call_at = loop.call_at

    async def wait(number: int, one: Subscriber) -> None:
        found = await waits.ready(one)
        ends[number] = round(loop.time() - begun, 3), found

    def noted(when: float, *more: Any, **named: Any) -> asyncio.TimerHandle:
        timers.append(when)
        return call_at(when, *more, **named)

    begun = loop.time()
    readers = [reader() for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "call_at", noted)
        tasks = []
        for number, one in enumerate(readers):
            tasks.append(asyncio.ensure_future(wait(number, one)))
            await asyncio.sleep(1.0)
        answer(readers[1].flight)
        await asyncio.gather(*tasks)
    assert ends == {0: (10.0, False), 1: (4.0, True), 2: (12.0, False), 3: (13.0, False)}
    waited = [round(when - begun, 3) for when in timers if when - begun >= SECONDS]
    assert waited == [10.0, 12.0, 13.0]
    assert len(waits) == 0


@virtual
async def test_who_need_not_wait_does_not_and_who_leaves_is_forgotten() -> None:
    waits, there = Waits(SECONDS), reader()
    answer(there.flight)
    assert await waits.ready(there)
    left = asyncio.ensure_future(waits.ready(reader()))
    await asyncio.sleep(1.0)
    assert len(waits) == 1
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    assert len(waits) == 0
    await asyncio.sleep(2 * SECONDS)
    late = reader()
    again = asyncio.ensure_future(waits.ready(late))
    await asyncio.sleep(SECONDS / 2)
    late.wake()  # for nothing
    await asyncio.sleep(SECONDS / 2 - 0.5)
    assert not again.done()
    await asyncio.sleep(1.0)
    assert again.result() is False
