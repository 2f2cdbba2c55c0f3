"""Which flights go to an engine at once, which are answered from the store, and which the end takes along."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights import scheduler as module
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.scheduler import MAX_FAILED_TURNS
from proxy.flights.spec import FlightSpec, Mode, QueueState
from proxy.redis.cache import Stored
from proxy.wire.openai import decode
from tests.kit.clock import virtual
from tests.proxy.flights.test_scheduler import House
from tests.proxy.flights.test_scheduler_twins import BODY, carried, twins


def submitted(house: House, *, merge: bool) -> Flight:
    spec = FlightSpec("POST", "/", BODY, Mode.WHOLE, "r", api_request=decode("chat", BODY), model="m")
    flight = house.group.launch(spec, QueueState(merge=merge))
    house.group.attach(flight, usage=True, whole=True)
    house.scheduler.submit(flight)
    return flight


@virtual
async def test_only_a_flight_that_may_have_twins_waits_for_the_turn_and_for_no_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(inflight=9, kept=9)
    assert twins(house, 1)[0].phase is Phase.PREFILL, "the first of its prompt"

    def no_timer(*given: Any) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(house.scheduler._timers, "set", no_timer)
    assert submitted(house, merge=False).phase is Phase.PREFILL
    last = submitted(house, merge=True)
    phases = [last.phase]
    await house.turn()
    assert [*phases, last.phase] == [Phase.QUEUED, Phase.PREFILL]
    monkeypatch.undo()
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_at_the_end_engines_stop_what_is_under_way() -> None:
    house = House(kept=1)
    flight, _ = house.ask()
    wire = house.engine.wire
    await house.scheduler.close()
    assert flight.error is not None
    assert (flight.error.code, wire.kept) == (Code.SHUTTING_DOWN, False)
    assert house.scheduler.flying == 0
    house.left_nothing()


@pytest.mark.parametrize(
    ("makes", "replays", "lands"), [(True, True, True), (True, False, False), (False, True, False)]
)
@virtual
async def test_an_entry_that_does_not_serve_leaves_the_flight_to_an_engine(
    monkeypatch: pytest.MonkeyPatch, makes: bool, replays: bool, lands: bool
) -> None:
    house = House(kept=1, store=True)
    flight, _ = house.ask(b"k")
    await house.turn()

    def replay(flight: Flight, stored: Stored) -> bool:
        if replays:
            for phase in (Phase.STREAMING, Phase.LANDED):
                flight.enter(phase)
        return replays

    monkeypatch.setattr(house.backends, "makes", lambda *given: makes)
    monkeypatch.setattr(module, "replay", replay)
    _, done = house.store.asked.pop()
    done([Stored(kind="whole", created=1.0, body=b"{}")])
    assert flight.phase is (Phase.LANDED if lands else Phase.PREFILL)
    assert flight.replace is not makes
    await house.scheduler.close()


@virtual
async def test_a_merged_flight_that_ends_before_its_next_attempt_ends_its_members() -> None:
    house = House(kept=9)
    _, reader = house.ask()
    flights = twins(house, 2)
    await house.turn()
    reader.leave()
    await house.turn()
    merged, _ = carried(house)
    error = GatewayError(Code.QUEUE_TIMEOUT, "late")
    house.scheduler._end(merged, error)
    assert [flight.error for flight in flights] == [error, error]
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_a_flight_that_is_at_an_engine_leaves_the_queue() -> None:
    house = House(kept=1)
    flight, _ = house.ask()
    assert house.scheduler._take(flight) is True
    assert house.engine.wire.asked == 1
    await house.scheduler.close()


@virtual
async def test_so_many_turns_may_fail_and_a_good_one_forgets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()
    house.ask()
    flight, _ = house.ask()
    assert flight.phase is Phase.QUEUED

    def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(house.scheduler, "_fault", lambda *given: None)
    for _ in range(2):
        with monkeypatch.context() as broken:
            broken.setattr(house.scheduler, "_serve_queue", fails)
            for _ in range(MAX_FAILED_TURNS - 1):
                house.scheduler._turn()
        assert not flight.ended
        house.scheduler._turn()
    monkeypatch.setattr(house.scheduler, "_serve_queue", fails)
    for _ in range(MAX_FAILED_TURNS):
        assert not flight.ended
        house.scheduler._turn()
    assert flight.ended
    await house.scheduler.close()
