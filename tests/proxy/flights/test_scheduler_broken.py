"""What one flight's part of the scheduler's work raises ends that flight and is told; the rest goes on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.exchange import Exchange
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.scheduler import AGAIN
from proxy.flights.spec import FlightSpec, Mode
from proxy.redis.cache import Stored
from proxy.upstream.backends import Backend, Lease
from tests.kit.clock import virtual
from tests.proxy.flights.test_scheduler import DONE, FRAME, House


def told() -> list[str]:
    """What is contained from now on, by where it was."""
    words: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: words.append(context["message"]))
    return words


def fails(*given: Any, **more: Any) -> Any:
    raise ZeroDivisionError


def once(act: Callable[..., Any], at: int = 1) -> Callable[..., Any]:
    """The same, but it raises at this call."""
    calls = 0

    def called(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise ZeroDivisionError
        return act(*given, **more)

    return called


def code_of(flight: Flight) -> Code | None:
    return flight.error.code if flight.error is not None else None


class Broken:
    """A store whose look-ups raise."""

    available, max_entry = True, 1 << 20

    def lookup(self, keys: Sequence[bytes], done: Callable[..., None], others: Sequence[bytes]) -> None:
        raise ZeroDivisionError

    def store(self, key: bytes, stored: Stored, settled: Callable[[], None], **more: Any) -> None:
        settled()


@virtual
async def test_a_look_up_that_cannot_be_sent_has_found_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    words, house = told(), House(kept=2, inflight=2)
    monkeypatch.setattr(house.scheduler, "_cache", Broken())
    flights = [house.ask(key)[0] for key in (b"a", b"b")]
    await house.turn()
    assert [flight.phase for flight in flights] == [Phase.PREFILL] * 2
    assert words == ["a look-up"]
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_of_a_look_up_s_reply_one_that_raises_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words, house = told(), House(kept=3, inflight=3, store=True)
    flights = [house.ask(key)[0] for key in (b"a", b"b", b"c")]
    await house.turn()
    monkeypatch.setattr(house.scheduler, "_dispatch", once(house.scheduler._dispatch, 2))
    house.store.answer()
    assert [code_of(flight) for flight in flights] == [None, Code.INTERNAL, None]
    assert [flights[n].phase for n in (0, 2)] == [Phase.PREFILL] * 2
    assert words == ["a look-up's reply"]
    assert len(house.group) == 2
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_who_has_its_turn_and_raises_there_ends_alone_and_the_next_has_the_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, house = told(), House(kept=3)
    house.ask()
    broken, other = house.ask()[0], house.ask()[0]
    monkeypatch.setattr(house.scheduler, "_taken", once(house.scheduler._taken))
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    await house.turn()
    assert (code_of(broken), other.phase, words) == (Code.INTERNAL, Phase.PREFILL, ["dispatching a flight"])
    assert len(house.group) == 1
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_what_raises_as_it_is_sent_gives_its_place_back_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    words, house = told(), House(kept=3)
    monkeypatch.setattr(Exchange, "begin", fails)
    flight, _ = house.ask()
    assert (code_of(flight), words) == (Code.INTERNAL, ["sending a flight to an engine"])
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_what_raises_as_it_is_submitted_is_let_go_and_told_to_who_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house = House(kept=3)
    monkeypatch.setattr(house.backends, "acquire", fails)
    flight = house.group.launch(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=b"k"))
    house.group.attach(flight, usage=True, whole=False)
    with pytest.raises(ZeroDivisionError):
        house.scheduler.submit(flight)
    assert (code_of(flight), flight.on_abandoned, house.group.find(b"k", stream=True)) == (
        Code.INTERNAL,
        None,
        None,
    )
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_where_no_engine_serves_it_a_flight_ends_with_that(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(kept=3)
    none = GatewayError(Code.NO_BACKEND, "none")

    def refuses(*given: Any, **more: Any) -> Lease:
        raise none

    monkeypatch.setattr(house.backends, "acquire", refuses)
    flight, _ = house.ask()
    assert (flight.error, flight.phase) == (none, Phase.FAILED)
    house.left_nothing()
    await house.scheduler.close()


@pytest.mark.parametrize("what", ["_landed", "_end"])
@virtual
async def test_whatever_an_answer_does_at_its_end_its_place_goes_back(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, house = told(), House(kept=3)
    flight, _ = house.ask()
    waits, _ = house.ask()
    monkeypatch.setattr(house.scheduler, what, once(getattr(house.scheduler, what)))
    if what == "_landed":
        house.engine.wire.head()
        house.engine.wire.body(FRAME + DONE)
    else:
        house.engine.wire.lose(GatewayError(Code.UPSTREAM_TOO_LARGE, "much"))
    await house.turn()
    assert flight.ended
    assert words == ["an answer's end"]
    assert waits.phase is Phase.PREFILL
    assert house.group.live == {waits}
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_a_place_whose_giving_back_raises_is_given_back_again(monkeypatch: pytest.MonkeyPatch) -> None:
    words, house = told(), House(kept=3)
    house.ask()
    monkeypatch.setattr(Lease, "release", once(Lease.release))
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    assert words == ["releasing a lease"]
    house.left_nothing()
    monkeypatch.setattr(Lease, "release", fails)
    house.ask()
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    assert words[1:] == ["releasing a lease"] * 2
    monkeypatch.undo()
    await house.scheduler.close()


@virtual
async def test_what_cannot_be_told_of_its_end_has_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    words, house = told(), House(kept=1)
    flight, _ = house.ask()
    error = GatewayError(Code.UPSTREAM_TOO_LARGE, "much")
    monkeypatch.setattr(Flight, "fail", fails)
    house.engine.wire.lose(error)
    assert (flight.error, flight.finished, words) == (error, True, ["the end of a flight"])
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_what_cannot_be_counted_has_landed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    words, house = told(), House(kept=1)
    flight, _ = house.ask()
    monkeypatch.setattr(house.metrics, "flight_landed", fails)
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    assert (flight.phase, words) == (Phase.LANDED, ["counting a flight"])
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_a_turn_follows_what_was_contained(monkeypatch: pytest.MonkeyPatch) -> None:
    told()
    house = House(kept=2)
    house.ask()
    waits, _ = house.ask()
    await house.turn()
    soon = house.scheduler._soon
    monkeypatch.setattr(house.scheduler, "_soon", lambda: None)  # a wake-up is lost
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    monkeypatch.setattr(house.scheduler, "_soon", soon)
    await house.turn()
    assert [waits.phase] == [Phase.QUEUED]
    house.scheduler._fault("a test", ZeroDivisionError())
    await asyncio.sleep(2 * AGAIN)
    assert waits.phase is Phase.PREFILL
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_of_an_engine_that_is_gone_every_journey_there_hears_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, house, heard = told(), House(kept=3, inflight=3), list[Flight]()
    flights = [house.ask()[0] for _ in range(3)]

    def hears(exchange: Exchange) -> None:
        heard.append(exchange.flight)
        if exchange.flight is flights[0]:
            raise ZeroDivisionError

    engine = house.backends.all[0]
    house.scheduler._tell_exchanges(hears, engine)
    assert (heard, words) == (flights, ["an engine that is down"])
    house.scheduler._tell_exchanges(hears, Backend("e1", engine.pool, 1))
    assert len(heard) == 3
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_what_nobody_would_end_any_more_is_found_and_what_is_under_way_is_not() -> None:
    house = House(kept=2, inflight=2, store=True)
    flying, _ = house.ask()
    looking, _ = house.ask(b"a")
    await house.turn()
    fed = house.group.launch(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=None))
    lost = house.group.launch(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=None))
    over = house.group.launch(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=None))
    over.cancel()
    engine = house.backends.all[0]
    engine.inflight += 1
    strays = {(stray.kind, stray.what): stray for stray in house.scheduler.strays(lambda flight: flight is fed)}
    assert set(strays) == {("lookup", looking), ("place", "e0"), ("flight", lost), ("flight", over)}
    strays["place", "e0"].heal()
    assert engine.inflight == 1
    strays["lookup", looking].heal()
    assert looking.phase is Phase.PREFILL
    for flight in (lost, over):
        strays["flight", flight].heal()
    assert (code_of(lost), house.group.live) == (Code.INTERNAL, {flying, looking, fed})
    house.group.remove(fed)
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_with_a_window_a_look_up_waits_for_company_until_it_closes() -> None:
    house = House(kept=1, store=True)
    queue = house.scheduler.queue
    queue.window = queue._lookups.window = 5.0
    house.ask(b"a")
    await asyncio.sleep(4.0)
    house.ask(b"b")
    await house.turn()
    assert house.store.asked == []
    await asyncio.sleep(1.0)
    await house.turn()
    assert [keys for keys, _ in house.store.asked] == [[b"a", b"b"]]
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_one_that_cannot_wait_again_ends_with_why_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    words, house = told(), House(kept=1)
    late = GatewayError(Code.DEADLINE_UNMEETABLE, "late")
    flights = [house.group.launch(FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=None)) for _ in range(2)]
    for flight, error in zip(flights, (late, ZeroDivisionError()), strict=True):

        def refuses(*given: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(RequestQueue, "enqueue", refuses)
        house.scheduler._enqueue_again(flight, 0.0)
    assert [code_of(flight) for flight in flights] == [Code.DEADLINE_UNMEETABLE, Code.INTERNAL]
    assert words == ["queueing a flight again"]
    assert b'why="deadline_unmeetable"} 1' in house.metrics.render("text/plain")[0]
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_after_the_end_nothing_waits_at_the_head_of_the_queue_again() -> None:
    house = House(kept=1, ticket=lambda flight: Ticket())
    house.ask()
    (exchange,) = house.scheduler._flying.values()
    assert house.scheduler.requeue(exchange)
    assert exchange.flight in house.scheduler.queue
    await house.turn()
    assert repr(house.scheduler) == "<Scheduler <RequestQueue arrived=0 looking=0 missed=0> flying=1>"
    assert house.scheduler.flying == 1
    await house.scheduler.close()
    assert not house.scheduler.requeue(exchange)
    assert house.scheduler.queue.next_overdue() == math.inf
    house.left_nothing()
