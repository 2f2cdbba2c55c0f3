"""The clocks of exchanges: one timer sees every limit to be over, in time, and stops when nobody is watched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.ingest import Callbacks, Ingest, StreamLimits, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Mode
from tests.kit.clock import run_virtual, virtual

SSE = [("content-type", "text/event-stream")]
FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
DONE = b"data: [DONE]\n\n"


class Exchange:
    """A feeder that is watched, and when it ended as what."""

    def __init__(self, watch: Timeouts, *, mode: Mode = Mode.STREAM, key: bytes | None = b"k") -> None:
        self.loop = asyncio.get_running_loop()
        self.over: asyncio.Future[GatewayError | None] = self.loop.create_future()
        self.endings: list[tuple[float, GatewayError | None]] = []
        self.also: Callable[[], None] = lambda: None  # done at its end
        self.flight = Flight(FlightSpec("POST", "/", b"", mode, "r", key=key), self.loop.time)
        self.flight.enter(Phase.CONNECTING)
        self.flight.enter(Phase.PREFILL)
        self.ingest = Ingest(self.flight, watch, Callbacks(self.ended))

    def ended(self, error: GatewayError | None) -> None:
        self.endings.append((self.loop.time(), error))
        if not self.over.done():
            self.over.set_result(error)
        self.also()

    async def at(self) -> tuple[float, Code | None]:
        """When it ended, and as what."""
        await self.over
        ((when, error),) = self.endings
        return when, error.code if error is not None else None


def late(limits: StreamLimits) -> float:
    """By how much a limit may be overrun, in seconds; the loop's own clock has a grain."""
    bounds = [limit for limit in (limits.first_token, limits.token, limits.total) if limit]
    return min(1.0, min(bounds) / 10) + 1e-6


LIMITS = [
    StreamLimits(first_token=5.0, token=2.0, total=60.0),
    StreamLimits(first_token=300.0, token=60.0, total=1800.0),
    StreamLimits(first_token=0.1, token=0.05, total=0.3),
    StreamLimits(first_token=30.0, token=20.0, total=100.0),
]


def in_time(when: float, due: float, limits: StreamLimits) -> bool:
    return due <= when <= due + late(limits)


@pytest.mark.parametrize("limits", LIMITS, ids=lambda limits: f"{limits.token:g} s")
@pytest.mark.parametrize("head", [False, True])
@virtual
async def test_no_first_token_is_seen_in_time(limits: StreamLimits, head: bool) -> None:
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch)
    if head:
        exchange.ingest.head(200, SSE)
    when, code = await exchange.at()
    assert code is Code.UPSTREAM_FIRST_TOKEN_TIMEOUT
    assert in_time(when, limits.first_token, limits)
    watch.close()


@pytest.mark.parametrize("limits", LIMITS, ids=lambda limits: f"{limits.token:g} s")
@virtual
async def test_no_further_token_is_seen_in_time(limits: StreamLimits) -> None:
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch)
    exchange.ingest.head(200, SSE)
    for _ in range(2):
        await asyncio.sleep(limits.token * 0.8)
        exchange.ingest.body(FRAME)
    when, code = await exchange.at()
    assert code is Code.UPSTREAM_TOKEN_TIMEOUT
    assert in_time(when, limits.token * 2.6, limits)
    watch.close()


@pytest.mark.parametrize("limits", LIMITS, ids=lambda limits: f"{limits.token:g} s")
@virtual
async def test_an_answer_that_never_ends_is_seen_in_time(limits: StreamLimits) -> None:
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch)
    exchange.ingest.head(200, SSE)
    while not exchange.over.done():
        exchange.ingest.body(FRAME)
        await asyncio.sleep(limits.token / 2)
    when, code = await exchange.at()
    assert code is Code.UPSTREAM_TOTAL_TIMEOUT
    assert in_time(when, limits.total, limits)
    watch.close()


@virtual
async def test_one_body_is_as_late_as_its_last_token_may_be() -> None:
    limits = StreamLimits(first_token=5.0, token=2.0, total=60.0)
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch, mode=Mode.WHOLE)
    when, code = await exchange.at()
    assert code is Code.UPSTREAM_TOTAL_TIMEOUT
    assert in_time(when, 60.0, limits)
    watch.close()


