"""What each attempt of a journey begins with: nothing of the one before it, and what its engine is known to do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.spec import FlightSpec, Mode
from proxy.upstream.retry import Budget, RetryRules
from proxy.wire.fold.shape import VLLM, Shape
from proxy.wire.openai import decode
from tests.kit.clock import virtual
from tests.kit.trip import Trip
from tests.proxy.flights.test_exchange import CUT, UNREACHABLE, answer

ASK = decode("chat", b'{"model":"m","messages":[],"stream":true}')
JSON = [("content-type", "application/json")]


@pytest.mark.parametrize("usage_added", [True, False])
@pytest.mark.parametrize(("known", "folds"), [(VLLM, True), (Shape("none"), False), (None, False)])
@virtual
async def test_a_stream_that_may_be_shared_learns_what_its_engine_s_streams_are(
    usage_added: bool, known: Shape | None, folds: bool
) -> None:
    trip = Trip(
        kept=1,
        spec=FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=b"k", api_request=ASK, usage_added=usage_added),
    )
    if known is not None:
        trip.backends.all[0].abilities.learn(["m"], "chat", known)
    trip.flight.look = lambda frame: None
    trip.exchange.begin()
    assert trip.flight.shape == (known if usage_added else None)
    assert trip.flight.folds is (folds or not usage_added)
    assert (trip.flight.look is not None) is trip.flight.folds
    trip.cancel()
    await trip.left_nothing()


@virtual
async def test_where_nobody_waits_for_its_fold_a_stream_stays_one_that_may_fold() -> None:
    trip = Trip(
        kept=1, spec=FlightSpec("POST", "/", b"{}", Mode.STREAM, "r", key=b"k", api_request=ASK, usage_added=True)
    )
    trip.exchange.begin()
    assert trip.flight.folds
    trip.cancel()
    await trip.left_nothing()


@virtual
async def test_each_attempt_s_engine_is_judged_anew() -> None:
    trip = Trip(engines=2, kept=1, retry=RetryRules(retries=2))
    trip.exchange.begin()
    trip.engines[0].wire.head(503, JSON)
    second = await trip.dialled(1)
    second.head(503, JSON)
    rows = [repr(backend.breaker) for backend in trip.backends.all]
    assert rows == ["<Breaker closed row=1 probing=0>"] * 2
    trip.cancel()
    await trip.left_nothing()


@virtual
async def test_a_refusal_is_not_said_to_be_what_the_attempt_before_it_met() -> None:
    trip = Trip(kept=1, retry=RetryRules(retries=3))
    trip.exchange.begin()
    exchange: Any = trip.exchange
    exchange._error = UNREACHABLE
    assert not trip.exchange._on_refusal(429, [("retry-after", "9999")])
    assert exchange._error is None
    trip.cancel()
    await trip.left_nothing()


@pytest.mark.parametrize(
    ("status", "bad"), [(428, False), (429, False), (499, False), (500, True), (501, False), (504, True)]
)
@virtual
async def test_which_statuses_speak_against_an_engine(status: int, bad: bool) -> None:
    trip = Trip(kept=1, retry=RetryRules(retries=0))
    trip.exchange.begin()
    assert not trip.exchange._on_head(status, [])
    assert ("row=1" in repr(trip.backends.all[0].breaker)) is bad
    assert trip.counted("e0") == (1, int(bad))
    trip.cancel()
    await trip.left_nothing()


@virtual
async def test_a_connection_that_no_feeder_could_be_made_for_is_closed() -> None:
    trip = Trip(kept=1)

    def fails(*given: Any) -> Any:
        raise ZeroDivisionError

    trip.exchange._context = replace(trip.exchange._context, ingest=fails)
    wire = trip.engines[0].idle[0]
    trip.exchange.begin()
    assert [error and error.code for error in trip.arrivals] == [Code.INTERNAL]
    assert (wire.kept, trip.exchange._connection) == (False, None)
    await trip.left_nothing()


@virtual
async def test_an_attempt_looks_for_its_own_answer_s_id() -> None:
    trip = Trip(engines=2, kept=1, retry=RetryRules(retries=1))
    for engine in trip.backends.all:
        engine.echoes = True
    trip.exchange.begin()
    trip.engines[0].wire.head()
    trip.engines[0].wire.body(b'data: {"i')
    assert trip.exchange._begin == b'data: {"i'
    trip.engines[0].wire.lose(CUT)
    second = await trip.dialled(1)
    assert trip.exchange._begin == b""
    answer(second)
    assert trip.arrivals == [None]
    assert trip.exchange._begin == b""
    await trip.left_nothing()


@virtual
async def test_as_many_retries_as_are_left_are_made_and_each_costs_one() -> None:
    for retries in (0, 1, 2):
        trip = Trip(engines=4, retry=RetryRules(retries=retries))
        trip.exchange.begin()
        for n in range(retries + 1):
            await trip.dialled(n, error=GatewayError(Code.UPSTREAM_UNREACHABLE, f"{n}"))
        assert [error and error.message for error in trip.arrivals] == [f"{retries}"]
        assert sum(trip.retries().values()) == retries
        await trip.left_nothing()


@pytest.mark.parametrize(("answered", "bad"), [(False, 1), (True, 0)])
@virtual
async def test_what_is_wrong_in_a_whole_answer_is_wrong_for_its_request_alone(answered: bool, bad: int) -> None:
    trip = Trip(kept=1, retry=RetryRules(retries=0))
    trip.exchange.begin()
    assert trip.exchange.ingest is not None
    trip.exchange.ingest.answered = answered
    trip.engines[0].wire.lose(GatewayError(Code.UPSTREAM_PROTOCOL, "odd"))
    assert repr(trip.backends.all[0].breaker) == f"<Breaker closed row={bad} probing=0>"
    await trip.left_nothing()


@virtual
async def test_what_breaks_after_its_arrival_is_told_and_nothing_more_comes_of_it() -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    answer(trip.engines[0].wire)
    fault = ZeroDivisionError()
    trip.exchange._contain("late", fault)
    assert (trip.arrivals, trip.faults) == ([None], [fault])
    await trip.left_nothing()


@virtual
async def test_a_request_pays_into_the_budget_of_retries_once_as_it_begins() -> None:
    paid: list[int] = []

    class Told(Budget):
        def deposit(self) -> None:
            paid.append(1)

    trip = Trip(engines=2, budget=Told())
    trip.exchange.begin()
    await trip.dialled(error=UNREACHABLE)
    answer(await trip.dialled(1))
    assert (paid, trip.arrivals) == ([1], [None])
    await trip.left_nothing()
