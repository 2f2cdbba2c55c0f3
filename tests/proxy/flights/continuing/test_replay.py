"""A flight whose stream breaks, and engines in memory: what readers make of it, under any split of the bytes."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.continuing.continuations import BLAMED_SECONDS
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.spec import FlightSpec, Mode
from proxy.upstream.retry import Budget, RetryRules
from proxy.wire.openai import decode
from proxy.wire.sse import unchunks
from tests.kit.clock import run_virtual, virtual
from tests.kit.trip import Trip, Wire
from tests.proxy.flights.continuing.test_comparison import ROLE, TEXT, chat, cut, merged, other, say, tracks, usage

DONE = b"data: [DONE]\n\n"
STOP = chat(finish="stop")
CUT = GatewayError(Code.UPSTREAM_TRUNCATED, "cut")
ABORT = chat({"content": "lost"}, finish="abort")
REFUSED = GatewayError(Code.UPSTREAM_UNREACHABLE, "refused")
FAILED = b'data: {"error":{"message":"out of memory","code":500}}\n\n'


def spec(
    body: bytes = b'{"messages":[{"role":"user","content":"x"}],"temperature":0,"stream":true}', **more: Any
) -> FlightSpec:
    given: dict[str, Any] = {"key": b"k", "usage_added": True, "parts": 1} | more
    return FlightSpec("POST", "/", body, Mode.STREAM, "r", api_request=decode("chat", body), **given)


class Reader:
    """A client that reads everything."""

    def __init__(self, flight: Flight, *, usage: bool = True) -> None:
        self.data = b""
        self.subscriber = Subscriber(flight, usage=usage)
        flight.subscribers.add(self.subscriber)
        self.subscriber.write_to(self)

    def write(self, data: bytes | memoryview) -> bool:
        self.data += data
        return True

    @property
    def frames(self) -> list[bytes]:
        assert self.data.endswith(b"0\r\n\r\n")
        return unchunks(self.data.removesuffix(b"0\r\n\r\n"))


def trip_of(flight: FlightSpec | None = None, *, engines: int = 3, retries: int = 2) -> Trip:
    return Trip(engines, spec=flight or spec(), retry=RetryRules(retries=retries))


async def engine(trip: Trip, number: int) -> Wire:
    wire = await trip.dialled(number)
    wire.head()
    return wire


@virtual
async def test_readers_see_nothing_of_a_break() -> None:
    trip = trip_of()
    counted, plain = Reader(trip.flight), Reader(trip.flight, usage=False)
    trip.exchange.begin()
    wire = await engine(trip, 0)
    wire.body(ROLE + say("a") + say("b"))
    assert len(counted.data) > 0
    before = counted.data
    wire.lose(CUT)
    wire = await engine(trip, 1)
    wire.body(other(ROLE + say("a")))
    late = Reader(trip.flight, usage=False)
    assert counted.data == before
    wire.body(other(say("bc")))
    assert counted.data != before
    wire.body(other(STOP + usage()) + DONE)
    assert counted.frames == [ROLE, say("a"), say("b"), say("c"), STOP, usage(), DONE]
    assert plain.frames == late.frames == [ROLE, say("a"), say("b"), say("c"), STOP, DONE]
    assert trip.arrivals == [None]
    assert (trip.flight.attempts, trip.flight.continued, trip.flight.backend) == (2, "replay", "e1")
    assert trip.flight.usage is not None
    assert trip.flight.usage.completion_tokens == 3
    assert trip.exchange.ingest is not None
    assert trip.exchange.ingest.clean
    assert (trip.counted("e0"), trip.counted("e1")) == ((1, 1), (1, 0))
    await trip.left_nothing()


@pytest.mark.parametrize("last", [ABORT, FAILED], ids=["abort", "error"])
@virtual
async def test_an_end_that_is_withheld_is_not_shown_and_the_connection_is_closed(last: bytes) -> None:
    trip = trip_of()
    reader = Reader(trip.flight)
    trip.exchange.begin()
    wire = await engine(trip, 0)
    wire.body(ROLE + say("a"))
    wire.body(say("b") + last + DONE)
    assert (wire.kept, trip.arrivals) == (False, [])
    wire = await engine(trip, 1)
    wire.body(other(ROLE + say("ab") + STOP) + DONE)
    assert reader.frames == [ROLE, say("a"), say("b"), STOP, DONE]
    await trip.left_nothing()


@virtual
async def test_at_a_difference_the_engine_is_left_and_is_not_to_blame() -> None:
    trip = trip_of()
    reader = Reader(trip.flight)
    trip.exchange.begin()
    wire = await engine(trip, 0)
    wire.body(ROLE + say("ab"))
    wire.lose(CUT)
    wire = await engine(trip, 1)
    wire.body(other(ROLE + say("a") + say("c") + STOP) + DONE)
    assert wire.kept is False
    (error,) = trip.arrivals
    assert error is not None
    assert error.code is Code.UPSTREAM_TRUNCATED
    assert error.message == "cut The stream cannot be continued: another engine's answer has another content."
    assert reader.frames[:2] == [ROLE, say("ab")]
    assert json.loads(reader.frames[2][6:])["error"]["code"] == "upstream_truncated"
    assert trip.counted("e1") == (1, 0)
    await trip.left_nothing()


@virtual
async def test_it_is_cancelled_with_the_last_reader_in_every_phase() -> None:
    for phase in ("connecting", "prefill", "comparing", "continued"):
        trip = trip_of()
        Reader(trip.flight)
        trip.exchange.begin()
        (await engine(trip, 0)).body(ROLE + say("a"))
        trip.engines[0].wire.lose(CUT)
        if phase != "connecting":
            wire = await engine(trip, 1)
            if phase != "prefill":
                wire.body(other(ROLE))
            if phase == "continued":
                wire.body(other(say("ab")))
        trip.cancel()
        assert 'outcome="cancelled"} 1' in trip.metrics.render("text/plain")[0].decode()
        await trip.left_nothing()


@pytest.mark.parametrize(
    "change",
    [{"key": None}, {"body": b'{"messages":[{"role":"user","content":"x"}],"temperature":1,"stream":true}'}],
    ids=["private", "sampled"],
)
@virtual
async def test_what_is_not_the_same_twice_or_is_not_kept_is_not_continued(change: dict[str, Any]) -> None:
    trip = trip_of(spec(**change))
    reader = Reader(trip.flight)
    trip.exchange.begin()
    (await engine(trip, 0)).body(ROLE + say("a"))
    trip.engines[0].wire.lose(CUT)
    assert trip.arrivals == [CUT]
    assert b"cut" in reader.frames[-1]
    await trip.left_nothing()


@pytest.mark.parametrize("begun", [False, True], ids=["prefill", "middle"])
@virtual
async def test_a_request_over_which_two_engines_die_reaches_no_third(begun: bool) -> None:
    trip = trip_of()
    reader = Reader(trip.flight)
    trip.exchange.begin()
    (await engine(trip, 0)).body(ROLE + say("a"))
    trip.engines[0].wire.lose(CUT)
    second = await trip.dialled(1)
    if begun:
        second.head()
        second.body(other(ROLE + say("a")))
    second.lose(CUT)
    await trip.dialled(1, error=REFUSED)
    (error,) = trip.arrivals
    assert error is not None
    assert error.message == "cut The stream cannot be continued: the engine that continued it is gone too."
    assert b"upstream_truncated" in reader.frames[-1]
    assert not trip.engines[2].dials
    assert trip.backends.all[1].up is False
    assert trip.continuations.blamed(trip.flight)
    assert len(trip.continuations) == 0
    await trip.left_nothing()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("boom", "The engine failed in its stream: boom."),
        ("boom.", "The engine failed in its stream: boom."),
        (" ", "The engine failed in its stream."),
    ],
)
@virtual
async def test_why_a_stream_broke_is_said_once(said: str, words: str) -> None:
    failed = b'data: {"error":{"message":"%b","code":500}}\n\n' % said.encode()
    trip = trip_of()
    reader = Reader(trip.flight)
    trip.exchange.begin()
    for at in range(3):
        each = await engine(trip, at)
        each.body(ROLE if at == 0 else other(ROLE))  # with it in one read, the error would be told in its place
        each.body(failed)
    (error,) = trip.arrivals
    assert error is not None
    assert error.message == f"{words} The stream cannot be continued."
    assert error.message.encode() in reader.frames[-1]
    await trip.left_nothing()


@virtual
async def test_a_gateway_that_lacks_resources_blames_neither_the_engine_nor_the_request() -> None:
    trip = trip_of()
    Reader(trip.flight)
    trip.exchange.begin()
    (await engine(trip, 0)).body(ROLE + say("a"))
    trip.engines[0].wire.lose(CUT)
    (await engine(trip, 1)).lose(CUT)
    await trip.dialled(1, error=GatewayError(Code.LOCAL_RESOURCES, "No file descriptor is left."))
    (error,) = trip.arrivals
    assert error is not None
    assert error.message == "cut The stream cannot be continued: No file descriptor is left."
    assert trip.backends.all[1].up is not False
    assert not trip.continuations.blamed(trip.flight)
    await trip.left_nothing()


@virtual
async def test_the_limit_of_an_earlier_wait_does_not_end_a_backoff() -> None:
    trip = trip_of(engines=1)
    reader = Reader(trip.flight)
    trip.exchange.begin()
    (await engine(trip, 0)).body(ROLE + say("a"))
    trip.engines[0].wire.lose(CUT)
    trip.exchange.give_up(REFUSED)
    assert trip.arrivals == []
    await asyncio.sleep(60)
    (await engine(trip, 0)).body(other(ROLE + say("a") + STOP) + DONE)
    assert reader.frames == [ROLE, say("a"), STOP, DONE]
    assert trip.arrivals == [None]
    await trip.left_nothing()


@virtual
async def test_a_blamed_request_is_not_continued_until_its_time_is_over() -> None:
    for again, arrivals in ((0.0, [CUT]), (BLAMED_SECONDS, [])):
        trip = trip_of()
        Reader(trip.flight)
        trip.continuations.blame(trip.flight)
        await asyncio.sleep(again)
        trip.exchange.begin()
        (await engine(trip, 0)).body(ROLE + say("a"))
        trip.engines[0].wire.lose(CUT)
        assert trip.arrivals == arrivals
        if not arrivals:
            trip.cancel()
        await trip.left_nothing()


@virtual
async def test_a_second_continuation_takes_from_the_retry_budget() -> None:
    for tokens, arrived in ((0.0, 1), (1.0, 0)):
        trip = Trip(3, spec=spec(), retry=RetryRules(retries=2), budget=Budget(0.0, tokens))
        Reader(trip.flight)
        trip.exchange.begin()
        (await engine(trip, 0)).body(ROLE + say("a"))
        trip.engines[0].wire.lose(CUT)
        (await engine(trip, 1)).body(other(ROLE))
        trip.engines[1].wire.lose(CUT)
        await trip.dialled(1)  # it lives
        assert len(trip.arrivals) == arrived
        if not arrived:
            trip.cancel()
        await trip.left_nothing()


@virtual
async def test_a_request_whose_reader_leaves_while_its_engine_is_looked_at_ends() -> None:
    trip = trip_of()
    Reader(trip.flight)
    trip.exchange.begin()
    (await engine(trip, 0)).body(ROLE + say("a"))
    trip.engines[0].wire.lose(CUT)
    (await engine(trip, 1)).lose(CUT)
    await trip.turn()
    trip.cancel()
    assert len(trip.continuations) == 0
    await trip.left_nothing()


async def handed_over(*, room: int = 1) -> tuple[Trip, Reader, Wire, Wire]:
    """A stream of two tokens whose engine is removed, and the request for it at another engine."""
    trip = trip_of()
    reader = Reader(trip.flight)
    trip.exchange.begin()
    first = await engine(trip, 0)
    first.body(ROLE + say("a") + say("b"))
    trip.exchange.hand_over()
    trip.exchange.hand_over()  # once is enough
    return trip, reader, first, await engine(trip, 1)


def outcome(trip: Trip) -> dict[str, int]:
    page = trip.metrics.render("text/plain")[0].decode()
    rows = [line.split() for line in page.splitlines() if 'streams_continued_total{how="replay"' in line]
    return {name.split('outcome="')[1].rstrip('"}'): int(count) for name, count in rows if count != "0"}


@virtual
async def test_a_stream_is_handed_over_once_another_engine_has_repeated_it() -> None:
    trip, reader, first, second = await handed_over()
    assert first.held == [True]
    second.body(other(ROLE + say("ab")))
    assert (trip.inflight, first.kept, trip.flight.continued) == ([1, 1, 0], None, None)
    second.body(other(say("c")))
    assert (trip.inflight, first.kept, trip.flight.continued) == ([0, 1, 0], False, "replay")
    second.body(other(STOP) + DONE)
    assert reader.frames == [ROLE, say("a"), say("b"), say("c"), STOP, DONE]
    assert (trip.arrivals, outcome(trip)) == ([None], {"exact": 1})
    assert (trip.flight.backend, trip.flight.attempts) == ("e1", 2)
    await trip.left_nothing()


@pytest.mark.parametrize("how", ["differs", "cut", "status", "busy", "abort", "error", "cannot be written"])
@virtual
async def test_a_stream_that_no_other_engine_repeats_goes_on_where_it_is(how: str) -> None:
    trip, reader, first, second = await handed_over()
    if how == "differs":
        second.body(other(ROLE + say("x")))
    elif how == "cut":
        second.lose(CUT)
    elif how in ("abort", "error"):
        second.body(other(ROLE) + (ABORT if how == "abort" else FAILED))
    else:
        trip.cancel()
        trip = trip_of()
        reader = Reader(trip.flight)
        trip.exchange.begin()
        first = await engine(trip, 0)
        first.body(ROLE + say("a") + say("b"))
        if how == "cannot be written":
            trip.engines[1].refuses = GatewayError(Code.INVALID_HEADER, "no")
        trip.exchange.hand_over()
        second = await trip.dialled(1)
        if how != "cannot be written":
            second.head(404 if how == "status" else 503, [("content-length", "2")])
            second.body(b"{}")
            second.end()
    assert (trip.arrivals, trip.inflight, first.held) == ([], [1, 0, 0], [True, False])
    assert outcome(trip) == {"stayed": 1}
    trip.exchange.hand_over()  # not again
    first.body(say("c") + STOP + DONE)
    assert reader.frames == [ROLE, say("a"), say("b"), say("c"), STOP, DONE]
    assert (trip.arrivals, trip.flight.backend, trip.flight.continued) == ([None], "e0", None)
    assert len(trip.continuations) == 0
    await trip.left_nothing()


@virtual
async def test_a_removed_engine_whose_stream_ends_meanwhile_has_ended_it() -> None:
    for last in (STOP + DONE, b""):
        trip, reader, first, second = await handed_over()
        second.body(other(ROLE))
        if last:  # it was on its way when reading was paused
            first.body(say("c") + last)
            assert reader.frames == [ROLE, say("a"), say("b"), say("c"), STOP, DONE]
            assert trip.arrivals == [None]
        else:
            first.lose(CUT)
            assert not trip.arrivals
            trip.cancel()
        assert second.receiver is None
        await trip.left_nothing()


@virtual
async def test_a_removed_engine_whose_stream_ends_while_another_is_dialled_has_ended_it() -> None:
    trip = trip_of()
    Reader(trip.flight)
    trip.exchange.begin()
    first = await engine(trip, 0)
    first.body(ROLE + say("a"))
    trip.exchange.hand_over()
    await trip.turn()
    late = GatewayError(Code.UPSTREAM_TOTAL_TIMEOUT, "late")
    first.lose(late)
    assert trip.arrivals == [late]
    await trip.turn()
    assert trip.engines[1].dials[-1].cancelled()
    assert (trip.arrivals, trip.faults, outcome(trip)) == ([late], [], {"stayed": 1})
    await trip.left_nothing()


@virtual
async def test_bytes_that_were_on_their_way_are_not_shown_twice() -> None:
    trip, reader, first, second = await handed_over()
    first.body(say("c"))
    second.body(other(ROLE + say("abc")))
    assert outcome(trip) == {"stayed": 1}
    first.body(say("d") + STOP + DONE)
    assert reader.frames == [ROLE, say("a"), say("b"), say("c"), say("d"), STOP, DONE]
    await trip.left_nothing()
    trip, reader, first, second = await handed_over()
    first.body(STOP)  # no content
    second.body(other(ROLE + say("ab") + STOP) + DONE)
    assert outcome(trip) == {"stayed": 1}
    first.body(DONE)
    assert reader.frames == [ROLE, say("a"), say("b"), STOP, DONE]
    await trip.left_nothing()


@pytest.mark.parametrize("joined", [False, True])
@virtual
async def test_a_stream_that_is_handed_over_is_cancelled_at_both_engines(joined: bool) -> None:
    trip, _, first, second = await handed_over()
    second.body(other(ROLE + say("abc" if joined else "a")))
    trip.cancel()
    assert (first.kept, second.kept) == (False, False)
    assert outcome(trip) == {"cancelled": 1}
    await trip.left_nothing()


@virtual
async def test_a_stream_that_was_handed_over_and_breaks_is_continued() -> None:
    trip, reader, _, second = await handed_over()
    second.body(other(ROLE + say("abc")))
    second.lose(CUT)
    third = await engine(trip, 2)
    third.body(other(ROLE + say("abcd") + STOP) + DONE)
    assert reader.frames == [ROLE, say("a"), say("b"), say("c"), say("d"), STOP, DONE]
    assert outcome(trip) == {"exact": 1}
    await trip.left_nothing()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_breaks_where_readers_have_one_answer_or_an_error(data: st.DataObject) -> None:
    run_virtual(_any_breaks(data))


async def _any_breaks(data: st.DataObject) -> None:
    """Up to three engines: each cuts the answer in its own way, may answer something else, and may break."""
    draw = data.draw
    answer = draw(tracks())
    trip = trip_of(spec(parts=len(answer)))
    readers = [Reader(trip.flight), Reader(trip.flight, usage=False)]
    trip.exchange.begin()
    last: list[bytes] = []
    for number in range(3):
        await trip.turn()
        if trip.arrivals:
            break
        told = answer
        if draw(st.integers(0, 3)) == 0 and answer[0]:
            place = draw(st.integers(0, len(answer[0]) - 1))
            told = [list(track) for track in answer]
            told[0][place] = (told[0][place][0], draw(TEXT))
        last = [
            frame.replace(b'"chatcmpl-1"', b'"chatcmpl-%d"' % number)
            for frame in cut(draw, told, name="abc"[number])
        ]
        how = draw(st.sampled_from(["lose", "abort", "fail", "end"]))
        sent = [*last, DONE] if how == "end" else last[: draw(st.integers(1, len(last)))]
        wire = await engine(trip, number)
        stream = b"".join(sent) + {"abort": ABORT + DONE, "fail": FAILED + DONE}.get(how, b"")
        places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        for start, stop in zip([0, *places], [*places, len(stream)], strict=True):
            wire.body(stream[start:stop])
        if draw(st.booleans()) and not trip.arrivals:
            readers.append(Reader(trip.flight, usage=draw(st.booleans())))
        if how == "lose" and not trip.arrivals:
            again = trip.flight.continued is not None
            wire.lose(CUT)
            if again and not trip.arrivals:  # it looks whether the engine lives
                await trip.dialled(number, error=None if draw(st.booleans()) else REFUSED)
    await trip.turn()
    assert len(trip.arrivals) == 1
    whole = readers[0].frames[-1] == DONE  # an error frame of the engine's that is passed on lands too
    event("exact" if whole else "honest error")
    for reader in readers:
        frames = reader.frames
        assert not any(b'"abort"' in frame for frame in frames)
        assert (frames[-1] == DONE) == whole
        assert (b'"error"' in frames[-1]) != whole
        if whole:
            got, right = merged(frames[:-1]), merged(last)
            assert len(got["head"]) == 1
            assert len(got["fingerprints"]) <= 1
            assert _unnamed(got) == _unnamed(right)
    await trip.left_nothing()


def _unnamed(whole: dict[str, Any]) -> Any:
    for choice in whole["choices"].values():
        for call in choice["delta"].get("tool_calls", {}).values():
            assert call.pop("id")
    return whole["choices"]


@virtual
async def test_a_trace_has_each_attempt_and_how_the_stream_was_continued() -> None:
    told: list[tuple[Any, ...]] = []

    class Trace:
        def event(self, name: str, **attributes: Any) -> None:
            told.append((name, attributes))

        def attempt(self, backend: str) -> None:
            told.append(("attempt", backend))

        def retried(self, cause: str) -> None:
            told.append(("retried", cause))

        def headers(self, headers: Any) -> Any:
            return headers

        def frame(self, frame: bytes) -> None:
            told.append(("frame", b'"stop"' in frame))

        def ended(self, flight: Flight) -> None:
            told.append(("ended", flight.phase.value))

    trip = trip_of()
    trip.flight.traced_by(Trace())  # type: ignore[arg-type]
    Reader(trip.flight)
    trip.exchange.begin()
    (await engine(trip, 0)).body(ROLE)
    trip.engines[0].wire.lose(CUT)
    (await engine(trip, 1)).body(other(ROLE + STOP) + DONE)
    assert told == [
        ("attempt", "e0"),
        ("frame", False),
        ("retried", "upstream_truncated"),
        ("continued", {"how": "replay"}),
        ("attempt", "e1"),
        ("frame", True),
        ("ended", "landed"),
    ]
    await trip.left_nothing()
