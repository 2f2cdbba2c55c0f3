"""Twins in the scheduler: carried together, taught of apart, and let go; and what is given up is forgotten."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.errors import Code
from proxy.flights.exchange import Exchange
from proxy.flights.flight import Flight
from proxy.flights.merging.merged_flight import MergedFlight
from proxy.flights.merging.merger import Merger
from proxy.flights.phase import Phase
from proxy.flights.queue.ticket import twin_of
from proxy.flights.spec import FlightSpec, Mode, QueueState
from proxy.wire.openai import decode
from tests.kit.clock import virtual
from tests.proxy.flights.test_scheduler import House

BODY = b'{"model":"m","messages":[{"role":"user","content":"x"}]}'
JSON = [("content-type", "application/json")]


def twins(house: House, count: int, *, window: float = 0.0) -> list[Flight]:
    """Sampled twins that come in one turn of the loop, at an engine that merges."""
    scheduler = house.scheduler
    scheduler._merger = Merger(8, limit=1 << 20, window=window, on_member=scheduler._member_ended)
    scheduler.queue._twin = twin_of
    house.backends.all[0].list_models([{"id": "m", "owned_by": "vllm"}])
    flights = []
    for _ in range(count):
        spec = FlightSpec("POST", "/", BODY, Mode.WHOLE, "r", api_request=decode("chat", BODY), model="m")
        flight = house.group.launch(spec, QueueState(merge=True))
        house.group.attach(flight, usage=True, whole=True)
        scheduler.submit(flight)
        flights.append(flight)
    return flights


def body_of(count: int) -> bytes:
    said = [{"index": n, "message": {"content": f"c{n}"}, "finish_reason": "stop"} for n in range(count)]
    usage = {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    return json.dumps({"id": "i", "choices": said, "usage": usage}).encode()


def answered(house: House, status: int, body: bytes) -> None:
    wire = house.engine.wire
    wire.head(status, JSON)
    wire.body(body)
    receiver, wire.receiver = wire.receiver, None
    assert receiver is not None
    receiver.end()


def carried(house: House) -> tuple[MergedFlight, list[int]]:
    (merged,) = [flight for flight in house.scheduler._flying if isinstance(flight, MergedFlight)]
    return merged, [json.loads(merged.spec.body)["n"]]


@virtual
async def test_twins_that_wait_for_one_place_go_together_and_each_is_taught_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house, learned = House(kept=3), list[Flight]()
    house.scheduler._on_complete = learned.append
    _, reader = house.ask()
    flights = twins(house, 3)
    await house.turn()
    reader.leave()
    await house.turn()
    merged, count = carried(house)
    assert (count, len(house.scheduler.queue), house.scheduler.flying) == ([3], 0, 1)
    told: list[Any] = []
    monkeypatch.setattr(house.metrics, "flight_landed", lambda *given: told.append(given))
    answered(house, 200, body_of(3))
    assert [flight.phase for flight in flights] == [Phase.LANDED] * 3
    assert (learned, house.group.live) == (flights, set())
    assert told == [("landed", "m", None, 8)]
    assert merged.phase is Phase.LANDED
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_twins_that_an_engine_did_not_do_together_wait_for_a_place_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for status, body in ((400, b"{}"), (200, body_of(1))):
        house = House(kept=9)
        house.ask()[1].leave()
        blocker, reader = house.ask()
        flights = twins(house, 2)
        await house.turn()
        reader.leave()
        await house.turn()
        carried(house)
        errors = list[Any]()
        monkeypatch.setattr(house.metrics, "upstream_error", lambda *given, errors=errors: errors.append(given))
        answered(house, status, body)
        await house.turn()
        alone = [flight for flight in flights if flight.phase is Phase.PREFILL]
        assert len(alone) == 1, "one place at a time"
        assert house.backends.all[0].few or status == 400
        assert errors == ([("e0", Code.UPSTREAM_INCOMPLETE.code)] if status == 200 else [])
        assert blocker.ended
        await house.scheduler.close()
        house.left_nothing()


@pytest.mark.parametrize(("status", "few"), [(400, False), (422, False), (404, True), (200, True)])
@virtual
async def test_an_engine_that_refuses_a_twin_alone_too_is_sent_several_together_again(
    status: int, few: bool
) -> None:
    house = House(kept=9)
    _, reader = house.ask()
    flights = twins(house, 2)
    await house.turn()
    reader.leave()
    await house.turn()
    answered(house, 400, b"{}")
    await house.turn()
    assert house.backends.all[0].few
    answered(house, status, body_of(1) if status == 200 else b"{}")
    assert house.backends.all[0].few is few
    assert sum(flight.ended for flight in flights) == 1
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_the_last_twin_to_leave_stops_the_engine_and_the_place_is_free() -> None:
    house = House(kept=5)
    _, reader = house.ask()
    flights = twins(house, 2)
    await house.turn()
    reader.leave()
    await house.turn()
    merged, _ = carried(house)
    for flight in flights:
        (one,) = flight.subscribers
        one.leave()
    assert (merged.phase, [flight.phase for flight in flights]) == (Phase.CANCELLED, [Phase.CANCELLED] * 2)
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_in_a_look_up_s_reply_one_that_left_keeps_nothing_from_those_after_it() -> None:
    house = House(kept=2, inflight=2, store=True)
    _, leaver = house.ask(b"a")
    flight, _ = house.ask(b"b")
    await house.turn()
    leaver.leave()
    house.store.answer()
    assert flight.phase is Phase.PREFILL
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_what_is_let_go_is_forgotten_and_has_ended_even_where_its_end_raises(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, words: None)
    house = House(kept=1)
    flight, _ = house.ask(b"k")

    def fails(*given: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(house.scheduler, "_end", fails)
        house.scheduler.abandon(flight)
    assert flight.error is not None
    assert (flight.error.code, flight.finished, len(house.group)) == (Code.INTERNAL, True, 0)
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_once_it_is_closed_no_task_of_its_own_runs() -> None:
    house = House(inflight=3)
    flights = [house.ask()[0] for _ in range(2)]
    tasks = set(house.scheduler._tasks)
    assert len(tasks) == 2
    await house.turn()
    await house.scheduler.close()
    assert all(task.done() for task in tasks)
    assert house.scheduler._tasks == set()
    assert [flight.head for flight in flights] == [None] * 2
    house.left_nothing()


@virtual
async def test_a_carrier_that_cannot_be_sent_ends_each_of_its_riders_and_gives_its_place_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: words.append(context["message"]))
    house = House(kept=3)
    _, reader = house.ask()
    flights = twins(house, 2)
    await house.turn()

    def fails(*given: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Exchange, "begin", fails)
    reader.leave()
    await house.turn()
    assert [flight.error and flight.error.code for flight in flights] == [Code.INTERNAL] * 2
    assert words == ["sending a flight to an engine"]
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_after_a_turn_that_raised_the_queue_is_put_in_order_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, context: None)
    house, rebuilt = House(kept=1), list[int]()
    queue = house.scheduler.queue

    def fails(now: float) -> list[Flight]:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(queue, "due", fails)
        broken.setattr(queue, "rebuild", lambda: rebuilt.append(1))
        house.scheduler._turn()
    assert rebuilt == [1]
    house.scheduler._turn()
    assert rebuilt == [1]
    await house.scheduler.close()
    house.left_nothing()
