"""Asked again: after what, where, how long later and how often; and never once a byte has gone out."""

from __future__ import annotations

import asyncio

import pytest

from proxy.config.vocabulary import RETRY_CAUSES
from proxy.errors import Code
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from proxy.upstream.retry import Budget, RetryRules
from tests.kit.clock import virtual
from tests.kit.trip import Trip
from tests.proxy.flights.test_exchange import CUT, FRAME, UNREACHABLE, answer

JSON = [("content-type", "application/json")]
NEVER = Budget(0.0, 0.0)
EVERYTHING = RetryRules(on=frozenset(RETRY_CAUSES))
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'


def raw(method: str, path: str) -> FlightSpec:
    return FlightSpec(method, path, b"{}", Mode.RAW, "r")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@virtual
async def test_an_engine_that_is_too_busy_is_passed_over_at_once_and_its_connection_is_kept(status: int) -> None:
    trip = Trip(engines=2, kept=1)
    trip.exchange.begin()
    busy = trip.engines[0].wire
    busy.head(status, [*JSON, ("retry-after", "3600")])
    assert (busy.kept, trip.inflight, trip.arrivals) == (True, [0, 1], [])
    answer(await trip.dialled(1))
    assert trip.arrivals == [None]
    assert (trip.flight.attempts, trip.flight.backend) == (2, "e1")
    assert trip.retries() == {str(status): 1}
    assert trip.budget.tokens == 19.0
    await trip.left_nothing()


@pytest.mark.parametrize("status", [200, 400, 401, 404, 413, 422, 500, 501])
@virtual
async def test_what_another_engine_would_say_too_is_the_answer(status: int) -> None:
    trip = Trip(engines=2, kept=1)
    trip.exchange.begin()
    trip.engines[0].wire.head(status, JSON)
    trip.engines[0].wire.receiver.end()  # type: ignore[union-attr]
    assert trip.flight.ended or trip.arrivals
    assert trip.engines[1].dials == []
    assert trip.retries() == {}
    trip.engines[0].wire.receiver = None
    await trip.left_nothing()


@virtual
async def test_with_one_engine_it_is_asked_again_after_a_jittered_backoff_that_doubles() -> None:
    trip = Trip(kept=3, retry=RetryRules(retries=3, backoff=1.0))
    loop = asyncio.get_running_loop()
    trip.exchange.begin()
    times = []
    for _ in range(3):
        trip.engines[0].wire.head(503, JSON)
        trip.engines[0].idle.append(trip.engines[0].wire)
        asked = trip.engines[0].wire.asked
        while trip.engines[0].wire.asked == asked:  # noqa: ASYNC110 - in virtual time
            await asyncio.sleep(0.125)
        times.append(loop.time())
    assert times == [0.5, 1.5, 3.5]
    answer(trip.engines[0].wire)
    assert (trip.arrivals, trip.flight.attempts) == ([None], 4)
    await trip.left_nothing()


@virtual
async def test_an_engine_s_retry_after_is_waited_for() -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    trip.engines[0].wire.head(429, [*JSON, ("retry-after", "2")])
    await asyncio.sleep(1.999)
    assert (trip.engines[0].dials, trip.flight.phase) == ([], Phase.CONNECTING)
    await asyncio.sleep(0.1)
    answer(await trip.dialled())
    assert trip.arrivals == [None]
    await trip.left_nothing()


@virtual
async def test_a_retry_after_that_is_too_long_is_the_client_s_to_wait() -> None:
    trip = Trip(kept=1, key=None)
    trip.exchange.begin()
    wire = trip.engines[0].wire
    wire.head(429, [*JSON, ("retry-after", "60")])
    wire.body(b"{}")
    receiver, wire.receiver = wire.receiver, None
    receiver.end()  # type: ignore[union-attr]
    assert trip.arrivals == [None]
    assert trip.flight.head is not None
    assert (trip.flight.head.status, ("retry-after", "60") in trip.flight.head.headers) == (429, True)
    await trip.left_nothing()


