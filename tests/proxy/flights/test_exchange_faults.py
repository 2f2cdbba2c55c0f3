"""What an attempt says of its engine, and that an error of ours ends a Flight instead of leaving it for ever."""

from __future__ import annotations

import asyncio

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.spec import FlightSpec, Mode
from proxy.upstream.breaker import State
from proxy.upstream.concurrency import AdaptiveLimit
from proxy.upstream.retry import RetryRules
from tests.kit.clock import virtual
from tests.kit.trip import SSE, Trip
from tests.proxy.flights.test_exchange import FRAME

JSON = [("content-type", "application/json")]
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'


async def half_open(trip: Trip) -> None:
    """The trip's one engine has failed for so long that the journey is its probe."""
    for _ in range(5):
        lease = trip.backends.acquire(None)
        assert lease is not None
        trip.backends.record_failure(lease, "it broke")
        lease.release()
    await asyncio.sleep(2.0)
    probe = trip.backends.acquire(None)
    assert probe is not None
    trip.exchange.lease.release()
    trip.exchange.lease = probe


@pytest.mark.parametrize(("status", "bad"), [(400, 0), (404, 0), (429, 0), (500, 1), (501, 0), (503, 1)])
@virtual
async def test_what_a_client_did_wrong_never_speaks_against_the_engine(status: int, bad: int) -> None:
    trip = Trip(kept=1, retry=RetryRules(retries=0), spec=FlightSpec("GET", "/v1/x", b"", Mode.RAW, "r"))
    trip.exchange.begin()
    wire = trip.engines[0].wire
    wire.head(status, [*JSON, ("content-length", "0")])
    receiver, wire.receiver = wire.receiver, None
    receiver.end()  # type: ignore[union-attr]
    assert trip.arrivals == [None]
    assert repr(trip.backends.all[0].breaker) == f"<Breaker closed row={bad} probing=0>"
    await trip.left_nothing()


@pytest.mark.parametrize("where", ["connecting", "writing"])
@virtual
async def test_an_error_of_ours_ends_the_flight_gives_its_place_back_and_is_told(where: str) -> None:
    trip = Trip()
    fault = RuntimeError("ours")
    trip.exchange.begin()
    if where == "connecting":
        await trip.dialled(error=fault)
    else:
        trip.engines[0].refuses = fault
        await trip.dialled()
    (error,) = trip.arrivals
    assert error is not None
    assert (error.code, trip.faults, trip.inflight) == (Code.INTERNAL, [fault], [0])
    await trip.left_nothing()


@virtual
async def test_a_probe_s_first_token_closes_the_breaker_long_before_its_end() -> None:
    trip = Trip(kept=1, room=9)
    engine = trip.backends.all[0]
    await half_open(trip)
    assert trip.exchange.lease.probe
    trip.exchange.begin()
    wire = trip.engines[0].wire
    wire.head(200, SSE)
    wire.body(ROLE)
    states = [engine.breaker.state]
    wire.body(FRAME)
    assert [*states, engine.breaker.state] == [State.HALF_OPEN, State.CLOSED]
    wire.body(b"data: [DONE]\n\n")
    assert (engine.breaker._good, repr(engine.breaker)) == (0, "<Breaker closed row=0 probing=0>"), "told once"
    await trip.left_nothing()


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        (Code.UPSTREAM_TRUNCATED, 1),
        (Code.UPSTREAM_TOKEN_TIMEOUT, 1),
        (Code.UPSTREAM_TOTAL_TIMEOUT, 0),
        (Code.UPSTREAM_TOO_LARGE, 0),
    ],
)
@virtual
async def test_an_answer_that_is_too_much_is_not_its_engine_s_fault(code: Code, bad: int) -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    trip.engines[0].wire.head()
    trip.engines[0].wire.body(FRAME)
    trip.engines[0].wire.lose(GatewayError(code, "why"))
    assert repr(trip.backends.all[0].breaker) == f"<Breaker closed row={bad} probing=0>"
    await trip.left_nothing()


@virtual
async def test_an_attempt_is_told_against_its_engine_once_though_its_error_was_cut_too() -> None:
    trip = Trip(kept=1, retry=RetryRules(retries=0))
    trip.exchange.begin()
    trip.engines[0].wire.head(503, JSON)
    trip.engines[0].wire.lose(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert repr(trip.backends.all[0].breaker) == "<Breaker closed row=1 probing=0>"
    await trip.left_nothing()


@virtual
async def test_a_probe_that_began_well_and_is_cut_speaks_against_its_engine_all_the_same() -> None:
    trip = Trip(kept=1, room=9)
    await half_open(trip)
    trip.exchange.begin()
    wire = trip.engines[0].wire
    wire.head(200, SSE)
    wire.body(FRAME)
    wire.lose(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert repr(trip.backends.all[0].breaker) == "<Breaker closed row=1 probing=0>"
    await trip.left_nothing()


@virtual
async def test_a_stream_is_no_success_before_its_end_where_it_is_no_probe() -> None:
    trip = Trip(kept=1, room=9)
    engine = trip.backends.all[0]
    engine.adaptive_limit = AdaptiveLimit()
    trip.backends.record_failure(trip.exchange.lease, "it broke")
    trip.exchange.begin()
    wire = trip.engines[0].wire
    wire.head(200, SSE)
    wire.body(FRAME)
    wire.lose(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert repr(engine.breaker) == "<Breaker closed row=2 probing=0>"
    await trip.left_nothing()


@virtual
async def test_a_journey_is_cancelled_once_however_often_that_is_asked() -> None:
    left: list[float] = []

    class Told(AdaptiveLimit):
        def abandoned(self, sent: float, now: float) -> None:
            left.append(now - sent)

    trip = Trip(kept=1)
    trip.backends.all[0].adaptive_limit = Told()
    trip.exchange.begin()
    await asyncio.sleep(3.0)
    trip.cancel()
    await asyncio.sleep(3.0)
    trip.exchange.cancel()
    assert left == [3.0]
    await trip.left_nothing()
