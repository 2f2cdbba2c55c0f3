"""Timers by name."""

from __future__ import annotations

import asyncio

from proxy.flights.queue.timers import Timers
from tests.clock import virtual


@virtual
async def test_each_goes_off_once_at_its_time_and_the_first_of_a_name_stays() -> None:
    loop = asyncio.get_running_loop()
    alarms, heard = Timers(loop), []
    alarms.set("late", 2.0, lambda: heard.append(("late", loop.time())))
    alarms.set("soon", 1.0, lambda: heard.append(("soon", loop.time())))
    alarms.set("soon", 0.5, lambda: heard.append(("again", loop.time())))
    await asyncio.sleep(3.0)
    assert heard == [("soon", 1.0), ("late", 2.0)]
    assert len(alarms) == 0


@virtual
async def test_it_may_set_itself_anew() -> None:
    loop = asyncio.get_running_loop()
    alarms, heard = Timers(loop), []

    def then() -> None:
        heard.append(loop.time())
        if len(heard) < 3:
            alarms.set("on", loop.time() + 1.0, then)

    alarms.set("on", 1.0, then)
    await asyncio.sleep(9.0)
    assert heard == [1.0, 2.0, 3.0]


@virtual
async def test_what_is_dropped_or_closed_is_silent() -> None:
    alarms, heard = Timers(asyncio.get_running_loop()), []
    for name in "abc":
        alarms.set(name, 1.0, lambda name=name: heard.append(name))  # type: ignore[misc]
    alarms.drop("a")
    alarms.drop("unknown")
    assert len(alarms) == 2
    alarms.close()
    await asyncio.sleep(2.0)
    assert heard == []