def lagging() -> tuple[StreamLimits, Timeouts, Exchange]:
    """An exchange that has had a frame and is held back, as its reader lags."""
    limits = StreamLimits(first_token=5.0, token=2.0, total=60.0)
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch, key=None)
    exchange.ingest.head(200, SSE)
    exchange.ingest.body(FRAME)
    exchange.ingest.hold(True)
    return limits, watch, exchange


@virtual
async def test_while_its_reader_lags_an_engine_s_silence_is_no_failure() -> None:
    limits, watch, exchange = lagging()
    await asyncio.sleep(30.0)
    assert exchange.endings == []
    exchange.ingest.hold(False)  # the engine has its whole time again
    when, code = await exchange.at()
    assert code is Code.UPSTREAM_TOKEN_TIMEOUT
    assert in_time(when, 32.0, limits)
    watch.close()


@virtual
async def test_held_or_not_the_whole_answer_has_its_limit() -> None:
    limits, watch, exchange = lagging()
    when, code = await exchange.at()
    assert code is Code.UPSTREAM_TOTAL_TIMEOUT
    assert in_time(when, 60.0, limits)
    watch.close()


@virtual
async def test_a_limit_of_nothing_is_none() -> None:
    limits = StreamLimits(first_token=0.0, token=2.0, total=0.0)
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch)
    await asyncio.sleep(10_000.0)
    exchange.ingest.head(200, SSE)
    exchange.ingest.body(FRAME)
    assert (await exchange.at())[1] is Code.UPSTREAM_TOKEN_TIMEOUT
    watch.close()