@virtual
async def test_there_are_as_many_retries_as_set_and_the_last_failure_is_told() -> None:
    trip = Trip(retry=RetryRules(retries=2))
    trip.exchange.begin()
    for _ in range(3):
        await asyncio.sleep(1.0)
        await trip.dialled(error=UNREACHABLE)
    assert (trip.arrivals, len(trip.engines[0].dials)) == ([UNREACHABLE], 3)
    assert trip.retries() == {"connect": 2}
    await trip.left_nothing()


@virtual
async def test_without_a_budget_nothing_is_asked_of_the_same_engine_again() -> None:
    trip = Trip(budget=NEVER)
    trip.exchange.begin()
    await trip.dialled(error=UNREACHABLE)
    assert (trip.arrivals, trip.retries()) == ([UNREACHABLE], {"denied": 1})
    await trip.left_nothing()


@pytest.mark.parametrize("how", ["connect", "reset"])
@virtual
async def test_to_move_from_an_engine_that_is_gone_costs_no_budget(how: str) -> None:
    """However many were under way at an engine that dies, all of them move: the other sees each only once."""
    trip = Trip(engines=2, budget=Budget(0.0, 0.0))
    trip.exchange.begin()
    if how == "connect":
        await trip.dialled(0, error=UNREACHABLE)
    else:
        (await trip.dialled(0)).lose(UNREACHABLE)
    answer(await trip.dialled(1))
    assert (trip.arrivals, trip.retries()) == ([None], {how: 1})
    await trip.left_nothing()


@virtual
async def test_an_overload_that_would_be_passed_on_to_the_next_engine_costs_budget() -> None:
    trip = Trip(engines=2, kept=1, budget=Budget(0.0, 0.0))
    trip.exchange.begin()
    wire = trip.engines[0].wire
    wire.head(503, JSON)
    receiver, wire.receiver = wire.receiver, None
    receiver.end()  # type: ignore[union-attr]
    assert (trip.arrivals, trip.retries(), trip.inflight) == ([None], {"denied": 1}, [0, 0])
    assert trip.flight.head is not None
    assert trip.flight.head.status == 503
    await trip.left_nothing()


@pytest.mark.parametrize("head", [False, True])
@virtual
async def test_a_stream_that_is_cut_before_its_first_frame_is_asked_for_elsewhere(head: bool) -> None:
    trip = Trip(engines=2)
    trip.exchange.begin()
    wire = await trip.dialled(0)
    if head:
        wire.head()
        wire.body(FRAME[:10])  # half a frame is none
    wire.lose(CUT if head else UNREACHABLE)
    answer(await trip.dialled(1))
    assert trip.arrivals == [None]
    assert b"".join(trip.flight.raw_frames()).count(b"data:") == 2
    await trip.left_nothing()


@virtual
async def test_one_body_that_is_cut_is_asked_for_elsewhere_and_nothing_of_it_stays() -> None:
    trip = Trip(engines=2, spec=FlightSpec("POST", "/", b"{}", Mode.WHOLE, "r", key=b"k"))
    trip.exchange.begin()
    wire = await trip.dialled(0)
    wire.head(200, JSON)
    wire.body(b'{"half": ')
    wire.lose(CUT)
    wire = await trip.dialled(1)
    wire.head(200, JSON)
    wire.body(b'{"whole": 1}')
    receiver, wire.receiver = wire.receiver, None
    receiver.end()  # type: ignore[union-attr]
    assert (trip.arrivals, trip.flight.log, trip.flight.size) == ([None], [b'{"whole": 1}'], 12)
    await trip.left_nothing()


@pytest.mark.parametrize("frame", [FRAME, ROLE])
@virtual
async def test_once_a_frame_has_come_it_is_never_asked_for_again(frame: bytes) -> None:
    trip = Trip(engines=2, retry=EVERYTHING)
    trip.exchange.begin()
    wire = await trip.dialled(0)
    wire.head()
    wire.body(frame)
    wire.lose(CUT)
    assert (trip.arrivals, trip.retries(), trip.engines[1].dials) == ([CUT], {}, [])
    await trip.left_nothing()


