"""A Flight's way to an engine, without sockets: attempts, other engines, cancellation, one arrival."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from proxy.backends import Backend, Backends
from proxy.connection import Receiver
from proxy.errors import Code, GatewayError
from proxy.feeder import Limits, Watch
from proxy.flight import Flight, Phase
from proxy.group import FlightGroup
from proxy.journey import Journey, Road
from proxy.metrics import Metrics
from proxy.plan import Mode, Plan
from tests.clock import run_virtual, virtual

SSE = [("content-type", "text/event-stream")]
TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


class FakeConnection:
    """Keeps whom it serves; the test says what comes."""

    def __init__(self) -> None:
        self.receiver: Receiver | None = None
        self.sent: list[bytes] = []
        self.received = False
        self.released: bool | None = None  # with what `content` it was given up

    def send(self, request: bytes, receiver: Receiver) -> None:
        self.sent.append(request)
        self.receiver = receiver

    def release(self, receiver: Receiver, *, content: bool) -> None:
        assert receiver is self.receiver
        self.released = content

    def throttle(self, receiver: Receiver, hold: bool) -> None:
        assert receiver is self.receiver

    def answer(self, *pieces: bytes, end: bool = False) -> None:
        assert self.receiver is not None
        self.received = True
        self.receiver.head(200, SSE)
        for piece in pieces:
            self.receiver.body(piece)
        if end:
            self.receiver.end()

    def lose(self, code: Code = Code.UPSTREAM_UNREACHABLE) -> None:
        assert self.receiver is not None
        self.receiver.lost(GatewayError(code, "lost"))


class FakePool:
    """Kept connections, then new ones: each made when the test lets it."""

    def __init__(self, *kept: FakeConnection, refuses: bool = False, holds: bool = False) -> None:
        self.kept = list(kept)
        self.made: list[FakeConnection] = []
        self.given: list[FakeConnection] = []
        self.unwritable = False
        self._refuses = refuses
        self._gate = asyncio.Event()
        if not holds:
            self._gate.set()

    def take(self) -> FakeConnection | None:
        return self.kept.pop() if self.kept else None

    async def connect(self) -> FakeConnection:
        await self._gate.wait()
        if self._refuses:
            raise GatewayError(Code.UPSTREAM_UNREACHABLE, "refused")
        self.made.append(FakeConnection())
        return self.made[-1]

    def give(self, connection: FakeConnection) -> None:
        self.given.append(connection)

    def request(self, method: str, path: str, headers: Any, body: bytes) -> bytes:
        if self.unwritable:
            raise GatewayError(Code.INVALID_HEADER, "no")
        return f"{method} {path}".encode()


class Trip:
    """A journey and all that it needs."""

    def __init__(self, *pools: FakePool) -> None:
        self.group = FlightGroup()
        self.flight: Flight = self.group.launch(Plan("POST", "/x", b"{}", Mode.STREAM, "r", model="m"))
        self.engines = [Backend(f"e{n}", cast(Any, pool), 8, up=True) for n, pool in enumerate(pools)]
        self.backends = Backends(self.engines)
        self.watch = Watch(Limits(), asyncio.get_running_loop())
        self.metrics = Metrics()
        self.tasks: list[asyncio.Task[None]] = []
        self.arrivals: list[GatewayError | None] = []
        road = Road(self.backends, Limits(), self.watch, self.metrics, self.tasks.append, self._arrived)
        lease = self.backends.acquire("m")
        assert lease is not None
        self.journey = Journey(self.flight, lease, road)
        self.journey.begin()

    def _arrived(self, journey: Journey, error: GatewayError | None) -> None:
        self.arrivals.append(error)

    async def settled(self) -> None:
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def end(self) -> None:
        """What the scheduler does when it is over."""
        self.journey.lease.release()
        assert all(engine.inflight == 0 for engine in self.engines)
        assert len(self.watch) == 0
        self.watch.close()
        if not self.flight.ended:
            self.flight.cancel()
        self.group.remove(self.flight)

    def errors(self) -> str:
        return self.metrics.render("")[0].decode()


@virtual
async def test_an_answer_that_is_whole_lands_and_its_connection_is_kept() -> None:
    kept = FakeConnection()
    trip = Trip(FakePool(kept))
    assert (kept.sent, trip.flight.phase, trip.tasks) == ([b"POST /x"], Phase.PREFILL, [])
    kept.answer(TOKEN, DONE)
    assert (trip.arrivals, kept.released, trip.flight.phase) == ([None], True, Phase.LANDED)
    trip.end()


@virtual
async def test_a_kept_connection_that_had_died_is_replaced_and_is_not_the_engine_s_failure() -> None:
    dead = FakeConnection()
    pool = FakePool(dead)
    trip = Trip(pool)
    dead.lose()
    await trip.settled()
    (fresh,) = pool.made
    assert trip.engines[0].up
    assert "gateway_upstream_errors_total{" not in trip.errors()
    fresh.answer(TOKEN, DONE)
    assert trip.arrivals == [None]
    trip.end()


@virtual
async def test_a_new_connection_that_dies_before_it_answers_is_the_engine_s_failure() -> None:
    pool = FakePool()
    trip = Trip(pool)
    await trip.settled()
    pool.made[0].lose()
    assert [error.code for error in trip.arrivals if error] == [Code.UPSTREAM_UNREACHABLE]
    assert not trip.engines[0].up
    trip.end()


@virtual
async def test_an_engine_that_cannot_be_reached_is_passed_over_for_another() -> None:
    there = FakeConnection()
    trip = Trip(FakePool(refuses=True), FakePool(there))
    await trip.settled()
    assert (trip.engines[0].up, trip.engines[0].inflight, trip.engines[1].inflight) == (False, 0, 1)
    assert trip.flight.backend == "e1"
    there.answer(TOKEN, DONE)
    assert trip.arrivals == [None]
    trip.end()


@virtual
async def test_nothing_is_tried_elsewhere_once_something_has_come() -> None:
    first, second = FakeConnection(), FakeConnection()
    trip = Trip(FakePool(first), FakePool(second))
    first.answer(TOKEN)
    first.lose()
    assert [error.code for error in trip.arrivals if error] == [Code.UPSTREAM_UNREACHABLE]
    assert (second.sent, first.released) == ([], False)
    trip.end()


@virtual
async def test_a_request_that_cannot_be_written_gives_its_connection_back() -> None:
    kept = FakeConnection()
    pool = FakePool()
    trip = Trip(pool)
    pool.unwritable = True
    await trip.settled()
    assert [error.code for error in trip.arrivals if error] == [Code.INVALID_HEADER]
    assert (len(pool.given), kept.sent) == (1, [])
    trip.end()


@virtual
async def test_cancelling_while_connecting_ends_the_attempt() -> None:
    trip = Trip(FakePool(holds=True))
    trip.journey.cancel()
    await trip.settled()
    assert (trip.tasks[0].cancelled(), trip.arrivals) == (True, [])
    trip.end()


@virtual
async def test_cancelling_in_prefill_and_in_mid_stream_closes_the_connection() -> None:
    for streaming in (False, True):
        kept = FakeConnection()
        trip = Trip(FakePool(kept))
        if streaming:
            kept.answer(TOKEN)
        trip.journey.cancel()
        assert (kept.released, trip.arrivals) == (False, [])
        kept.lose()  # what still comes meets nobody
        assert trip.arrivals == []
        trip.end()


@given(st.lists(st.sampled_from(["head", "token", "done", "end", "lost", "cancel", "turn"]), max_size=12))
def test_it_arrives_at_most_once_whatever_comes_in_whatever_order(script: list[str]) -> None:
    async def play() -> None:
        connection = FakeConnection()
        pool = FakePool(connection)
        trip = Trip(pool)
        headed = cancelled = False
        for step in script:
            at = [connection, *pool.made][-1]
            if step == "turn":
                await trip.settled()
            elif step == "cancel":
                trip.journey.cancel()
                cancelled = True
            elif at.receiver is None or (step in ("token", "done", "end") and not headed):
                continue
            elif step == "head":
                if not headed:
                    at.received = headed = True
                    at.receiver.head(200, SSE)
            elif step in ("token", "done"):
                at.receiver.body(TOKEN if step == "token" else DONE)
            elif step == "end":
                at.receiver.end()
            else:
                at.lose()
        trip.journey.cancel()
        await trip.settled()
        assert len(trip.arrivals) <= 1
        assert not (cancelled and script[0] == "cancel" and trip.arrivals)
        trip.end()

    run_virtual(play())
