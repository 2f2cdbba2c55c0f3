"""The watchdog: only what stays stray is mended, it is told of, and one that cannot be mended harms no other."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.app import _watchdog
from proxy.config.settings import Settings
from proxy.errors import Code
from proxy.flights.flight import Flight
from proxy.flights.spec import FlightSpec, Mode
from proxy.flights.watchdog import Kind, Stray, Watchdog
from proxy.upstream.backends import Lease
from tests.kit.clock import virtual
from tests.proxy.flights.test_scheduler import House


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Yard:
    """Strays, as a test says; and what the watchdog told."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.strays: list[Stray] = []
        self.told: list[tuple[Kind, str]] = []
        self.faults: list[str] = []
        self.dog = Watchdog(
            lambda: self.strays,
            clock=self.clock,
            on_healed=lambda kind, what: self.told.append((kind, what)),
            fault=lambda where, e: self.faults.append(where),
            patience=5.0,
        )

    def look(self, seconds: float) -> None:
        self.clock.now += seconds
        self.dog.look()


def test_only_what_stays_stray_is_healed() -> None:
    yard, healed = Yard(), []
    lasting = Stray("place", "e0", lambda: healed.append("e0"))
    yard.strays = [lasting, Stray("flight", "brief", lambda: healed.append("brief"))]
    yard.look(0.0)
    yard.strays = [lasting]
    yard.look(4.9)
    assert healed == []
    yard.strays = [lasting, Stray("flight", "brief", lambda: healed.append("brief"))]
    yard.look(0.1)
    assert (healed, yard.told, yard.dog.healed) == (["e0"], [("place", "'e0'")], 1)


def test_one_that_cannot_be_healed_harms_no_other() -> None:
    yard, healed = Yard(), []

    def fails() -> None:
        raise ValueError("no")

    yard.strays = [Stray("turn", 1, fails), Stray("lookup", 2, lambda: healed.append(2))]
    yard.look(0.0)
    yard.look(5.0)
    assert (healed, yard.faults, yard.dog.healed) == ([2], ["the watchdog, healing a turn"], 2)


def spec() -> FlightSpec:
    return FlightSpec(method="POST", path="/v1/chat/completions", body=b"{}", mode=Mode.WHOLE, request_id="r")


async def healed_by(house: House) -> list[Kind]:
    """What a look that comes too late for everything mends."""
    told: list[Kind] = []
    clock = Clock()

    def fault(where: str, error: BaseException) -> None:
        raise AssertionError(where) from error

    dog = Watchdog(
        house.scheduler.strays, clock=clock, on_healed=lambda kind, what: told.append(kind), fault=fault
    )
    dog.look()
    clock.now = 10.0
    dog.look()
    await asyncio.sleep(0)
    return told


async def test_a_place_that_nobody_holds_comes_back_and_who_waits_gets_it() -> None:
    house = House(inflight=1, kept=1)
    (backend,) = house.backends.all
    Lease(backend, house.backends)  # and nobody has it
    flight = house.group.launch(spec())
    house.group.attach(flight, usage=True, whole=True)
    house.scheduler.submit(flight)
    await asyncio.sleep(0)
    assert backend.inflight == 1
    assert flight in house.scheduler.queue
    assert await healed_by(house) == ["place"]
    assert house.scheduler.flying == 1
    await house.scheduler.close()


async def test_a_flight_that_nobody_feeds_is_ended_with_a_500() -> None:
    house = House()
    flight = house.group.launch(spec())
    reader = house.group.attach(flight, usage=True, whole=True)
    assert await healed_by(house) == ["flight"]
    assert flight.error is not None
    assert flight.error.code is Code.INTERNAL
    assert len(house.group) == 0
    reader.leave()


async def test_a_turn_that_never_ran_is_run() -> None:
    house = House(inflight=1, kept=1)
    flight = house.group.launch(spec())
    house.group.attach(flight, usage=True, whole=True)
    house.scheduler.queue.enqueue(flight, 0.0)
    house.scheduler._turn_due = True  # as if what was called at the turn's end had been lost
    assert await healed_by(house) == ["turn"]
    assert house.scheduler.flying == 1
    await house.scheduler.close()


async def test_a_look_up_whose_reply_was_lost_has_found_nothing() -> None:
    house = House(store=True, kept=1)
    flight = Flight(FlightSpec(method="POST", path="/", body=b"{}", mode=Mode.WHOLE, request_id="r", key=b"k"))
    house.group.live.add(flight)
    house.group.attach(flight, usage=True, whole=True)
    house.scheduler.submit(flight)
    await asyncio.sleep(0)
    assert flight in house.scheduler.queue.looking
    assert await healed_by(house) == ["lookup"]
    assert house.scheduler.flying == 1
    await house.scheduler.close()


@pytest.mark.parametrize(("milliseconds", "patience"), [(0, 5.0), (100, 5.0), (2500, 5.0), (10_000, 20.0)])
def test_it_is_more_patient_than_a_look_up_may_take(milliseconds: int, patience: float) -> None:
    unused = cast(Any, None)
    settings = cast(Settings, SimpleNamespace(redis_timeout_ms=milliseconds))
    loop = cast(asyncio.AbstractEventLoop, SimpleNamespace(time=lambda: 0.0))
    assert _watchdog(settings, unused, None, unused, unused, loop)._patience == patience


@virtual
async def test_it_looks_each_second_and_a_look_that_fails_is_told_and_not_the_last() -> None:
    loop = asyncio.get_running_loop()
    looks: list[float] = []
    faults: list[str] = []

    def strays() -> list[Stray]:
        looks.append(loop.time())
        if len(looks) == 2:
            raise ValueError("no")
        return [Stray("flight", "x" * 300, list)]

    told: list[str] = []
    dog = Watchdog(
        strays,
        clock=loop.time,
        on_healed=lambda kind, what: told.append(what),
        fault=lambda where, e: faults.append(f"{where}: {e}"),
    )
    task = asyncio.create_task(dog.run())
    await asyncio.sleep(4.5)
    assert (looks, faults) == ([1.0, 2.0, 3.0, 4.0], ["the watchdog: no"])
    assert repr(dog) == "<Watchdog 1 suspects, 0 healed>"
    await asyncio.sleep(2.0)
    assert (told, dog.healed) == (["'" + "x" * 199], 1)
    assert repr(dog) == "<Watchdog 0 suspects, 1 healed>"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_what_was_mended_is_stray_anew_where_it_is_so_again() -> None:
    yard, healed = Yard(), []
    yard.strays = [Stray("turn", 1, lambda: healed.append(1)), Stray("place", 1, lambda: healed.append(2))]
    for seconds, count in ((0.0, 0), (5.0, 2), (0.0, 2), (4.9, 2), (0.1, 4)):
        yard.look(seconds)
        assert len(healed) == count
