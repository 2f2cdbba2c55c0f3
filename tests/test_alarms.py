"""Timers by name."""

from __future__ import annotations

import asyncio

from proxy.flights.queue.timers import Timers
from tests.clock import virtual


@virtual
async def test_each_goes_off_once_at_its_time_and_the_first_of_a_name_stays() -> None:
    loop = asyncio.get_running_loop()
    timers, heard = Timers(loop), []
    timers.set("late", 2.0, lambda: heard.append(("late", loop.time())))
    timers.set("soon", 1.0, lambda: heard.append(("soon", loop.time())))
    timers.set("soon", 0.5, lambda: heard.append(("again", loop.time())))
    await asyncio.sleep(3.0)
    assert heard == [("soon", 1.0), ("late", 2.0)]
    assert len(timers) == 0


@virtual
async def test_it_may_set_itself_anew() -> None:
    loop = asyncio.get_running_loop()
    timers, heard = Timers(loop), []

    def then() -> None:
        heard.append(loop.time())
        if len(heard) < 3:
            timers.set("on", loop.time() + 1.0, then)

    timers.set("on", 1.0, then)
    await asyncio.sleep(9.0)
    assert heard == [1.0, 2.0, 3.0]


@virtual
async def test_what_is_dropped_or_closed_is_silent() -> None:
    timers, heard = Timers(asyncio.get_running_loop()), []
    for name in "abc":
        timers.set(name, 1.0, lambda name=name: heard.append(name))  # type: ignore[misc]
    timers.drop("a")
    timers.drop("unknown")
    assert len(timers) == 2
    timers.close()
    await asyncio.sleep(2.0)
    assert heard == []