@pytest.mark.parametrize("on", [False, True])
@virtual
async def test_a_first_token_that_does_not_come_is_waited_for_elsewhere_only_where_it_is_set_so(on: bool) -> None:
    trip = Trip(engines=2, retry=EVERYTHING if on else RetryRules())
    trip.exchange.begin()
    wire = await trip.dialled(0)
    await asyncio.sleep(301.5)
    assert wire.receiver is None
    if on:
        answer(await trip.dialled(1))
        assert (trip.arrivals, trip.retries()) == ([None], {"first-token": 1})
    else:
        assert [e and e.code for e in trip.arrivals] == [Code.UPSTREAM_FIRST_TOKEN_TIMEOUT]
    await trip.left_nothing()


@pytest.mark.parametrize("how", ["reset", "503", "stale"])
@virtual
async def test_what_must_not_be_sent_twice_is_not_once_it_was_sent(how: str) -> None:
    trip = Trip(engines=2, kept=1, spec=raw("POST", "/v1/responses"))
    trip.exchange.begin()
    await trip.turn()
    assert trip.engines[0].idle  # it did not go where it could meet a connection that is being closed
    wire = await trip.dialled(0)
    if how == "503":
        wire.head(503, [*JSON, ("content-length", "0")])
        receiver, wire.receiver = wire.receiver, None
        receiver.end()  # type: ignore[union-attr]
        assert trip.arrivals == [None]
    else:
        wire.lose(UNREACHABLE)
        assert trip.arrivals == [UNREACHABLE]
    assert (trip.retries(), trip.engines[1].dials) == ({}, [])
    await trip.left_nothing()


@virtual
async def test_what_must_not_be_sent_twice_goes_elsewhere_where_nothing_was_sent() -> None:
    trip = Trip(engines=2, spec=raw("POST", "/v1/responses"))
    trip.exchange.begin()
    await trip.dialled(0, error=UNREACHABLE)
    wire = await trip.dialled(1)
    wire.head(200, [*JSON, ("content-length", "0")])
    receiver, wire.receiver = wire.receiver, None
    receiver.end()  # type: ignore[union-attr]
    assert trip.arrivals == [None]
    await trip.left_nothing()


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/responses/1"), ("POST", "/tokenize")])
@virtual
async def test_what_only_computes_or_reads_may_be_asked_twice(method: str, path: str) -> None:
    trip = Trip(engines=2, kept=1, spec=raw(method, path))
    trip.exchange.begin()
    trip.engines[0].wire.lose(UNREACHABLE)  # kept, and dead
    (await trip.dialled(0)).lose(UNREACHABLE)
    wire = await trip.dialled(1)
    wire.head(200, [*JSON, ("content-length", "0")])
    receiver, wire.receiver = wire.receiver, None
    receiver.end()  # type: ignore[union-attr]
    assert (trip.arrivals, trip.retries()) == ([None], {"stale": 1, "reset": 1})
    await trip.left_nothing()


@virtual
async def test_cancelled_while_it_waits_to_ask_again_it_never_does() -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    trip.engines[0].wire.head(503, JSON)
    trip.cancel()
    await asyncio.sleep(10.0)
    assert (trip.engines[0].dials, trip.arrivals, trip.flight.phase) == ([], [], Phase.CANCELLED)
    await trip.left_nothing()


@virtual
async def test_while_it_waits_it_holds_no_place_and_where_none_is_free_after_it_that_is_said() -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    trip.engines[0].wire.head(503, JSON)
    assert trip.inflight == [0]
    other = trip.backends.acquire(None)
    assert other is not None
    await asyncio.sleep(10.0)
    (error,) = trip.arrivals
    assert error is not None
    assert (error.code, error.retry_after) == (Code.NO_BACKEND, 1)
    other.release()
    await trip.left_nothing()
