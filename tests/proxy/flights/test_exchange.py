"""A Flight's way to an engine: which failure leads where, and that it is told once, whatever the order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.phase import Phase
from proxy.upstream.retry import Budget, RetryRules
from tests.kit.clock import run_virtual, virtual
from tests.kit.trip import Trip, Wire

FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"
UNREACHABLE = GatewayError(Code.UPSTREAM_UNREACHABLE, "nobody is there")
SLOW = GatewayError(Code.UPSTREAM_CONNECT_TIMEOUT, "nobody answers")
CUT = GatewayError(Code.UPSTREAM_TRUNCATED, "cut")


def answer(wire: Wire) -> None:
    wire.head()
    wire.body(FRAME)
    wire.body(DONE)


@virtual
async def test_a_whole_answer_lands_and_its_connection_may_be_kept() -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    wire = trip.engines[0].wire
    assert (trip.flight.phase, trip.flight.backend, trip.inflight) == (Phase.PREFILL, "e0", [1])
    answer(wire)
    assert trip.arrivals == [None]
    assert trip.flight.phase is Phase.LANDED
    assert wire.kept is True
    assert trip.flight.times.dispatched is not None
    assert trip.counted("e0") == (1, 0)
    await trip.left_nothing()


@virtual
async def test_with_no_connection_kept_one_is_made() -> None:
    trip = Trip()
    trip.exchange.begin()
    assert trip.flight.phase is Phase.CONNECTING
    answer(await trip.dialled())
    assert trip.arrivals == [None]
    await trip.left_nothing()


@virtual
async def test_a_dead_kept_connection_is_replaced_by_a_new_one_at_the_same_engine_and_is_not_its_failure() -> None:
    """By a new one at once: a request that kills its server would go through all that are kept."""
    trip = Trip(engines=2, kept=2, retry=RetryRules(retries=0), budget=Budget(0, 0))
    trip.exchange.begin()
    trip.engines[0].wire.lose(UNREACHABLE)
    assert trip.inflight == [1, 0]
    answer(await trip.dialled())
    assert trip.arrivals == [None]
    assert len(trip.engines[0].wires) == 2
    assert trip.retries() == {"stale": 1}
    assert (trip.counted("e0"), trip.counted("e1")) == ((1, 0), (0, 0))
    assert trip.backends.all[0].up is not False
    await trip.left_nothing()


@virtual
async def test_a_new_connection_that_dies_unanswered_is_the_engine_s_failure() -> None:
    trip = Trip(retry=RetryRules(retries=0))
    trip.exchange.begin()
    (await trip.dialled()).lose(UNREACHABLE)
    assert trip.arrivals == [UNREACHABLE]
    assert trip.counted("e0") == (1, 1)
    assert repr(trip.backends.all[0].breaker) == "<Breaker closed row=1 probing=0>"
    await trip.left_nothing()


@virtual
async def test_a_kept_connection_that_dies_in_mid_answer_is_not_replaced() -> None:
    trip = Trip(engines=2, kept=2)
    trip.exchange.begin()
    trip.engines[0].wire.head()
    trip.engines[0].wire.body(FRAME)
    trip.engines[0].wire.lose(UNREACHABLE)
    assert trip.arrivals == [UNREACHABLE]
    assert (len(trip.engines[0].wires), trip.engines[1].wires) == (1, [])
    await trip.left_nothing()


@pytest.mark.parametrize("error", [UNREACHABLE, SLOW], ids=["refused", "timeout"])
@virtual
async def test_an_engine_that_cannot_be_reached_is_passed_over_for_another(error: GatewayError) -> None:
    trip = Trip(engines=3)
    trip.exchange.begin()
    await trip.dialled(0, error=error)
    assert trip.inflight == [0, 1, 0]
    assert (trip.flight.backend, trip.flight.phase) == ("e1", Phase.CONNECTING)
    await trip.dialled(1, error=error)
    assert trip.inflight == [0, 0, 1]
    answer(await trip.dialled(2))
    assert trip.arrivals == [None]
    assert [trip.counted(f"e{n}") for n in range(3)] == [(1, 1), (1, 1), (1, 0)]
    assert [backend.up for backend in trip.backends.all[:2]] == [False, False]
    await trip.left_nothing()


@virtual
async def test_when_no_engine_is_left_the_last_one_s_error_is_told() -> None:
    trip = Trip(engines=2, retry=RetryRules(retries=1))
    trip.exchange.begin()
    await trip.dialled(0, error=UNREACHABLE)
    await trip.dialled(1, error=SLOW)
    assert trip.arrivals == [SLOW]
    await trip.left_nothing()


@virtual
async def test_an_engine_that_is_full_is_looked_at_again_after_a_wait_and_so_is_the_one_that_failed() -> None:
    trip = Trip(engines=2)
    other = trip.backends.acquire(None, exclude=frozenset({trip.backends.all[0]}))
    assert other is not None
    trip.exchange.begin()
    await trip.dialled(0, error=UNREACHABLE)
    assert (trip.arrivals, trip.inflight) == ([], [0, 1])
    other.release()
    await asyncio.sleep(0.025)  # half of the first backoff
    answer(await trip.dialled(1))
    assert trip.arrivals == [None]
    await trip.left_nothing()


@virtual
async def test_what_another_engine_would_do_no_better_is_not_tried_there() -> None:
    trip = Trip(engines=2)
    trip.exchange.begin()
    wire = await trip.dialled()
    assert trip.exchange.ingest is not None
    trip.exchange.ingest.answered = True  # a whole answer, whose content is no JSON
    wire.lose(GatewayError(Code.UPSTREAM_PROTOCOL, "no JSON"))
    assert [error and error.code for error in trip.arrivals] == [Code.UPSTREAM_PROTOCOL]
    assert trip.engines[1].dials == []
    assert trip.backends.all[0].up is not False
    await trip.left_nothing()


@virtual
async def test_what_is_no_http_is_tried_elsewhere_and_counts_against_its_engine() -> None:
    trip = Trip(engines=2)
    trip.exchange.begin()
    (await trip.dialled()).lose(GatewayError(Code.UPSTREAM_PROTOCOL, "no HTTP"))
    assert (trip.arrivals, trip.retries()) == ([], {"malformed": 1})
    answer(await trip.dialled(1))
    assert trip.arrivals == [None]
    assert repr(trip.backends.all[0].breaker) == "<Breaker closed row=1 probing=0>"
    await trip.left_nothing()


@virtual
async def test_once_something_has_gone_out_nothing_is_tried_elsewhere() -> None:
    trip = Trip(engines=2)
    trip.exchange.begin()
    wire = await trip.dialled()
    wire.head()
    wire.body(FRAME)
    wire.lose(UNREACHABLE)
    assert trip.arrivals == [UNREACHABLE]
    assert trip.engines[1].dials == []
    assert trip.flight.phase is Phase.FAILED
    await trip.left_nothing()


@pytest.mark.parametrize("kept", [0, 1], ids=["new", "kept"])
@virtual
async def test_a_request_that_cannot_be_written_gives_its_connection_back(kept: int) -> None:
    trip = Trip(engines=2, kept=kept)
    refusal = GatewayError(Code.INVALID_HEADER, "a line break")
    trip.engines[0].refuses = refusal
    trip.exchange.begin()
    if not kept:
        await trip.dialled()
    assert trip.engines[0].given == trip.engines[0].wires != []
    assert trip.engines[0].wire.asked == 0
    assert trip.arrivals == [refusal]
    assert trip.counted("e0") == (1, 0)
    await trip.left_nothing()


@virtual
async def test_cancelled_while_connecting_it_waits_for_no_connection() -> None:
    trip = Trip()
    trip.exchange.begin()
    await trip.turn()
    trip.cancel()
    await trip.turn()
    assert trip.engines[0].dials[0].cancelled()
    assert all(task.done() for task in trip.tasks)
    assert trip.arrivals == []
    await trip.left_nothing()


@virtual
async def test_cancelled_before_it_began_to_connect_nothing_is_dialled() -> None:
    trip = Trip()
    trip.exchange.begin()
    trip.cancel()
    await trip.turn()
    assert (trip.engines[0].dials, trip.arrivals) == ([], [])
    await trip.left_nothing()


@pytest.mark.parametrize("streaming", [False, True], ids=["prefill", "streaming"])
@virtual
async def test_cancelled_at_the_engine_its_connection_is_ended(streaming: bool) -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    wire = trip.engines[0].wire
    if streaming:
        wire.head()
        wire.body(FRAME)
    trip.cancel()
    assert wire.kept is False
    trip.cancel()  # twice is once
    assert trip.arrivals == []
    await trip.left_nothing()


@virtual
async def test_a_cancellation_after_the_landing_changes_nothing() -> None:
    trip = Trip(kept=1)
    trip.exchange.begin()
    answer(trip.engines[0].wire)
    trip.exchange.cancel()
    assert (trip.arrivals, trip.engines[0].wire.kept) == ([None], True)
    await trip.left_nothing()


@virtual
async def test_an_engine_is_held_back_only_while_the_exchange_lasts() -> None:
    trip = Trip(kept=1, key=None)
    trip.exchange.begin()
    wire = trip.engines[0].wire
    throttle = trip.flight.throttle
    assert throttle is not None
    throttle(True)
    throttle(False)
    assert wire.held == [True, False]
    answer(wire)
    throttle(True)
    assert wire.held == [True, False]
    assert trip.flight.throttle is None
    await trip.left_nothing()


EVENTS = st.lists(
    st.sampled_from(
        ["dialled", "refused", "head", "busy", "frame", "done", "end", "died", "cut", "cancel", "time", "hold"]
    ),
    max_size=12,
)


async def play(events: list[str], kept: int, engines: int) -> None:
    trip = Trip(engines, kept=kept)
    cancelled = False
    trip.exchange.begin()
    await trip.turn()
    for event in events:
        wires = [wire for engine in trip.engines for wire in engine.wires]
        wire = next((wire for wire in wires if wire.receiver is not None), None)
        dial = next((d for engine in trip.engines for d in engine.dials if not d.done()), None)
        if event == "dialled" and dial is not None:
            dial.set_result(Wire())
        elif event == "refused" and dial is not None:
            dial.set_exception(UNREACHABLE)
        elif event == "cancel" and not trip.arrivals and not cancelled:
            cancelled = True
            trip.cancel()
        elif event == "time":
            await asyncio.sleep(301.0)
        elif event == "hold" and trip.flight.throttle is not None:
            trip.flight.throttle(True)
        elif wire is not None:
            happens(wire, event)
        await trip.turn()
    for _ in range(4):  # its attempts
        if cancelled or trip.arrivals:
            break
        await asyncio.sleep(2000.0)  # the limit of the whole answer; a dial has its own
        for engine in trip.engines:
            for dial in engine.dials:
                if not dial.done():
                    dial.set_exception(CUT)
        await trip.turn()
    assert len(trip.arrivals) == (0 if cancelled else 1)
    assert trip.flight.ended
    assert all(dial.done() for engine in trip.engines for dial in engine.dials)
    await trip.left_nothing()


def happens(wire: Wire, event: str) -> None:
    receiver: Any = wire.receiver
    if event == "head" and not wire.received:
        wire.head()
    elif event == "busy" and not wire.received:
        wire.head(503, [("content-type", "application/json"), ("retry-after", "1")])
    elif event in ("frame", "done") and wire.received:
        wire.body(FRAME if event == "frame" else DONE)
    elif event == "end" and wire.received:
        wire.receiver = None
        receiver.end()
    elif event == "died" and not wire.received:
        wire.lose(UNREACHABLE)
    elif event == "cut" and wire.received:
        wire.lose(CUT)


@given(EVENTS, st.integers(0, 2), st.integers(1, 3))
def test_whatever_happens_it_is_told_once_and_leaves_nothing(events: list[str], kept: int, engines: int) -> None:
    run_virtual(play(events, kept, engines))
