"""A journey's parts one by one: ids compared, engines that go, places that are waited for, and its own borders."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.exchange import GONE_SECONDS, ID_WITHIN, Exchange
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.telemetry.metrics import Metrics
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.retry import Budget, RetryRules
from tests.kit.clock import virtual
from tests.kit.trip import SSE, Trip, Wire
from tests.proxy.flights.test_exchange import CUT, DONE, FRAME, UNREACHABLE, answer


def told(text: str) -> bytes:
    """A frame with this id."""
    return FRAME.replace(b"{", b'{"id":"%b",' % text.encode(), 1)


def trip_to(*, echoes: bool | None = None, kept: int = 1, **more: Any) -> Trip:
    trip = Trip(kept=kept, **more)
    trip.backends.all[0].echoes = echoes
    trip.exchange.begin()
    return trip


@pytest.mark.parametrize(
    ("name", "kept", "before", "after"),
    [
        ("chatcmpl-r", 1, None, True),
        ("chatcmpl-r", 0, None, True),
        ("another", 0, None, False),
        ("another", 1, None, None),
        ("another", 0, True, False),
        ("r", 0, None, False),
    ],
)
@virtual
async def test_whether_an_engine_makes_ids_of_the_request_s_is_seen_on_new_connections(
    name: str, kept: int, before: bool | None, after: bool | None
) -> None:
    trip = trip_to(echoes=before, kept=kept)
    wire = trip.engines[0].wire if kept else await trip.dialled()
    wire.head()
    wire.body(told(name))
    assert trip.backends.all[0].echoes is after
    wire.body(DONE)
    assert trip.arrivals == [None]
    await trip.left_nothing()


@virtual
async def test_an_answer_on_a_kept_connection_that_nobody_asked_for_is_dropped_and_it_is_asked_anew() -> None:
    trip = trip_to(echoes=True, kept=2)
    stale = trip.engines[0].wire
    stale.head()
    stale.body(told("another"))
    assert (stale.kept, trip.flight.log, trip.flight.attempts, trip.retries()) == (False, [], 2, {"stale": 1})
    fresh = await trip.dialled()
    fresh.head()
    fresh.body(told("chatcmpl-r") + DONE)
    assert (trip.arrivals, len(trip.flight.log)) == ([None], 2)
    assert trip.backends.all[0].echoes is True
    await trip.left_nothing()


@pytest.mark.parametrize("cut", [1, 12, 18])
@virtual
async def test_an_id_that_comes_in_pieces_is_waited_for(cut: int) -> None:
    trip = trip_to(echoes=True, kept=2)
    wire = trip.engines[0].wire
    wire.head()
    data = told("another")
    wire.body(data[:cut])
    assert [wire.kept] == [None]
    wire.body(data[cut:])
    assert wire.kept is False
    await trip.dialled()
    trip.cancel()
    await trip.left_nothing()


@pytest.mark.parametrize("data", [b'data: {"x":"' + b"y" * ID_WITHIN, b"data: {}\n\n", b'data: {"id":5}\n\n'])
@virtual
async def test_where_no_id_is_it_is_not_looked_for_any_longer(data: bytes) -> None:
    trip = trip_to(echoes=True)
    wire = trip.engines[0].wire
    wire.head()
    assert trip.exchange.ingest is not None
    wire.body(data)
    assert (trip.exchange.ingest.vet, trip.exchange._begin, wire.kept) == (None, b"", None)
    trip.cancel()
    await trip.left_nothing()


@virtual
async def test_comments_before_a_frame_do_not_hide_its_id_and_an_engine_that_makes_none_is_not_looked_at() -> None:
    trip = trip_to(echoes=True, kept=2)
    wire = trip.engines[0].wire
    wire.head()
    wire.body(b": hello\n\n")
    assert trip.exchange.ingest is not None
    assert trip.exchange.ingest.vet is not None
    wire.body(told("another"))
    assert wire.kept is False
    await trip.dialled()
    trip.cancel()
    await trip.left_nothing()
    for echoes, mode in ((False, Mode.STREAM), (None, Mode.RAW)):
        other = trip_to(echoes=echoes, spec=FlightSpec("GET", "/", b"{}", mode, "r"))
        assert other.exchange.ingest is not None
        assert other.exchange.ingest.vet is None
        other.cancel()
        await other.left_nothing()


@pytest.mark.parametrize("comes", [False, True])
@virtual
async def test_an_engine_that_is_gone_has_so_long_and_as_long_again_where_something_came(comes: bool) -> None:
    trip = trip_to()
    wire, engine = trip.engines[0].wire, trip.backends.all[0]
    wire.head()
    wire.body(FRAME)
    engine.up, engine.detail = False, "it exited."
    trip.exchange.engine_gone()
    trip.exchange.engine_gone()
    await asyncio.sleep(GONE_SECONDS - 1.0)
    if comes:
        wire.body(FRAME)
    await asyncio.sleep(2.0)
    assert len(trip.arrivals) == (0 if comes else 1)
    await asyncio.sleep(GONE_SECONDS)
    (error,) = trip.arrivals
    assert error is not None
    assert (error.code, wire.kept) == (Code.UPSTREAM_TRUNCATED, False)
    assert error.message == "The engine is down (it exited) and sent nothing for 5 s."
    assert trip.counted("e0") == (1, 1)
    await trip.left_nothing()


@pytest.mark.parametrize("how", ["it is back", "it is held back", "it has ended", "it was left"])
@virtual
async def test_what_an_engine_that_was_gone_may_still_do(how: str) -> None:
    trip = trip_to()
    wire, engine = trip.engines[0].wire, trip.backends.all[0]
    wire.head()
    wire.body(FRAME)
    engine.up = False
    trip.exchange.engine_gone()
    if how == "it is back":
        engine.up = True
    elif how == "it is held back":
        assert trip.flight.throttle is not None
        trip.flight.throttle(True)
    elif how == "it has ended":
        wire.body(DONE)
    else:
        trip.cancel()
    await asyncio.sleep(3 * GONE_SECONDS)
    assert trip.arrivals == ([None] if how == "it has ended" else [])
    if how.startswith("it is"):
        if how == "it is back":
            engine.up = False
            trip.exchange.engine_gone()
            await asyncio.sleep(2 * GONE_SECONDS)
            assert len(trip.arrivals) == 1, "its timer is set anew"
        else:
            trip.cancel()
    await trip.left_nothing()


@pytest.mark.parametrize("what", ["engine_gone", "engine_silent"])
@virtual
async def test_untouched_it_moves_to_another_engine_that_runs_and_costs_no_budget(what: str) -> None:
    trip = trip_to(engines=2, budget=Budget(0, 0))
    trip.backends.all[0].up = False
    getattr(trip.exchange, what)()
    assert (trip.flight.backend, trip.inflight, trip.engines[0].wire.kept) == ("e1", [0, 1], False)
    assert trip.retries() == {"reset": 1}
    getattr(trip.exchange, what)()  # it has no connection yet: nothing follows
    answer(await trip.dialled(1))
    getattr(trip.exchange, what)()
    assert trip.arrivals == [None]
    await trip.left_nothing()


@virtual
async def test_an_engine_that_is_gone_untouched_and_without_another_ends_it_as_unreachable() -> None:
    trip = trip_to()
    trip.backends.all[0].up, trip.backends.all[0].detail = False, ""
    trip.exchange.engine_silent()
    assert trip.arrivals == []
    trip.exchange.engine_gone()
    await asyncio.sleep(GONE_SECONDS + 0.1)
    (error,) = trip.arrivals
    assert error is not None
    assert error.code is Code.UPSTREAM_UNREACHABLE
    await trip.left_nothing()


@virtual
async def test_back_at_the_head_of_the_queue_it_takes_a_place_or_ends_where_no_engine_is_left() -> None:
    trip = Trip(engines=2)
    trip.exchange.lease.release()
    trip.exchange._tried.add(trip.backends.all[0])
    trip.backends.all[0].max_inflight = trip.backends.all[1].max_inflight = 0
    assert not trip.exchange.resume()
    trip.backends.all[0].max_inflight = trip.backends.all[1].max_inflight = 1
    assert trip.exchange.resume()
    assert (trip.flight.backend, trip.inflight) == ("e1", [0, 1])
    answer(await trip.dialled(1))
    await trip.left_nothing()
    for last in (None, CUT):
        trip = Trip()
        trip.exchange.lease.release()
        trip.exchange._error = last
        none = GatewayError(Code.NO_BACKEND, "none")

        def refuses(*given: Any, none: GatewayError = none, **more: Any) -> None:
            raise none

        trip.backends.acquire = refuses  # type: ignore[method-assign]
        trip.backends.acquire_untried = lambda *given: None  # type: ignore[method-assign]
        assert trip.exchange.resume()
        assert trip.arrivals == [last or none]
        trip.watch.close()


@pytest.mark.parametrize("takes", [True, False])
@virtual
async def test_after_a_wait_with_no_engine_free_it_is_queued_or_ends(
    takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = Trip(retry=RetryRules(retries=1, backoff=1.0))
    queued: list[Exchange] = []

    def requeue(exchange: Exchange) -> bool:
        queued.append(exchange)
        return takes

    monkeypatch.setattr(trip, "requeue", requeue)
    trip.exchange.begin()
    await trip.dialled(error=UNREACHABLE)
    trip.backends.all[0].max_inflight = 0
    await asyncio.sleep(30.0)
    assert queued == [trip.exchange]
    assert trip.arrivals == ([] if takes else [UNREACHABLE])
    if takes:
        trip.cancel()
    await trip.left_nothing()


@virtual
async def test_one_that_cannot_be_told_of_its_arrival_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trip = trip_to()
    arrived, calls = trip.arrived, list[GatewayError | None]()

    def fails(exchange: Exchange, error: GatewayError | None) -> None:
        calls.append(error)
        if len(calls) == 1:
            raise ZeroDivisionError
        arrived(exchange, error)

    monkeypatch.setattr(trip, "arrived", fails)
    answer(trip.engines[0].wire)
    assert [error and error.code for error in calls] == [None, Code.INTERNAL]
    assert [type(fault) for fault in trip.faults] == [ZeroDivisionError]
    await trip.left_nothing()


@pytest.mark.parametrize("what", ["_on_refusal", "_detach", "record_success"])
@virtual
async def test_what_raises_in_an_exchange_ends_its_flight_with_a_500(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trip = trip_to()
    wire = trip.engines[0].wire
    calls = 0

    def fails(*given: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError

    if what == "record_success":
        monkeypatch.setattr(trip.backends, "record_success", fails)
    else:
        monkeypatch.setattr(Exchange, what, fails)
    if what == "_on_refusal":
        wire.head(503, [("content-type", "application/json")])
    else:
        answer(wire)
    ours = [error and error.code for error in trip.arrivals]
    assert ours == [Code.INTERNAL]
    assert [type(fault) for fault in trip.faults] == [ZeroDivisionError]
    monkeypatch.undo()
    if what == "_detach":
        trip.exchange._detach(content=False)
    trip.watch.close()


@virtual
async def test_a_request_that_cannot_be_sent_closes_its_connection_and_ends() -> None:
    trip = Trip(kept=1)

    def fails(request: bytes, receiver: Any) -> None:
        raise ZeroDivisionError

    wire = trip.engines[0].idle[0]
    wire.send = fails  # type: ignore[method-assign]
    trip.exchange.begin()
    (error,) = trip.arrivals
    assert error is not None
    assert (error.code, wire.kept, trip.inflight) == (Code.INTERNAL, False, [0])
    await trip.left_nothing()


@virtual
async def test_whose_connecting_raises_is_ended_and_awaited() -> None:
    trip = Trip()
    trip.exchange.begin()
    assert len(trip.tasks) == 1
    await trip.dialled(error=ZeroDivisionError())
    assert [error and error.code for error in trip.arrivals] == [Code.INTERNAL]
    await trip.left_nothing()


@virtual
async def test_what_comes_after_the_end_spoils_its_connection_alone() -> None:
    for more, kept in ((b"", True), (FRAME, False)):
        trip = trip_to()
        wire = trip.engines[0].wire
        wire.head()
        wire.body(FRAME + DONE + more)
        assert (trip.arrivals, wire.kept) == ([None], kept)
        await trip.left_nothing()


@virtual
async def test_our_own_shortage_speaks_for_the_engine_and_our_own_fault_for_nobody() -> None:
    for code, good in (
        (Code.MEMORY_FULL, 1),
        (Code.CONTENT_DENIED, 1),
        (Code.INTERNAL, 0),
        (Code.LOCAL_RESOURCES, 0),
    ):
        trip = trip_to(retry=RetryRules(retries=3))
        seen: list[Any] = []
        trip.backends.record_success = seen.append  # type: ignore[method-assign, assignment]
        trip.engines[0].wire.head()
        trip.engines[0].wire.lose(GatewayError(code, "why"))
        assert (len(seen), [error and error.code for error in trip.arrivals]) == (good, [code])
        assert trip.counted("e0") == (1, 0)
        await trip.left_nothing()


class Divided(Flight):
    divides = True


@pytest.mark.parametrize(("kind", "retried"), [(Flight, {"truncated": 1}), (Divided, {})])
@virtual
async def test_what_lacks_choices_is_asked_for_again_but_for_what_is_divided(
    kind: type[Flight], retried: dict[str, int]
) -> None:
    trip = Trip(engines=2, kept=1)
    trip.exchange.flight = trip.flight = kind(trip.flight.spec, trip.flight.clock)
    trip.exchange.begin()
    trip.engines[0].wire.head()
    trip.engines[0].wire.lose(GatewayError(Code.UPSTREAM_INCOMPLETE, "short"))
    assert trip.retries() == retried
    assert len(trip.arrivals) == (0 if retried else 1)
    trip.cancel()
    await trip.left_nothing()


@virtual
async def test_a_pacer_hears_of_first_tokens_and_of_those_that_left_without_one() -> None:
    heard: list[tuple[str, float]] = []

    class Told(AdaptiveLimit):
        def answered(self, sent: float, now: float) -> None:
            heard.append(("answered", now - sent))

        def left(self, sent: float, now: float) -> None:
            heard.append(("left", now - sent))

    for comes, cancelled, mode in (
        (True, True, Mode.STREAM),
        (False, False, Mode.STREAM),
        (False, True, Mode.WHOLE),
    ):
        trip = Trip(kept=1, spec=FlightSpec("POST", "/", b"{}", mode, "r", key=b"k"))
        trip.backends.all[0].adaptive_limit = Told()
        trip.exchange.begin()
        await asyncio.sleep(2.0)
        if comes:
            trip.engines[0].wire.head(200, SSE)
            trip.engines[0].wire.body(FRAME)
        if not cancelled:
            trip.flight.fail(CUT)
        trip.cancel()
        await trip.left_nothing()
    assert heard == [("answered", 2.0)]


@virtual
async def test_what_may_not_be_sent_twice_goes_on_a_new_connection() -> None:
    for method, fresh in (("POST", True), ("GET", False)):
        trip = Trip(kept=1, spec=FlightSpec(method, "/v1/files", b"{}", Mode.RAW, "r"))
        trip.exchange.begin()
        assert len(trip.engines[0].wires) == (0 if fresh else 1)
        assert trip.flight.phase is (Phase.CONNECTING if fresh else Phase.PREFILL)
        await trip.turn()
        trip.cancel()
        await trip.left_nothing()


@virtual
async def test_its_repr_tells_where_it_is() -> None:
    trip = trip_to()
    assert repr(trip.exchange) == f"<Exchange of {trip.flight!r} at e0>"
    assert isinstance(trip.engines[0].wire, Wire)
    assert isinstance(trip.metrics, Metrics)
    trip.cancel()
    await trip.left_nothing()
