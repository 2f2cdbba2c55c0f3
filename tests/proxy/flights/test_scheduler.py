"""The loop that feeds Flights: what waits, what flies and what is looked up, and that closing ends all of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.continuing import Continuations
from proxy.flights.exchange import ExchangeContext
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.ingest import StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.estimates import MIN_SAMPLES
from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.scheduler import AGAIN, MAX_FAILED_TURNS, Scheduler
from proxy.flights.spec import FlightSpec, Mode, QueueState
from proxy.redis.cache import Cache, Stored
from proxy.telemetry import raised
from proxy.telemetry.metrics import Metrics
from proxy.upstream.backends import Backend, Backends
from proxy.upstream.http.pool import Pool
from tests.kit.clock import virtual
from tests.kit.trip import MemoryEngine, Wire

FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Store:
    """A store in memory whose answers come when the test says so, or at once where it is away."""

    max_entry = 1 << 20

    def __init__(self) -> None:
        self.available = True
        self.asked: list[tuple[list[bytes], Callable[[list[Stored | None]], None]]] = []
        self.storing: list[Callable[[], None]] = []

    def lookup(
        self,
        keys: Sequence[bytes],
        done: Callable[[list[Stored | None]], None],
        others: Sequence[bytes] = (),
    ) -> None:
        if self.available:
            self.asked.append((list(keys), done))
        else:
            done([None] * len(keys))

    def store(
        self,
        key: bytes,
        stored: Stored,
        settled: Callable[[], None],
        *,
        replace: bool = True,
        asked: float = 0.0,
        fence: bytes = b"",
    ) -> bool:
        self.storing.append(settled)
        return True

    def answer(self) -> None:
        keys, done = self.asked.pop(0)
        done([None] * len(keys))


class House:
    """A scheduler with one engine and one store, both in memory."""

    def __init__(
        self,
        *,
        inflight: int = 1,
        kept: int = 0,
        store: bool = False,
        limit: int = 10_000,
        batch: int = 64,
        timeout: float = math.inf,
        ticket: Callable[[Flight], Ticket] = lambda flight: Ticket(),
    ):
        loop = asyncio.get_running_loop()
        self.engine = MemoryEngine()
        self.engine.idle = [Wire() for _ in range(kept)]
        self.backends = Backends([Backend("e0", cast(Pool, self.engine), inflight)])
        self.group = FlightGroup()
        self.store = Store()
        self.metrics = Metrics()
        limits = StreamLimits()
        self.scheduler = Scheduler(
            ExchangeContext(
                backends=self.backends,
                timeouts=Timeouts(limits, loop),
                metrics=self.metrics,
                later=loop.call_later,
                fault=raised,
                continuations=Continuations(loop.call_later, loop.time, keep_alive=0.0),
            ),
            group=self.group,
            request_queue=RequestQueue(limit=limit, max_batch=batch, timeout=timeout, ticket=ticket),
            cache=cast(Cache, self.store) if store else None,
            loop=loop,
        )

    def ask(self, key: bytes | None = None) -> tuple[Flight, Subscriber]:
        flight = self.group.launch(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=key))
        reader = self.group.attach(flight, usage=True, whole=False)
        self.scheduler.submit(flight)
        return flight, reader

    async def turn(self) -> None:
        for _ in range(4):
            await asyncio.sleep(0)

    def left_nothing(self) -> None:
        assert len(self.group) == 0
        assert self.backends.all[0].inflight == 0
        assert repr(self.scheduler) == "<Scheduler <RequestQueue arrived=0 looking=0 missed=0> flying=0>"
        assert all(wire.receiver is None for wire in self.engine.wires)


@virtual
async def test_with_a_place_free_and_no_store_a_flight_departs_at_once() -> None:
    house = House(kept=1)
    flight, _ = house.ask()
    phases = [flight.phase]
    house.engine.wire.head()
    house.engine.wire.body(FRAME + DONE)
    assert [*phases, flight.phase] == [Phase.PREFILL, Phase.LANDED]
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_who_waits_departs_as_a_place_is_free_in_order() -> None:
    house = House(kept=3)
    flights = [house.ask()[0] for _ in range(3)]
    for n in range(3):
        await house.turn()
        assert [flight.phase for flight in flights[n:]] == [Phase.PREFILL, *[Phase.QUEUED] * (2 - n)]
        house.engine.wire.head()
        house.engine.wire.body(DONE)
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_who_waits_for_longer_than_may_be_is_told_so_each_at_its_time() -> None:
    house = House(kept=2, timeout=10.0)
    loop, ends = asyncio.get_running_loop(), []
    first, _ = house.ask()
    waits = []
    for _ in range(2):
        flight, _ = house.ask()
        flight.on_end = lambda flight: ends.append((loop.time(), flight.error and flight.error.code))
        waits.append(flight)
        await asyncio.sleep(4.0)
    await asyncio.sleep(20.0)
    assert ends == [(10.0, Code.QUEUE_TIMEOUT), (14.0, Code.QUEUE_TIMEOUT)]
    assert [flight.phase for flight in waits] == [Phase.FAILED] * 2
    assert first.phase is Phase.PREFILL, "who has a place keeps it"
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_who_joined_what_has_waited_for_too_long_waits_for_its_own_time() -> None:
    house = House(kept=2, timeout=10.0)
    first, _ = house.ask()
    flight, early = house.ask(b"key")
    await asyncio.sleep(8.0)
    late = house.group.attach(flight, usage=True, whole=False, attached=True, owner="late")
    house.scheduler.promote(flight, 1, math.inf, late)
    await asyncio.sleep(3.0)
    assert early.flight.error is not None
    assert early.flight.error.code is Code.QUEUE_TIMEOUT
    assert (late.flight, flight.subscribers) == (flight, {late})
    phases = [flight.phase]
    for _ in range(2):
        house.engine.wire.head()
        house.engine.wire.body(DONE)
        await house.turn()
        phases.append(flight.phase)
    assert phases == [Phase.QUEUED, Phase.PREFILL, Phase.LANDED]
    assert first.ended
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_who_joins_later_and_leaves_time_for_it_makes_what_waits_one_that_may_be_answered() -> None:
    house = House(kept=2)
    first, _ = house.ask()
    flight = house.group.launch(
        FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=b"key"), QueueState(deadline=5.0, latest=5.0)
    )
    house.group.attach(flight, usage=True, whole=False)
    house.scheduler.submit(flight)
    for _ in range(MIN_SAMPLES):
        house.scheduler.queue.estimates.record_answer(None, 60.0)
    patient = house.group.attach(flight, usage=True, whole=False, attached=True)
    house.scheduler.promote(flight, 1, math.inf, patient)
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    await house.turn()
    assert (first.phase, flight.phase) == (Phase.LANDED, Phase.PREFILL)
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_a_place_that_is_free_is_not_taken_by_one_that_came_later() -> None:
    house = House(kept=3)
    first, second = house.ask()[0], house.ask()[0]
    house.engine.wire.head()
    house.engine.wire.body(DONE)  # the place is free; the turn in which it is given away has not come
    third = house.ask()[0]
    await house.turn()
    assert [flight.phase for flight in (first, second, third)] == [Phase.LANDED, Phase.PREFILL, Phase.QUEUED]
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_a_place_freed_while_only_look_ups_wait_is_taken_once_they_are_answered() -> None:
    house = House(kept=2, store=True)
    first, _ = house.ask()
    second, _ = house.ask(b"k")
    await house.turn()
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    await house.turn()
    assert (first.phase, second.phase) == (Phase.LANDED, Phase.QUEUED)
    house.store.answer()
    assert second.phase is Phase.PREFILL
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_what_arrives_during_a_look_up_is_the_next_one() -> None:
    house = House(inflight=9, kept=9, store=True)
    house.ask(b"a")
    house.ask(b"b")
    await house.turn()
    house.ask(b"c")
    house.ask(b"d")
    await house.turn()
    assert [keys for keys, _ in house.store.asked] == [[b"a", b"b"]]
    house.store.answer()
    await house.turn()
    assert [keys for keys, _ in house.store.asked] == [[b"c", b"d"]]
    await house.scheduler.close()
    house.store.answer()
    house.left_nothing()


@virtual
async def test_a_look_up_whose_clients_have_left_takes_nothing_of_the_next_one_along() -> None:
    house = House(kept=1, store=True)
    _, leaver = house.ask(b"a")
    await house.turn()
    leaver.leave()
    flight, _ = house.ask(b"b")
    await house.turn()
    assert [len(keys) for keys, _ in house.store.asked] == [1, 1]
    house.store.answer()
    house.store.answer()
    await house.turn()
    assert flight.phase is Phase.PREFILL
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_a_store_that_goes_away_with_thousands_waiting_ends_every_look_up() -> None:
    house = House(store=True, batch=1)
    flights = [house.ask(b"%d" % n)[0] for n in range(3000)]
    await house.turn()
    house.store.available = False
    house.store.answer()
    for _ in range(3000):
        await asyncio.sleep(0)
    assert repr(house.scheduler.queue) == "<RequestQueue arrived=0 looking=0 missed=2999>"
    assert flights[0].phase is Phase.CONNECTING
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_a_request_that_cannot_be_written_ends_before_submit_returns_and_its_reader_may_leave() -> None:
    house = House(kept=1)
    house.engine.refuses = GatewayError(Code.INVALID_HEADER, "a line break")
    flight, reader = house.ask()
    assert flight.error is house.engine.refuses
    reader.leave()
    assert flight.phase is Phase.FAILED
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_with_the_queue_full_a_flight_is_refused_and_forgotten() -> None:
    house = House(kept=1, limit=1)
    house.ask()
    house.ask()
    with pytest.raises(GatewayError) as refused:
        house.ask()
    assert refused.value.code is Code.QUEUE_FULL
    assert len(house.group) == 2
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_closing_ends_flights_in_every_phase_and_looks_nothing_up_any_more() -> None:
    house = House(inflight=4, kept=3, store=True)
    stored = house.ask(b"stored")[0]
    await house.turn()
    house.store.answer()
    house.engine.wire.head()
    house.engine.wire.body(FRAME + DONE)
    streaming = house.ask()[0]
    house.engine.wire.head()
    house.engine.wire.body(FRAME)
    prefill, connecting, dialling = (house.ask()[0] for _ in range(3))
    await house.turn()
    starting = house.ask()[0]  # its task has not had its first turn
    waiting = house.ask()[0]
    looking = house.ask(b"looking")[0]
    await house.turn()
    arrived = house.ask(b"arrived")[0]
    cut = [streaming, prefill, connecting, dialling, starting, waiting, looking, arrived]
    await house.scheduler.close()
    assert stored.phase is Phase.LANDED
    assert [flight.phase for flight in cut] == [Phase.FAILED] * len(cut)
    assert {flight.error.code for flight in cut if flight.error} == {Code.SHUTTING_DOWN}
    house.store.answer()  # what was under way comes too late
    assert house.group.live == {stored}
    house.store.storing.pop()()
    house.left_nothing()
    with pytest.raises(GatewayError) as refused:
        house.ask()
    assert refused.value.code is Code.SHUTTING_DOWN
    await house.turn()
    house.left_nothing()


@pytest.mark.parametrize("when", ["waiting", "looking", "prefill", "streaming", "connecting"])
@virtual
async def test_the_last_reader_s_leaving_ends_a_flight_wherever_it_is(when: str) -> None:
    house = House(kept=0 if when == "connecting" else 1, store=True)
    other = house.ask()[1] if when == "waiting" else None
    flight, reader = house.ask(b"k" if when == "looking" else None)
    await house.turn()
    if when == "streaming":
        house.engine.wire.head()
        house.engine.wire.body(FRAME)
    reader.leave()
    assert flight.phase is Phase.CANCELLED
    if when == "looking":
        house.store.answer()
    if other is not None:
        other.leave()
    await house.turn()
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_what_a_look_up_leaves_no_time_for_ends_with_its_reason_and_is_counted() -> None:
    house = House(kept=1, store=True, ticket=lambda flight: Ticket(latest=flight.queue_state.latest))
    house.ask()
    await house.turn()
    flight = house.group.launch(
        FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=b"key"), QueueState(latest=5.0)
    )
    house.group.attach(flight, usage=True, whole=False)
    house.scheduler.submit(flight)
    await house.turn()
    for _ in range(MIN_SAMPLES):
        house.scheduler.queue.estimates.record_answer(None, 60.0)
    house.store.answer()
    assert flight.error is not None
    assert flight.error.code is Code.DEADLINE_UNMEETABLE
    assert 'queue_refused_total{why="deadline_unmeetable"} 1' in house.metrics.render("text/plain")[0].decode()
    assert len(house.group) == 1
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_all_that_comes_in_one_turn_of_the_loop_is_looked_at_in_one_turn() -> None:
    house = House(kept=1)
    for _ in range(4):
        house.ask()
    assert [(stray.kind, stray.what) for stray in house.scheduler.strays()] == [("turn", 0)]
    await asyncio.sleep(0)
    assert (list(house.scheduler.strays()), house.scheduler._turns) == ([], 1)
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_after_it_has_closed_no_turn_follows_what_is_contained() -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, words: told.append(words["message"]))
    house = House()
    turns = []
    for closed in (False, True):
        if closed:
            await house.scheduler.close()
        before = house.scheduler._turns
        house.scheduler._fault("a test", ZeroDivisionError())
        await asyncio.sleep(1.0)
        turns.append(house.scheduler._turns - before)
    assert (turns, told) == ([1, 0], ["a test"] * 2)
    house.left_nothing()


@virtual
async def test_only_so_many_turns_that_raise_in_a_row_give_up_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda _, words: None)
    house, failed = House(kept=3), 0
    house.ask()
    flight, _ = house.ask()
    await house.turn()

    def fails(now: float) -> list[Flight]:
        nonlocal failed
        failed += 1
        raise ZeroDivisionError

    for _ in range(2):  # with a good turn between, of which the second row knows nothing
        with monkeypatch.context() as broken:
            broken.setattr(house.scheduler.queue, "due", fails)
            house.scheduler._soon()
            await asyncio.sleep(AGAIN * (MAX_FAILED_TURNS - 1.5))
        await asyncio.sleep(2 * AGAIN)
    assert (failed, flight.phase) == (2 * (MAX_FAILED_TURNS - 1), Phase.QUEUED)
    monkeypatch.setattr(house.scheduler.queue, "due", fails)
    house.scheduler._soon()
    await asyncio.sleep(AGAIN * (MAX_FAILED_TURNS - 0.5))
    assert flight.error is not None
    assert flight.error.code is Code.INTERNAL
    later, _ = house.ask()
    await house.turn()
    assert later.phase is Phase.QUEUED
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_one_that_cannot_be_told_that_it_waited_too_long_keeps_it_from_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, words: told.append(words["message"]))
    house = House(kept=1, timeout=10.0)
    house.ask()
    broken, other = house.ask()[0], house.ask()[0]
    refuse = Flight.refuse

    def fails(flight: Flight, *given: Any) -> bool:
        if flight is broken:
            raise ZeroDivisionError
        return refuse(flight, *given)

    monkeypatch.setattr(Flight, "refuse", fails)
    await asyncio.sleep(11.0)
    assert [flight.error and flight.error.code for flight in (broken, other)] == [
        Code.INTERNAL,
        Code.QUEUE_TIMEOUT,
    ]
    assert told == ["a flight that is overdue"]
    await house.scheduler.close()
    house.left_nothing()
