"""What different readers see of one flight: usage or not, private or not, raw, whole, and the end once."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.group import FlightGroup
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.wire.sse import chunk
from tests.kit.clock import virtual
from tests.proxy.flights.test_flight import Sink, frame, join, lake, script


def plain(n: int, finish: str = "null") -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%d"},"finish_reason":%b}]}\n\n' % (
        n,
        finish.encode(),
    )


USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1},"system_fingerprint":"f"}\n\n'
DONE = b"data: [DONE]\n\n"


@given(cuts=st.lists(st.integers(0, 5), max_size=6), late=st.integers(0, 5))
def test_usage_is_seen_by_those_who_asked_and_by_nobody_else(cuts: list[int], late: int) -> None:
    group = FlightGroup()
    spec = FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", usage_added=True)
    flight = group.launch(spec)
    frames = [plain(1), plain(2), plain(3, '"stop"'), USAGE, DONE]
    sinks: dict[bool, list[Sink]] = {True: [], False: []}

    def come(usage: bool) -> None:
        reader = group.attach(flight, usage=usage, whole=False)
        sinks[usage].append(Sink())
        reader.pipe = sinks[usage][-1]
        reader.pump()

    for usage in (True, False):
        come(usage)
    for at, one in enumerate(frames):
        if at == late:
            for usage in (True, False):
                come(usage)
        flight.add(one)
        if at in cuts:
            flight.flush()
    flight.land(Head())
    finish = plain(3, '"stop"')[:-3] + b',"system_fingerprint":"f"}\n\n'
    seen = {True: frames, False: [plain(1), plain(2), finish, DONE]}
    for usage in (True, False):
        for sink in sinks[usage]:
            assert sink.got == b"".join(map(chunk, seen[usage])) + b"0\r\n\r\n"
    group.remove(flight)


def test_a_finish_chunk_that_waits_for_usage_is_let_go_where_the_stream_fails() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", usage_added=True))
    reader = group.attach(flight, usage=False, whole=False)
    sink = reader.pipe = Sink()
    flight.frames([plain(1), plain(2, '"stop"')])
    flight.fail(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert sink.got == chunk(plain(1)) + chunk(plain(2, '"stop"')) + flight.tail
    assert b"upstream_truncated" in flight.tail
    assert b"[DONE]" not in flight.tail
    group.remove(flight)


def test_while_a_finish_waits_for_usage_what_is_like_the_frames_before_it_waits_behind_it() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", usage_added=True))
    sinks: dict[bool, Sink] = {}
    for usage in (True, False):
        reader = group.attach(flight, usage=usage, whole=False)
        sinks[usage] = reader.pipe = Sink()
    frames = [plain(1), plain(2, '"stop"'), plain(3)]
    flight.frames(frames[:2])
    flight.append_token(frames[2])
    assert sinks[True].got == b"".join(map(chunk, frames))
    assert sinks[False].got == chunk(frames[0])
    flight.frames([DONE])
    assert sinks[False].got == b"".join(map(chunk, [*frames, DONE]))
    flight.land(Head())
    group.remove(flight)


@given(script)
def test_a_private_reader_that_lags_gets_every_frame_once(steps: list[tuple[str, int]]) -> None:
    group, flight = lake(key=None)
    reader, sink = join(group, flight)
    n = 0

    def drain() -> None:
        sink.full = False
        if reader.lagging:
            reader.lagging = False
            reader.pump()
            if not reader.lagging:
                flight.trim()

    for what, pick in steps:
        if what == "append":
            flight.frames([frame(n + i) for i in range(pick % 3 + 1)])
            n += pick % 3 + 1
        elif what == "full":
            sink.full = True
        elif what == "drain":
            drain()
    flight.land(Head())
    while reader.lagging:
        drain()
    assert reader.done
    assert sink.got == b"".join(chunk(frame(i)) for i in range(n)) + b"0\r\n\r\n"
    group.remove(flight)


def test_what_a_lagging_private_reader_was_given_is_never_given_for_what_came_after() -> None:
    group, flight = lake(key=None)
    reader, sink = join(group, flight)
    sink.full = True
    flight.frames([frame(0)])
    flight.frames([frame(1), frame(2)])
    sink.full = reader.lagging = False
    reader.pump()
    flight.trim()
    flight.frames([frame(3), frame(4)])
    assert sink.got == b"".join(chunk(frame(i)) for i in range(5))
    group.remove(flight)


def test_a_trimmed_log_forgets_what_was_joined_of_it() -> None:
    group, flight = lake(key=None)
    reader = group.attach(flight, usage=True, whole=False)
    flight.frames([frame(0), frame(1)])
    sink = reader.pipe = Sink()
    reader.pump()
    flight.trim()
    flight.frames([frame(2), frame(3)])
    assert sink.got == b"".join(chunk(frame(i)) for i in range(4))
    group.remove(flight)


def test_a_reader_that_has_the_end_is_not_given_it_again() -> None:
    group, flight = lake()
    flight.frames([frame(1)])
    flight.land(Head())
    reader, sink = join(group, flight)  # reads at once, before the turn in which all readers are served
    assert reader.done
    assert sink.got == chunk(frame(1)) + b"0\r\n\r\n"
    group.remove(flight)


def test_leaving_twice_or_after_the_end_empties_nothing_again() -> None:
    group, flight = lake()
    emptied: list[Flight] = []

    def cancel(empty: Flight) -> None:
        emptied.append(empty)
        group.remove(empty)
        empty.cancel()

    flight.on_abandoned = cancel
    one, two = join(group, flight)[0], join(group, flight)[0]
    one.leave()
    one.leave()
    assert emptied == []
    two.leave()
    two.leave()
    one.leave()
    assert emptied == [flight]
    assert len(group) == 0


def test_a_raw_answer_of_known_length_goes_through_as_it_came() -> None:
    group, flight = lake(key=None, mode=Mode.RAW)
    flight.start(Head(length=5))
    _, sink = join(group, flight)
    flight.append_body(b"ab")
    flight.append_body(b"cde")
    flight.land()
    assert sink.got == b"abcde"
    group.remove(flight)


def test_a_raw_answer_of_unknown_length_is_chunked_and_its_failure_has_no_end() -> None:
    group, flight = lake(key=None, mode=Mode.RAW)
    flight.start(Head())
    reader, sink = join(group, flight)
    flight.append_body(b"ab")
    flight.fail(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    assert sink.got == b"2\r\nab\r\n"
    assert reader.done
    group.remove(flight)


@virtual
async def test_a_reader_of_one_body_is_woken_at_the_end_only() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k"))
    reader = group.attach(flight, usage=True, whole=True)
    waiting = reader.changed()
    flight.frames([frame(1)])
    assert not waiting.done()
    flight.land(Head())
    assert waiting.done()
    assert flight.raw_frames() == [frame(1)]
    group.remove(flight)


@virtual
async def test_a_reader_without_usage_is_ready_only_when_it_has_something_to_see() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", usage_added=True))
    readers = [group.attach(flight, usage=usage, whole=False) for usage in (True, False)]
    with_usage, without = (asyncio.ensure_future(reader.ready()) for reader in readers)
    flight.frames([plain(1, '"stop"')])
    await with_usage
    assert not without.done()
    flight.frames([USAGE])
    await without
    group.remove(flight)
