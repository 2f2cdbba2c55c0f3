"""One flight's turn: it leaves the queue where it is served, refused or broken, and its twins leave with it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode, QueueState, new_id
from tests.kit.clock import virtual
from tests.proxy.flights.test_scheduler import DONE, House
from tests.proxy.flights.test_scheduler_twins import twins

LATE = GatewayError(Code.DEADLINE_UNMEETABLE, "late")


def queued(house: House, **state: Any) -> Flight:
    """A flight behind one that has the only place."""
    if not house.scheduler.flying:
        house.ask()
    flight = house.group.launch(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r"), QueueState(**state))
    house.group.attach(flight, usage=True, whole=False)
    house.scheduler.submit(flight)
    return flight


def test_names_of_our_own_are_of_128_bits() -> None:
    assert [len(new_id()), len({new_id() for _ in range(9)})] == [32, 9]


@virtual
async def test_a_flight_that_is_served_refused_or_broken_is_taken_and_one_without_a_place_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(kept=3)
    flight, late, broken = queued(house), queued(house, latest=100.0), queued(house)
    await house.turn()
    assert house.scheduler._take(flight) is False
    house.engine.wire.head()
    with monkeypatch.context() as still:
        still.setattr(house.scheduler, "_soon", lambda: None)
        house.engine.wire.body(DONE)
    assert house.scheduler._take(flight) is True
    assert flight.phase is Phase.PREFILL
    with monkeypatch.context() as hurried:
        hurried.setattr(house.scheduler.queue, "too_late", lambda *given: LATE)
        before = len(house.scheduler.queue)
        assert house.scheduler._take(late) is True
        assert (late.error, len(house.scheduler.queue)) == (LATE, before - 1)

    def fails(*given: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as faulty:
        faulty.setattr(house.scheduler, "_fault", lambda *given: None)
        faulty.setattr(house.scheduler, "_taken", fails)
        assert house.scheduler._take(broken) is True
    assert broken.error is not None
    assert broken.error.code is Code.INTERNAL
    await house.scheduler.close()


@virtual
async def test_a_look_up_without_a_hit_waits_for_a_place_no_longer_than_it_may() -> None:
    house = House(kept=1, store=True, timeout=4.0)
    house.ask()
    flight, _ = house.ask(b"b")
    await house.turn()
    house.store.answer()
    assert flight.phase is Phase.QUEUED
    await asyncio.sleep(3.9)
    assert not flight.ended
    await asyncio.sleep(0.2)
    assert flight.error is not None
    assert flight.error.code is Code.QUEUE_TIMEOUT
    await house.scheduler.close()
    house.left_nothing()


@pytest.mark.parametrize(("joins", "both"), [(0.0, True), (0.5, False)])
@virtual
async def test_who_joined_at_the_same_time_waits_as_long(joins: float, both: bool) -> None:
    house = House(kept=1, timeout=4.0)
    house.ask()
    flight, first = house.ask(b"b")
    await asyncio.sleep(joins)
    second = house.group.attach(flight, usage=True, whole=False)
    house.scheduler.promote(flight, 1, 1e9, second)
    await asyncio.sleep(4.0 - joins + 0.1)
    assert first.flight.error is not None
    assert (second.flight.error is not None) is both
    await house.scheduler.close()
    for reader in (first, second):
        reader.leave()


@virtual
async def test_twins_leave_the_queue_with_the_one_whose_turn_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(kept=3)
    _, reader = house.ask()
    flights = twins(house, 3)
    await house.turn()
    assert len(house.scheduler.queue) == 3
    with monkeypatch.context() as still:
        still.setattr(house.scheduler, "_soon", lambda: None)
        reader.leave()
    assert house.scheduler._dispatch(flights[0])
    assert len(house.scheduler.queue) == 1, "the one itself is taken from the queue by who placed it"
    await house.scheduler.close()
    house.left_nothing()
