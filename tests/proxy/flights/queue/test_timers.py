"""Timers by name."""

from __future__ import annotations

import asyncio

from proxy.flights.queue.timers import Timers
from tests.kit.clock import virtual


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


@virtual
async def test_what_one_raises_is_told_and_is_nobody_else_s() -> None:
    told: list[str] = []
    loop, heard = asyncio.get_running_loop(), list[str]()
    timers = Timers(loop, lambda where, e: told.append(f"{where}: {e!r}"))

    def fails() -> None:
        raise ZeroDivisionError

    timers.set("broken", 1.0, fails)
    timers.set("fine", 1.0, lambda: heard.append("fine"))
    await asyncio.sleep(2.0)
    assert (told, heard, len(timers)) == (["a timer: ZeroDivisionError()"], ["fine"], 0)


@virtual
async def test_one_that_is_late_is_set_anew_and_one_that_is_just_due_stays() -> None:
    class Late:
        """A loop whose timers do not go off."""

        def __init__(self) -> None:
            self.now, self.cancelled = 5.0, list[float]()

        def time(self) -> float:
            return self.now

        def call_at(self, when: float, *given: object) -> object:
            late = self

            class Handle:
                def when(self) -> float:
                    return when

                def cancel(self) -> None:
                    late.cancelled.append(when)

            return Handle()

    loop = Late()
    timers = Timers(loop)  # type: ignore[arg-type]
    for now, when in ((5.0, 6.0), (6.0, 7.0), (6.1, 8.0)):
        loop.now = now
        timers.set("one", when, lambda: None)
    assert (loop.cancelled, len(timers)) == ([6.0], 1)
    timers.drop("one")
    assert (loop.cancelled, len(timers)) == ([6.0, 8.0], 0)
