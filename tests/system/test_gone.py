"""Engines that go while requests are under way there: what moves, goes on or ends, and where retries wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from proxy.app import App
from proxy.errors import Code, GatewayError
from proxy.flights.exchange import GONE_SECONDS
from proxy.flights.spec import FlightSpec, Mode
from proxy.upstream.backends import Backend
from proxy.upstream.retry import Budget, RetryRules
from tests.kit.client import post_json, streaming
from tests.kit.clock import virtual
from tests.kit.engine import Engine
from tests.kit.engine_scripts import echo_script
from tests.kit.running import HELLO, HELLO_STREAM, gateway, until
from tests.kit.trip import Trip
from tests.proxy.flights.test_exchange import FRAME, UNREACHABLE, answer

CHAT = "/v1/chat/completions"
JSON = [("content-type", "application/json")]
NOT_TWICE = FlightSpec("POST", "/v1/responses", b"{}", Mode.RAW, "r")


def gone(trip: Trip) -> Backend:
    """The first engine is found gone by a look."""
    first = trip.backends.all[0]
    for backend in trip.backends.all[1:]:
        backend.up = True
    trip.backends.record_unreachable(first, "Connection refused")
    trip.exchange.engine_gone()
    return first


@virtual
async def test_what_is_untouched_moves_to_an_engine_that_runs_and_costs_no_budget() -> None:
    trip = Trip(engines=2, budget=Budget(0.0, 0.0))
    trip.exchange.begin()
    wire = await trip.dialled(0)
    gone(trip)
    assert (wire.kept, trip.inflight) == (False, [0, 1])
    answer(await trip.dialled(1))
    assert (trip.arrivals, trip.retries()) == ([None], {"reset": 1})
    await trip.left_nothing()


@virtual
async def test_at_a_silent_engine_what_is_untouched_moves_and_what_has_begun_has_its_time() -> None:
    for begun in (False, True):
        trip = Trip(engines=2, budget=Budget(0.0, 0.0))
        trip.exchange.begin()
        wire = await trip.dialled(0)
        if begun:
            wire.head()
            wire.body(FRAME)
        for backend in trip.backends.all[1:]:
            backend.up = True
        trip.exchange.engine_silent()
        await asyncio.sleep(3 * GONE_SECONDS)
        if begun:
            assert trip.arrivals == []
            wire.body(b"data: [DONE]\n\n")
        else:
            assert wire.kept is False
            answer(await trip.dialled(1))
        assert trip.arrivals == [None]
        await trip.left_nothing()


@virtual
async def test_a_stream_that_has_begun_goes_on_while_it_comes_and_ends_when_it_is_silent() -> None:
    trip = Trip(engines=2)
    trip.exchange.begin()
    wire = await trip.dialled(0)
    wire.head()
    wire.body(FRAME)
    gone(trip)
    for _ in range(10):
        await asyncio.sleep(GONE_SECONDS - 1)
        wire.body(FRAME)
        trip.exchange.engine_gone()  # as each look says again
    assert trip.arrivals == []
    await asyncio.sleep(2 * GONE_SECONDS + 0.1)
    (error,) = trip.arrivals
    assert error is not None
    assert error.code is Code.UPSTREAM_TRUNCATED
    assert wire.kept is False
    await trip.left_nothing()


@virtual
async def test_a_shutdown_that_streams_to_its_end_is_whole() -> None:
    trip = Trip(engines=2)
    trip.exchange.begin()
    wire = await trip.dialled(0)
    wire.head()
    wire.body(FRAME)
    gone(trip)
    await asyncio.sleep(GONE_SECONDS - 0.5)
    wire.body(b"data: [DONE]\n\n")
    assert trip.arrivals == [None]
    await trip.left_nothing()


@pytest.mark.parametrize("engines", [1, 2])
@pytest.mark.parametrize("spec", [None, NOT_TWICE], ids=["stream", "not-twice"])
@virtual
async def test_what_cannot_move_ends_after_a_grace(engines: int, spec: FlightSpec | None) -> None:
    if engines == 2 and spec is None:
        return  # it moves
    trip = Trip(engines=engines, spec=spec)
    trip.exchange.begin()
    await trip.dialled(0)
    gone(trip)
    await asyncio.sleep(GONE_SECONDS - 0.1)
    assert trip.arrivals == []
    await asyncio.sleep(0.2)
    (error,) = trip.arrivals
    assert error is not None
    assert (error.code, "Connection refused" in error.message) == (Code.UPSTREAM_UNREACHABLE, True)
    await trip.left_nothing()


@virtual
async def test_an_engine_that_is_back_within_the_grace_ends_nothing() -> None:
    trip = Trip()
    trip.exchange.begin()
    wire = await trip.dialled(0)
    first = gone(trip)
    await asyncio.sleep(GONE_SECONDS / 2)
    first.up = True
    await asyncio.sleep(GONE_SECONDS)
    answer(wire)
    assert trip.arrivals == [None]
    await trip.left_nothing()


@virtual
async def test_an_answer_that_ended_or_was_cancelled_is_left_alone() -> None:
    trip = Trip()
    trip.exchange.begin()
    await trip.dialled(0)
    gone(trip)
    trip.cancel()
    trip.exchange.engine_gone()
    await asyncio.sleep(2 * GONE_SECONDS)
    assert trip.arrivals == []
    await trip.left_nothing()


@pytest.mark.parametrize("ask", [HELLO, HELLO_STREAM], ids=["whole", "stream"])
async def test_a_request_at_an_engine_that_takes_no_connections_any_more_is_another_s(ask: dict[str, Any]) -> None:
    async with (
        Engine() as one,
        Engine(echo_script()) as two,
        gateway(one, two, routing="round-robin", refresh_seconds=0.1, load_seconds=0) as app,
    ):
        asking = asyncio.ensure_future(post_json(app.url, CHAT, ask))
        turn = await one.next_request()
        one.stop_listening()
        found = await asking
        assert (found.status, two.generations) == (200, 1)
        await turn.cancelled()


# -- retries wait at the head of the queue ------------------------------------------------------------


def queued(app: App) -> asyncio.Event:
    """Set by each request that comes into the queue from now on: it may have left again before its length is
    looked at."""
    event = asyncio.Event()
    queue = cast(Any, app.scheduler.queue)

    def noting(put: Callable[..., None]) -> Callable[..., None]:
        def noted(*args: Any, **more: Any) -> None:
            put(*args, **more)
            event.set()

        return noted

    queue.enqueue, queue.requeue = noting(queue.enqueue), noting(queue.requeue)
    return event


async def test_a_retry_that_finds_no_engine_waits_at_the_head_of_the_queue() -> None:
    """Two engines with two places each; one dies with two requests in prefill while the other is full."""

    def ask(text: str) -> dict[str, Any]:
        return {"model": "m1", "messages": [{"role": "user", "content": text}], "temperature": 1}

    async with (
        Engine() as one,
        Engine() as two,
        gateway(
            one, two, max_inflight=2, routing="round-robin", retry_burst=0, retry_budget=0, load_seconds=0
        ) as app,
    ):
        asks = [asyncio.ensure_future(post_json(app.url, CHAT, ask(f"{n}"))) for n in range(4)]
        dying = [await one.next_request() for _ in range(2)]
        slow = [await two.next_request() for _ in range(2)]
        one.stop_listening()
        await one.drop_connections(reset=True)
        await until(lambda: len(app.scheduler.queue) == 2)
        late = asyncio.ensure_future(post_json(app.url, CHAT, ask("late")))
        await until(lambda: len(app.scheduler.queue) == 3)
        assert all(turn.is_cancelled for turn in dying)
        order = []
        for _ in range(3):
            await slow.pop(0).answer("x")
            slow.append(turn := await two.next_request())
            order.append(turn.json()["messages"][0]["content"])
        assert order[-1] == "late", order
        for turn in slow:
            await turn.answer("x")
        assert [found.status for found in await asyncio.gather(*asks, late)] == [200] * 5


async def test_a_retry_in_the_queue_waits_no_longer_than_the_queue_s_time_and_leaves_with_its_client() -> None:
    async with (
        Engine() as one,
        Engine() as two,
        gateway(one, two, max_inflight=1, routing="round-robin", queue_timeout=0.3, load_seconds=0) as app,
    ):
        first = asyncio.ensure_future(post_json(app.url, CHAT, HELLO | {"temperature": 1}))
        turn = await one.next_request()
        async with streaming(app.url, CHAT, HELLO_STREAM | {"temperature": 1}) as holds:
            held = await two.next_request()
            waits = queued(app)
            one.stop_listening()
            await turn.drop(reset=True)
            await waits.wait()
            waits.clear()
            assert (await first).json()["error"]["code"] == "queue_timeout"
            async with streaming(app.url, CHAT, HELLO_STREAM | {"temperature": 1}) as leaves:
                await waits.wait()
                await leaves.abort()
                await until(lambda: len(app.scheduler.queue) == 0)
            await held.finish("x")
            await holds.read()


@virtual
async def test_with_the_queue_closed_a_retry_ends_with_its_last_failure() -> None:
    trip = Trip(engines=2, retry=RetryRules(retries=1))
    trip.exchange.begin()
    other = trip.backends.acquire(None)
    assert other is not None
    other.backend.up = True
    await trip.dialled(0, error=UNREACHABLE)
    await asyncio.sleep(1.0)
    assert trip.arrivals == [UNREACHABLE]
    other.release()
    await trip.left_nothing()


async def test_our_own_shortage_is_ours_and_says_nothing_of_the_engine() -> None:
    async with Engine(echo_script()) as one, gateway(one, retries=2) as app:
        (backend,) = app.backends.all
        backend.pool.drop_idle()

        async def short() -> object:
            raise GatewayError(Code.LOCAL_RESOURCES, "no descriptors", retry_after=1)

        pool = cast(Any, backend.pool)
        pool.connect, connect = short, pool.connect
        found = await post_json(app.url, CHAT, HELLO)
        assert (found.status, found.json()["error"]["code"]) == (503, "local_resources")
        assert found.head["retry-after"] == "1"
        assert (backend.up, repr(backend.breaker)) == (True, "<Breaker closed row=0 probing=0>")
        pool.connect = connect
        assert (await post_json(app.url, CHAT, HELLO)).status == 200


@pytest.mark.parametrize("how", ["place", "overdue", "leave", "close"])
async def test_a_request_that_carries_twins_waits_at_the_head_of_the_queue_as_one(how: str) -> None:
    """Two sampled twins are one request at an engine that dies, while the other engine is full."""
    twin = HELLO_STREAM | {"temperature": 1}
    async with Engine() as one, Engine() as two:
        async with gateway(
            *(one, two),
            max_inflight=1,
            routing="round-robin",
            load_seconds=0,
            batch_window_ms=50.0,
            queue_timeout=0.3 if how == "overdue" else 60.0,
        ) as app:
            twins = [asyncio.ensure_future(post_json(app.url, CHAT, twin)) for _ in range(2)]
            turn = await one.next_request()
            assert turn.json()["n"] == 2
            other = asyncio.ensure_future(post_json(app.url, CHAT, HELLO | {"seed": 1}))
            held = await two.next_request()
            waits = queued(app)
            one.stop_listening()
            await turn.drop(reset=True)
            await waits.wait()
            if how == "place":
                await held.answer("x")
                again = await two.next_request()
                assert again.json()["n"] == 2
                await again.start()
                for n in range(2):
                    await again.send("a", index=n)
                await again.finish()
                assert [(await reading).status for reading in twins] == [200, 200]
            elif how == "overdue":
                found = [await reading for reading in twins]
                assert {answer_.json()["error"]["code"] for answer_ in found} == {"queue_timeout"}
            elif how == "leave":
                for reading in twins:
                    reading.cancel()
                await asyncio.gather(*twins, return_exceptions=True)
                await until(lambda: len(app.scheduler.queue) == 0)
            if how in ("overdue", "leave"):
                await held.answer("x")
            elif how == "close":
                await app.scheduler.close()
                found = [await reading for reading in (*twins, other)]
                assert {answer_.status for answer_ in found} == {503}
        if how != "close":
            assert (await other).status == 200
        assert len(app.scheduler._flying) == 0