class Counting:
    """A loop's `call_later`, counted: every timer that a Watch set."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.timers: list[asyncio.TimerHandle] = []
        self.loop = loop

    def call_later(self, delay: float, call: object) -> asyncio.TimerHandle:
        self.timers.append(self.loop.call_later(delay, call))  # type: ignore[arg-type]
        return self.timers[-1]

    def time(self) -> float:
        return self.loop.time()

    def waiting(self) -> int:
        now = self.loop.time()
        return sum(not timer.cancelled() and timer.when() > now for timer in self.timers)


def counted(limits: StreamLimits) -> tuple[Timeouts, Counting]:
    counting = Counting(asyncio.get_running_loop())
    return Timeouts(limits, counting), counting  # type: ignore[arg-type]


@virtual
async def test_with_no_limit_at_all_there_is_no_timer() -> None:
    limits = StreamLimits(first_token=0.0, token=0.0, total=0.0)
    watch, counting = counted(limits)
    Exchange(watch).ingest.close()
    assert counting.timers == []


@virtual
async def test_many_are_watched_by_one_timer_which_stops_when_nobody_is_watched() -> None:
    limits = StreamLimits(first_token=5.0, token=2.0, total=60.0)
    watch, counting = counted(limits)
    exchanges = [Exchange(watch) for _ in range(20)]
    for _ in range(10):
        assert counting.waiting() == 1
        await asyncio.sleep(0.2001)
    for exchange in exchanges:
        exchange.ingest.close()
    assert len(watch) == 0
    await asyncio.sleep(0.3)
    before = len(counting.timers)
    await asyncio.sleep(100.0)
    assert (counting.waiting(), len(counting.timers)) == (0, before)
    again = Exchange(watch)
    assert counting.waiting() == 1
    again.ingest.close()
    watch.close()


@virtual
async def test_a_watch_that_is_closed_leaves_no_timer() -> None:
    limits = StreamLimits()
    watch, counting = counted(limits)
    exchange = Exchange(watch)
    watch.close()
    assert counting.waiting() == 0
    exchange.ingest.close()


@pytest.mark.parametrize("how", ["landed", "failed", "closed"])
@virtual
async def test_what_has_ended_is_never_looked_at(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = StreamLimits(first_token=5.0, token=2.0, total=60.0)
    watch = Timeouts(limits, asyncio.get_running_loop())
    looked: list[Ingest] = []
    monkeypatch.setattr(Ingest, "look", lambda ingest: looked.append(ingest))
    one, other = Exchange(watch), Exchange(watch)
    one.ingest.head(200, SSE)
    if how == "landed":
        one.ingest.body(FRAME + DONE)
    elif how == "failed":
        one.ingest.end()
    else:
        one.ingest.close()
    await asyncio.sleep(1.0)
    assert set(looked) == {other.ingest}
    other.ingest.close()
    watch.close()


@virtual
async def test_one_whose_end_ends_another_is_the_only_one_to_fail() -> None:
    limits = StreamLimits(first_token=5.0, token=2.0, total=60.0)
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchanges = [Exchange(watch) for _ in range(3)]

    def all_close() -> None:
        for exchange in exchanges:
            exchange.ingest.close()

    for exchange in exchanges:
        exchange.also = all_close
    await asyncio.sleep(10.0)
    assert sum(len(exchange.endings) for exchange in exchanges) == 1
    assert len(watch) == 0
    watch.close()


async def pace(gaps: list[float], limits: StreamLimits) -> None:
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch)
    exchange.ingest.head(200, SSE)
    due, last = limits.first_token, 0.0
    for gap in gaps:
        await asyncio.wait([exchange.over], timeout=gap)
        if exchange.over.done():
            break
        exchange.ingest.body(FRAME)
        last = asyncio.get_running_loop().time()
        due = last + limits.token
    when, code = await exchange.at()
    due = min(due, limits.total)
    assert in_time(when, due, limits), (when, due, code)
    assert (code is Code.UPSTREAM_TOTAL_TIMEOUT) == (due == limits.total)
    watch.close()


@given(st.lists(st.floats(0.01, 8.0), max_size=20))
def test_at_whatever_pace_tokens_come_the_first_limit_that_is_over_ends_it(gaps: list[float]) -> None:
    run_virtual(pace(gaps, StreamLimits(first_token=5.0, token=2.0, total=9.0)))


@virtual
async def test_an_error_in_one_exchange_s_clock_is_told_and_stops_no_other_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = StreamLimits(first_token=5.0, token=2.0, total=60.0)
    faults: list[BaseException] = []
    watch = Timeouts(limits, asyncio.get_running_loop(), lambda where, error: faults.append(error))
    broken, fine = Exchange(watch), Exchange(watch)
    look, fault = Ingest.look, RuntimeError("ours")

    def looks(ingest: Ingest) -> None:
        if ingest is broken.ingest:
            raise fault
        look(ingest)

    monkeypatch.setattr(Ingest, "look", looks)
    when, code = await fine.at()
    assert code is Code.UPSTREAM_FIRST_TOKEN_TIMEOUT
    assert in_time(when, limits.first_token, limits)
    assert set(faults) == {fault}
    monkeypatch.setattr(Ingest, "look", look)  # its own clock goes on too
    assert (await broken.at())[1] is Code.UPSTREAM_FIRST_TOKEN_TIMEOUT
    watch.close()


@virtual
async def test_the_limit_of_the_whole_answer_is_over_all_attempts_at_it() -> None:
    limits = StreamLimits(first_token=0.0, token=0.0, total=60.0)
    watch = Timeouts(limits, asyncio.get_running_loop())
    first = Exchange(watch)
    first.flight.times.dispatched = asyncio.get_running_loop().time()
    await asyncio.sleep(50.0)
    first.ingest.close()
    over: asyncio.Future[GatewayError | None] = asyncio.get_running_loop().create_future()
    Ingest(first.flight, watch, Callbacks(over.set_result))
    error = await over
    assert error is not None
    assert error.code is Code.UPSTREAM_TOTAL_TIMEOUT
    assert in_time(asyncio.get_running_loop().time(), 60.0, limits)
    watch.close()


@virtual
async def test_the_clock_of_a_passed_through_body_begins_with_its_head() -> None:
    limits = StreamLimits(first_token=50.0, token=2.0, total=60.0)
    watch = Timeouts(limits, asyncio.get_running_loop())
    exchange = Exchange(watch, mode=Mode.RAW)
    await asyncio.sleep(10.0)
    exchange.ingest.head(200, [("content-type", "text/plain")])
    when, code = await exchange.at()
    assert code is Code.UPSTREAM_TOKEN_TIMEOUT
    assert in_time(when, 12.0, limits)
    watch.close()
