"""What a flight writes as it is pushed and flushed, counted: sizes, lags, wake-ups, and a pipe that raises."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from proxy.flights.flight import SLICE_BYTES, Subscriber
from proxy.flights.phase import Phase
from proxy.flights.spec import Head, Mode
from proxy.wire.sse import chunk
from tests.kit.clock import virtual
from tests.proxy.flights.test_flight import Sink, frame
from tests.proxy.flights.test_flight_state import made, reading


def fails(*given: Any) -> Any:
    raise ZeroDivisionError


@virtual
async def test_a_pipe_that_raises_ends_its_reader_alone_however_it_is_served() -> None:
    words: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: words.append(context["message"]))
    flight = made(key=b"k", at=Phase.STREAMING)
    broken, fine = Sink(), Sink()
    reader, other = reading(flight, broken), reading(flight, fine)
    flight.frames([frame(1)])
    broken.write = fails  # type: ignore[method-assign, assignment]
    woken = reader.changed()
    flight.append_token(frame(2))
    flight.frames([frame(3)])
    assert (reader.broken, woken.done(), other.broken) == (True, True, False)
    assert fine.got == b"".join(chunk(frame(n)) for n in (1, 2, 3))
    assert words == ["a reader of an answer"] * 2


@virtual
async def test_only_who_has_something_to_do_is_woken() -> None:
    flight = made(key=b"k", at=Phase.STREAMING)
    sink = Sink()
    reader = reading(flight, sink)
    woken = reader.changed()
    flight.frames([frame(1)])
    flight.append_token(frame(2))
    assert not woken.done()
    sink.full = True
    flight.append_token(frame(3))
    assert (woken.done(), reader.lagging) == (True, True)
    woken = reader.changed()
    flight.append_token(frame(4))
    assert woken.done(), "it lags: its own task may look"
    reader.lagging, sink.full = False, False
    woken = reader.changed()
    reader.pump()
    assert not woken.done()
    flight.land(Head())
    assert woken.done()
    assert reader.done


@pytest.mark.parametrize("private", [True, False])
def test_what_is_pushed_is_counted_and_a_private_log_holds_it_only_for_who_lags(private: bool) -> None:
    flight = made(key=None if private else b"k", at=Phase.STREAMING)
    sink = Sink()
    reader = reading(flight, sink)
    flight.append_token(frame(1))
    wired = len(chunk(frame(1)))
    assert (flight.size, reader.sent, len(flight.log)) == (0 if private else wired, wired, 0 if private else 1)
    sink.full = True
    flight.append_token(frame(2))
    flight.append_token(frame(3))
    assert (reader.sent, reader.lagging) == (2 * wired, True)
    assert (flight.size, len(flight.log)) == ((wired, 1) if private else (3 * wired, 3))
    sink.full, reader.lagging = False, False
    flight.append_token(frame(4))
    assert (reader.sent, sink.got) == (4 * wired, b"".join(chunk(frame(n)) for n in (1, 2, 3, 4)))
    assert (flight.size, len(flight.log), reader.cursor) == ((0, 0, 0) if private else (4 * wired, 4, 4))


def test_a_private_flight_without_a_pipe_keeps_what_comes() -> None:
    flight = made(key=None, at=Phase.STREAMING)
    reading(flight)
    flight.append_token(frame(1))
    assert flight.log == [chunk(frame(1))]


@pytest.mark.parametrize(
    "sizes", [(1, 1), (SLICE_BYTES, 1), (SLICE_BYTES - 1, 1), (SLICE_BYTES - 1, 1, 1), (SLICE_BYTES + 1, 1)]
)
def test_a_write_has_as_many_whole_entries_as_fit_or_a_part_of_one(sizes: tuple[int, ...]) -> None:
    flight = made(Mode.RAW, key=b"k", at=Phase.PREFILL)
    flight.start(Head(200, (), sum(sizes)))
    pieces = [bytes([n]) * size for n, size in enumerate(sizes)]
    for piece in pieces:
        flight.append_body(piece)
    written: list[int] = []

    class Counted(Sink):
        def write(self, data: bytes | memoryview) -> bool:
            written.append(len(data))
            return super().write(data)

    reader = Subscriber(flight)
    sink = reader.pipe = Counted()
    flight.subscribers.add(reader)
    for _ in range(9):
        reader.lagging = False
        reader.pump()
    first = {1: sum(sizes), SLICE_BYTES: SLICE_BYTES, SLICE_BYTES - 1: SLICE_BYTES, SLICE_BYTES + 1: SLICE_BYTES}
    assert written[0] == first[sizes[0]]
    assert (sink.got, reader.sent) == (b"".join(pieces), sum(sizes))
    assert max(written) <= SLICE_BYTES


def test_after_a_stored_stream_nothing_is_held_back_any_more() -> None:
    flight = made(key=b"k", usage_added=True)
    flight.replay_stored(Head(200), b"all of it", b"all", None)
    flight.add(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    assert len(flight.log) == 2
    assert flight._view is None


@virtual
async def test_a_push_serves_who_is_behind_and_wakes_who_has_no_pipe() -> None:
    flight = made(key=b"k", at=Phase.STREAMING)
    flight.append_token(frame(1))
    sink = Sink()
    behind, waits = reading(flight, sink), reading(flight)
    woken = waits.changed()
    flight.append_token(frame(2))
    assert (sink.got, behind.cursor, woken.done()) == (chunk(frame(1)) + chunk(frame(2)), 2, True)
