"""One request's facts to its end: what it begins with, what it gives back, what is counted and logged of it."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.http_writer import HttpVersion10
from aiohttp.web_exceptions import HTTPBadRequest

from proxy.access.caller import Caller
from proxy.access.ratelimit.limiter import Reservation
from proxy.config.settings import Settings
from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.memory import Held, Memory
from proxy.flights.spec import Items, Mode
from proxy.server.body import AHEAD, BODY_COST, GRANULE, LEAST_FREE, body_if_buffered, free_body, read_body
from proxy.server.context import RequestContext
from proxy.server.listener.request import AT_HAND, Request
from tests.kit.clock import virtual
from tests.kit.planned import planned
from tests.proxy.server.test_context import Body, Limits, Told, call, read

ERROR = GatewayError(Code.KEY_REVOKED, "revoked")


def reader_of(**changes: Any) -> Subscriber:
    spec, state = planned(b"", Mode.STREAM, **changes)
    flight = Flight(spec, queue_state=state)
    reader = Subscriber(flight)
    flight.subscribers.add(reader)
    return reader


def test_a_request_begins_with_nothing_known_of_it() -> None:
    before = time.monotonic()
    fresh = RequestContext(cast(Request, Body()), "id")
    flags = (fresh.stream, fresh.client_left, fresh.admin, fresh.named)
    assert flags == (False, False, False, True)
    assert (fresh.endpoint, fresh.status, fresh.bytes_out, fresh.verdict) == ("unknown", 0, 0, "bypass")
    assert before <= fresh.began <= time.monotonic()


@virtual
async def test_a_request_is_cut_once_and_not_after_its_end() -> None:
    async def waits() -> None:
        await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(waits())
    await asyncio.sleep(0)
    one = RequestContext(cast(Request, SimpleNamespace(task=task)), "id")
    assert (one.cut(ERROR), one.cut(GatewayError(Code.NOT_FOUND, "x"))) == (True, False)
    assert one.ending is ERROR
    with pytest.raises(asyncio.CancelledError):
        await task
    other = RequestContext(cast(Request, SimpleNamespace(task=task)), "id")
    assert (other.cut(ERROR), other.ending) == (False, None)


class Holds:
    """A hold of the limits, and a trace."""

    limit = "tokens"
    id = "trace"

    def __init__(self, *, fails: bool = False) -> None:
        self.told: list[object] = []
        self.fails = fails

    def joins(self, reader: Subscriber) -> None:
        self.told.append(reader)

    def reads(self, call: RequestContext, reader: Subscriber) -> None:
        self.told.append((call, reader))

    def ended(self, call: RequestContext) -> None:
        self.told.append("ended")

    def headers(self) -> list[tuple[str, str]]:
        return [("x-ratelimit-limit-requests", "1")]

    def close(self, *, answered: bool) -> None:
        self.told.append(answered)


def test_who_reads_a_flight_is_told_to_the_limits_and_to_the_trace() -> None:
    hold, trace, reader = Holds(), Holds(), reader_of()
    one = call(hold=cast(Reservation, hold), trace=trace)
    one.attach_reader(reader)
    assert one.reader is reader
    assert (hold.told, trace.told) == ([reader], [(one, reader)])
    bare = call()
    bare.attach_reader(reader)
    assert bare.reader is reader


def test_every_answer_says_its_id_and_what_is_left() -> None:
    one = call()
    assert one.headers() == [("x-request-id", "id")]
    one.allow, one.hold = "GET", cast(Reservation, Holds())
    assert one.headers() == [("x-request-id", "id"), ("allow", "GET"), ("x-ratelimit-limit-requests", "1")]


@pytest.mark.parametrize(
    ("status", "answered"), [(0, False), (1, True), (200, True), (399, True), (400, False), (503, False)]
)
def test_at_its_end_all_goes_back(status: int, answered: bool) -> None:
    memory, hold, reader = Memory(1000), Holds(), reader_of()
    held, unread = Held(memory, "a", "uploads"), Held(memory, "a", "unread")
    held.need(10)
    unread.need(20)
    one = call(hold=cast(Reservation, hold), reader=reader, held=held, unread=unread)
    one.status = status
    forgotten: list[int] = []
    one.when_closed(lambda: forgotten.append(1))
    one.close()
    assert (memory.held, hold.told, reader.flight.subscribers, forgotten) == (0, [answered], set(), [1])
    call().close()  # with nothing to give back


@pytest.mark.parametrize("fails", ["held", "reader"])
def test_what_cannot_be_given_back_keeps_nothing_else_from_going_back(fails: str) -> None:
    def raises() -> None:
        raise ZeroDivisionError

    hold, reader = Holds(), reader_of()
    one = call(hold=cast(Reservation, hold), reader=reader)
    if fails == "held":
        one.held = cast(Held, SimpleNamespace(release=raises))
    else:
        one.reader = cast(Subscriber, SimpleNamespace(leave=raises))
    with pytest.raises(ZeroDivisionError):
        one.close()
    assert hold.told == [True]
    assert (reader.flight.subscribers == set()) is (fails == "held")


def test_whose_it_is() -> None:
    peer = cast(Request, SimpleNamespace(remote="10.0.0.1"))
    assert RequestContext(peer, "id").whose() == "10.0.0.1"
    assert RequestContext(peer, "id", caller=Caller(id="k")).whose() == "k"
    assert RequestContext(cast(Request, SimpleNamespace(remote=None)), "id").whose() == ""


def test_times_are_from_its_own_begin() -> None:
    reader = reader_of()
    one = call(reader=reader)
    times = reader.flight.times
    assert [one.ttft_ms] == [None]
    one.began -= 10.0
    times.dispatched, times.first = one.began + 2.0, one.began + 3.0
    assert one.ttft_ms == 3000.0
    counted, record = Told().of(one)
    assert counted["queue_s"] == pytest.approx(2.0)
    assert counted["ttft_s"] == pytest.approx(3.0)
    assert counted["total_s"] == pytest.approx(10.0, abs=0.5)
    assert (record.queue_ms, record.ttft_ms) == (2000.0, 3000.0)
    assert record.total_ms == pytest.approx(10_000, abs=500)
    times.dispatched, times.ended = None, one.began + 4.0
    assert Told().of(one)[0]["queue_s"] == pytest.approx(4.0)  # it ended in the queue
    times.ended = None
    assert Told().of(one)[0]["queue_s"] == 0.0
    times.dispatched = one.began + 1e6  # by another clock: never more than in all
    facts = Told().of(one)[0]
    assert facts["queue_s"] == facts["total_s"]


def test_a_share_of_usage_is_told_as_an_estimate() -> None:
    from proxy.wire.frames import Usage

    reader = reader_of()
    reader.flight.usage, reader.flight.estimated = Usage(5, 4, 9), True
    assert Told().of(call(reader=reader))[0]["token_source"] == "estimated"


def test_what_is_logged_of_a_request() -> None:
    reader = reader_of()
    reader.flight.items, reader.flight.backend, reader.flight.attempts = Items(5, 2, 0), "e", 3
    reader.sent = 77
    hold, trace = Holds(), Holds()
    one = call(
        reader=reader,
        hold=cast(Reservation, hold),
        trace=trace,
        caller=Caller(id="i", name="team"),
        model="m",
        stream=True,
    )
    one.request.method = "G" * 20
    one.client = "10.0.0.1"
    _, record = Told().of(one)
    assert trace.told == ["ended"]
    assert (record.method, record.stream, record.bytes_out, record.client_left) == ("G" * 16, True, 77, False)
    assert (record.items, record.items_cached, record.backend, record.attempts) == (5, 2, "e", 3)
    assert (record.key, record.trace_id, record.client, record.limit) == ("team", "trace", "10.0.0.1", "tokens")
    assert record.upstream_id is None  # it went nowhere
    one.bytes_out = 5
    reader.flight.times.dispatched = 1.0
    _, record = Told().of(one)
    assert (record.bytes_out, record.upstream_id) == (5, "r")
    reader.flight.carried_as = "other"
    assert Told().of(one)[1].upstream_id == "other"
    reader.flight.carried_as = one.id
    assert Told().of(one)[1].upstream_id is None
    one.caller = Caller(id="i")
    assert Told().of(one)[1].key is None
    bare = Told().of(call())[1]
    assert (bare.attempts, bare.bytes_out, bare.items, bare.limit, bare.upstream_id) == (1, 0, None, None, None)


def test_the_log_is_told_whose_line_it_is_where_that_is_known() -> None:
    lines: list[tuple[object, ...]] = []
    metrics = SimpleNamespace(request=lambda *facts: None)
    log = SimpleNamespace(request=lambda *line: lines.append(line))
    one = call()
    one.record_outcome(cast(Any, metrics), cast(Any, log), show_prompt=False)
    one.record_outcome(cast(Any, metrics), cast(Any, log), show_prompt=False, owner=lambda: "w")
    assert [len(line) for line in lines] == [1, 2]


# -- bodies


@pytest.mark.parametrize(
    ("budget", "most", "free"),
    [
        (4 * 10 * LEAST_FREE, 10, LEAST_FREE),
        (4 * 10 * (LEAST_FREE + 1), 10, LEAST_FREE + 1),
        (4 * 10 * (LEAST_FREE - 1), 10, LEAST_FREE),
        (1 << 40, 1, AT_HAND),
    ],
)
def test_a_quarter_of_the_budget_is_free_for_small_bodies(budget: int, most: int, free: int) -> None:
    assert free_body(budget, most) == free


@pytest.mark.parametrize(
    ("size", "most", "limit", "found"), [(8, 8, 0, True), (8, 7, 0, False), (10, 99, 0, True), (12, 99, 12, True)]
)
def test_a_body_is_at_hand_up_to_a_size(size: int, most: int, limit: int, found: bool) -> None:
    for length in (size, None):
        body = Body(b"x" * size, complete=True, length=length)
        at_hand = body_if_buffered(
            cast(Request, body), cast(Settings, Limits()), json=True, most=most, limit=limit
        )
        assert at_hand == (b"x" * size if found else None)


@pytest.mark.parametrize("length", [13, None])
def test_a_bound_of_its_own_is_told_where_a_body_is_over_it(length: int | None) -> None:
    body = Body(b"x" * 13, complete=True, length=length)
    with pytest.raises(GatewayError, match="12 bytes"):
        body_if_buffered(cast(Request, body), cast(Settings, Limits()), json=True, limit=12)


@virtual
async def test_a_body_is_charged_before_it_is_read_and_as_it_grows() -> None:
    settings = cast(Settings, SimpleNamespace(max_body_bytes=10**9, body_timeout=0.0))
    memory = Memory(10**9)
    held = Held(memory, "a", "uploads")
    sizes: list[int] = []

    class Watched(Body):
        async def readany(self) -> bytes:
            sizes.append(memory.held)
            return await super().readany()

    known = Watched(b"x" * 100, length=100)
    assert await read_body(cast(Request, known), settings, held) == b"x" * 100
    assert sizes == [BODY_COST * 100] * 2
    sizes.clear()
    held.release()
    pieces = [b"x", b"x" * AHEAD, b"x" * 7 * AHEAD, b"x" * (2 * AHEAD - 1)]
    slow = Watched(*pieces, length=10 * AHEAD)
    assert await read_body(cast(Request, slow), settings, held) == b"".join(pieces)
    assert sizes == [BODY_COST * size for size in (AHEAD, AHEAD, 3 * AHEAD + 2, 10 * AHEAD, 10 * AHEAD)]
    sizes.clear()
    held.release()
    grows = Watched(b"x" * GRANULE, b"y", b"z" * 5)
    assert len(await read_body(cast(Request, grows), settings, held)) == GRANULE + 6
    first, more = BODY_COST * GRANULE, BODY_COST * (2 * GRANULE + 1)
    assert sizes == [first, first, more, more]
    full = Held(Memory(10), "a", "uploads")
    with pytest.raises(GatewayError) as refused:
        await read_body(cast(Request, Body(b"x", length=100)), settings, full)
    assert refused.value.code is Code.MEMORY_FULL


@virtual
async def test_a_body_may_be_as_large_as_is_allowed_and_has_its_time() -> None:
    settings = cast(Settings, Limits())
    assert await read_body(cast(Request, Body(b"01234", b"56789")), settings) == b"0123456789"
    assert await read_body(cast(Request, Body(b"x" * 12)), settings, None, 12) == b"x" * 12
    with pytest.raises(GatewayError, match=r"within 2 s\."):
        await read_body(cast(Request, Body(None)), settings)
    assert asyncio.get_running_loop().time() == pytest.approx(2.0)


@pytest.mark.parametrize("fault", [HTTPBadRequest(), ValueError("x"), web.RequestPayloadError("x")])
@virtual
async def test_a_body_that_cannot_be_read_is_the_client_s_mistake(fault: Exception) -> None:
    with pytest.raises(
        GatewayError, match="is malformed: it ends too early, or its chunks or encoding"
    ) as refused:
        await read(Body(b"a", fault))
    assert refused.value.code is Code.INVALID_VALUE


@virtual
async def test_a_client_of_http_1_0_and_one_that_expects_nothing_are_told_no_100() -> None:
    settings = cast(Settings, Limits())
    for version, expect in ((HttpVersion10, "100-continue"), (None, "x")):
        body = Body(b"a", expect=expect)
        body.version = version or body.version
        assert await read_body(cast(Request, body), settings) == b"a"
        assert body.written == b""
    body = Body(b"a", expect="100-continue")
    body.transport = None  # type: ignore[assignment]
    assert await read_body(cast(Request, body), settings) == b"a"
