"""The lake: every reader sees one log from its start, at its own pace; the last to leave says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.flight import SLICE, SLICE_BYTES, STEP, Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.memory import Memory
from proxy.flights.phase import TRANSITIONS, Phase
from proxy.flights.spec import FlightSpec, Head, Mode, QueueState
from proxy.telemetry.trace import FlightTrace
from proxy.wire.sse import LAST_CHUNK, SIZES, chunk


class Sink:
    """A reader's socket that may say it is full."""

    def __init__(self) -> None:
        self.got = b""
        self.writes = 0
        self.full = False
        self.refused = False  # it was full at the last write: nothing more may come until it has room
        self.over = 0  # writes that came all the same

    def write(self, data: bytes | memoryview) -> bool:
        self.over += self.full and self.refused
        self.refused = self.full
        self.got += data
        self.writes += 1
        return not self.full


def lake(*, key: bytes | None = b"k", mode: Mode = Mode.STREAM) -> tuple[FlightGroup, Flight]:
    group = FlightGroup()
    flight = group.launch(FlightSpec(method="POST", path="/", body=b"", mode=mode, request_id="r", key=key))
    return group, flight


def frame(n: int) -> bytes:
    return b"data: %d\n\n" % n


def join(group: FlightGroup, flight: Flight) -> tuple[Subscriber, Sink]:
    reader = group.attach(flight, usage=True, whole=False)
    sink = Sink()
    reader.pipe = sink
    reader.pump()
    return reader, sink


script = st.lists(
    st.tuples(st.sampled_from(["append", "push", "join", "leave", "full", "drain"]), st.integers(0, 9)),
    max_size=50,
)


@given(script, st.booleans())
def test_every_reader_sees_the_same_log_from_the_start_whatever_happens(
    steps: list[tuple[str, int]], fails: bool
) -> None:
    group, flight = lake()
    emptied: list[Flight] = []
    flight.on_abandoned = emptied.append
    readers: list[tuple[Subscriber, Sink]] = [join(group, flight)]
    n = 0
    for what, pick in steps:
        some = readers[pick % len(readers)] if readers else None
        if what == "append":
            flight.frames([frame(n), frame(n + 1)])
            n += 2
        elif what == "push" and n:
            flight.append_token(frame(n))
            n += 1
        elif what == "join" and not emptied:
            readers.append(join(group, flight))
        elif what == "leave" and some is not None:
            some[0].leave()
            readers.remove(some)
        elif what == "full" and some is not None:
            some[1].full = True
        elif what == "drain" and some is not None:
            some[1].full = some[1].refused = False
            if some[0].lagging:
                some[0].lagging = False
                some[0].pump()
    assert len(emptied) == (0 if readers else 1)
    if fails:
        flight.fail(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    else:
        flight.land(Head())
    whole = b"".join(chunk(frame(i)) for i in range(n)) + flight.tail
    assert not any(sink.over for _, sink in readers)
    for reader, sink in readers:
        sink.full = False
        while reader.lagging:
            reader.lagging = False
            reader.pump()
        assert sink.got == whole
        assert reader.done
        reader.leave()
    assert len(emptied) <= 1
    group.remove(flight)


def test_a_late_joiner_gets_all_there_is_in_one_write() -> None:
    group, flight = lake()
    join(group, flight)
    flight.frames([frame(i) for i in range(100)])
    _, late = join(group, flight)
    assert late.writes == 1
    group.remove(flight)


def test_what_comes_in_one_read_goes_out_in_one_write() -> None:
    group, flight = lake()
    _, sink = join(group, flight)
    for i in range(5):
        flight.add(frame(i))
    assert sink.writes == 0
    flight.flush()
    assert sink.writes == 1
    group.remove(flight)


def test_a_long_log_is_replayed_in_slices() -> None:
    group, flight = lake()
    flight.frames([frame(i) for i in range(SLICE + 1)])
    reader, sink = join(group, flight)
    assert reader.cursor == SLICE
    assert reader.lagging
    reader.lagging = False
    reader.pump()
    assert sink.got == b"".join(flight.log)
    group.remove(flight)


@pytest.mark.parametrize("count", [SLICE - 1, SLICE, SLICE + 1, 2 * SLICE, 3 * SLICE + 5])
def test_who_comes_late_to_a_long_log_has_all_of_it_and_the_end(count: int) -> None:
    group, flight = lake()
    flight.frames([frame(i) for i in range(count)])
    flight.land(Head())
    reader, sink = join(group, flight)
    while reader.lagging:
        reader.lagging = False
        reader.pump()
    assert reader.done
    assert sink.got == b"".join(flight.log) + flight.tail
    assert sink.writes == -(-count // SLICE)
    group.remove(flight)


def test_the_end_goes_out_with_the_last_frames() -> None:
    group, flight = lake()
    reader, sink = join(group, flight)
    flight.add(frame(1))
    flight.land(Head())
    assert (sink.writes, reader.done) == (1, True)
    assert sink.got.endswith(b"0\r\n\r\n")
    group.remove(flight)


def test_a_private_log_is_dropped_as_it_is_read() -> None:
    group, flight = lake(key=None)
    _, sink = join(group, flight)
    for i in range(3):
        flight.frames([frame(i)])
        assert (flight.log, flight.size) == ([], 0)
    assert sink.got == b"".join(chunk(frame(i)) for i in range(3))
    group.remove(flight)


@pytest.mark.parametrize("phase", list(Phase))
def test_the_table_of_phases_is_the_law(phase: Phase) -> None:
    for target in Phase:
        group, flight = lake()
        flight.phase = phase
        if target in TRANSITIONS[phase]:
            flight.enter(target)
            assert flight.phase is target
        else:
            with pytest.raises(AssertionError):
                flight.enter(target)
        group.remove(flight)


def test_its_repr_tells_its_state() -> None:
    group, flight = lake()
    flight.frames([frame(1)])
    assert repr(flight) == "<Flight streaming stream log=1 readers=0>"
    group.remove(flight)


class Fragile(Sink):
    """A socket under which something happens while it is written to."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    def write(self, data: bytes | memoryview) -> bool:
        fits = super().write(data)
        self.meanwhile()
        return fits


@pytest.mark.parametrize("who", ["itself", "another"])
def test_a_reader_that_leaves_while_readers_are_served_takes_nothing_from_the_others(who: str) -> None:
    group, flight = lake()
    readers = [join(group, flight) for _ in range(4)]
    left: list[Subscriber] = []

    def leaving(one: Subscriber, other: Subscriber) -> Callable[[], None]:
        def leave() -> None:
            if not left:
                left.append(one if who == "itself" else other)
                left[0].leave()

        return leave

    fragile = [Fragile(leaving(readers[n][0], readers[n - 1][0])) for n in range(4)]
    for (reader, _), sink in zip(readers, fragile, strict=True):
        reader.pipe = sink
    flight.frames([frame(1)])
    flight.frames([frame(2)])
    flight.land(Head())
    whole = chunk(frame(1)) + chunk(frame(2)) + flight.tail
    for (reader, _), sink in zip(readers, fragile, strict=True):
        assert sink.got == whole or (reader in left and whole.startswith(sink.got))
        assert reader.done is (reader not in left)
    assert len(flight.subscribers) == 3
    group.remove(flight)


def test_where_usage_was_not_asked_for_by_us_all_readers_see_one_log() -> None:
    group, flight = lake()
    flight.frames([frame(1)])
    assert flight.view(usage=True) is flight.view(usage=False) is flight.log
    group.remove(flight)


def test_who_joins_while_readers_are_served_has_all_of_it_once() -> None:
    group, flight = lake()
    late: list[Sink] = []
    reader, _ = join(group, flight)
    reader.pipe = Fragile(lambda: late.append(join(group, flight)[1]) if not late else None)
    flight.frames([frame(1)])
    flight.frames([frame(2)])
    flight.land(Head())
    assert late[0].got == chunk(frame(1)) + chunk(frame(2)) + flight.tail
    group.remove(flight)


def test_a_stored_stream_is_one_write_and_each_reader_has_its_own_view_of_it() -> None:
    group = FlightGroup()
    spec = FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k", usage_added=True)
    flight = group.launch(spec)
    sinks = []
    for usage in (True, False):
        reader = group.attach(flight, usage=usage, whole=False)
        reader.pipe = sink = Sink()
        sinks.append(sink)
    flight.replay_stored(Head(200), chunk(frame(1)) + chunk(frame(2)), chunk(frame(1)), None)
    assert flight.phase is Phase.STREAMING
    flight.land(Head())
    assert [sink.writes for sink in sinks] == [1, 1]
    assert sinks[0].got == chunk(frame(1)) + chunk(frame(2)) + b"0\r\n\r\n"
    assert sinks[1].got == chunk(frame(1)) + b"0\r\n\r\n"
    group.remove(flight)


class Slicing(Sink):
    """It keeps what each write held, and says it is full as a script says."""

    def __init__(self, full: list[bool]) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.script = full

    def write(self, data: bytes | memoryview) -> bool:
        self.sizes.append(len(data))
        self.full = self.script.pop() if self.script else False
        return super().write(data)


@given(
    st.lists(st.integers(1, 3 * SLICE_BYTES), max_size=12),
    st.lists(st.booleans(), max_size=30),
    st.booleans(),
    st.integers(0, 12),
)
def test_a_log_of_any_sizes_goes_out_whole_in_bounded_writes(
    sizes: list[int], full: list[bool], private: bool, early: int
) -> None:
    group, flight = lake(key=None if private else b"k")
    flight.enter(Phase.CONNECTING)
    flight.enter(Phase.PREFILL)
    frames = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    reader = group.attach(flight, usage=True, whole=False)
    sink = Slicing(full)
    reader.pipe = sink

    def caught_up() -> None:
        for _ in range(100):
            if not reader.lagging:
                flight.trim()
                return
            reader.lagging = False
            reader.pump()
        raise AssertionError("it does not end")

    for n, data in enumerate(frames):
        flight.append_token(data)
        if n >= early:
            caught_up()
    flight.land()
    caught_up()
    assert reader.done
    assert sink.got == b"".join(map(chunk, frames)) + LAST_CHUNK
    assert reader.sent == len(sink.got)
    assert max(sink.sizes) <= SLICE_BYTES + len(LAST_CHUNK)
    group.remove(flight)


def test_readers_of_one_large_body_hold_one_copy() -> None:
    group, flight = lake(mode=Mode.RAW)
    flight.enter(Phase.CONNECTING)
    flight.enter(Phase.PREFILL)
    piece = bytes(5 * SLICE_BYTES)
    given: list[bytes | memoryview] = []

    class Keeps(Sink):
        def write(self, data: bytes | memoryview) -> bool:
            given.append(data)
            return False

    flight.start(Head(200, (), len(piece)))
    for _ in range(3):
        group.attach(flight, usage=True, whole=False).pipe = Keeps()
    flight.append_body(piece)
    assert [data.obj is piece for data in given if isinstance(data, memoryview)] == [True] * 3
    flight.land()
    group.remove(flight)


def charged(memory: Memory) -> tuple[FlightGroup, Flight]:
    group = FlightGroup(memory)
    flight = group.launch(
        FlightSpec("POST", "/", b"", Mode.WHOLE, "r", key=b"k"), QueueState(owner=lambda: "10.0.0.7")
    )
    flight.enter(Phase.CONNECTING)
    flight.enter(Phase.PREFILL)
    flight.enter(Phase.STREAMING)
    return group, flight


def test_a_log_is_charged_in_steps_to_whoever_began_it_until_its_last_reader_has_left() -> None:
    memory = Memory(100 * STEP)
    group, flight = charged(memory)
    readers = [group.attach(flight, usage=True, whole=True) for _ in range(2)]
    flight.size = 10
    assert flight.grow(10**9) == 10 + STEP
    assert memory.heaviest() == [("10.0.0.7", 10 + STEP)]
    flight.land()
    readers[0].leave()
    assert memory.held == 10 + STEP
    readers[1].leave()
    assert memory.held == 0
    group.remove(flight)


def test_a_log_that_finds_no_room_ends_with_an_error_and_one_over_its_own_bound_with_another() -> None:
    group, flight = charged(Memory(STEP // 2))
    error = flight.grow(10**9)
    assert isinstance(error, GatewayError)
    assert error.code is Code.MEMORY_FULL
    flight.size = 11
    error = flight.grow(10)
    assert isinstance(error, GatewayError)
    assert error.code is Code.UPSTREAM_TOO_LARGE
    flight.cancel()
    group.remove(flight)


def test_a_private_flight_whose_reader_lags_is_held_back_not_ended() -> None:
    group = FlightGroup(Memory(STEP // 2))
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=None))
    reader = group.attach(flight, usage=True, whole=False)
    reader.lagging = True
    assert flight.grow(10**9) == STEP
    flight.cancel()
    group.remove(flight)


def test_a_body_that_fails_keeps_none_of_its_pieces() -> None:
    group, flight = charged(Memory(STEP))
    flight.append_body(b"half of it")
    flight.fail(GatewayError(Code.MEMORY_FULL, "no room"))
    assert flight.log == []
    group.remove(flight)


@pytest.mark.parametrize("size", [len(SIZES) - 1, len(SIZES), len(SIZES) + 1])
@pytest.mark.parametrize("key", [None, b"k"], ids=["private", "shared"])
def test_a_frame_at_the_bound_of_the_ready_sizes_goes_out_as_one_chunk(size: int, key: bytes | None) -> None:
    group, flight = lake(key=key)
    _, sink = join(group, flight)
    long = b"data: ".ljust(size - 2, b"x") + b"\n\n"
    flight.frames([long])
    flight.append_token(long)
    assert sink.got == b"%x\r\n%b\r\n" % (size, long) * 2
    group.remove(flight)


def test_a_shared_log_is_kept_however_its_frames_come_and_whoever_has_read_it() -> None:
    group, flight = lake()
    _, sink = join(group, flight)
    flight.frames([frame(1)])
    flight.append_token(frame(2))
    flight.trim()
    _, late = join(group, flight)
    assert late.got == sink.got == chunk(frame(1)) + chunk(frame(2))
    group.remove(flight)


def test_what_was_joined_for_readers_is_not_kept_once_they_are_served() -> None:
    group, flight = lake()
    join(group, flight)
    flight.frames([frame(1), frame(2)])
    assert flight._joined[3] == b""
    join(group, flight)
    assert flight._joined[3] != b""
    flight.append_token(frame(3))
    assert flight._joined[3] == b""
    group.remove(flight)


@pytest.mark.parametrize("what", ["trace", "charge"])
async def test_what_raises_at_the_end_of_a_flight_is_told_and_keeps_nothing_from_its_readers(what: str) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, words: told.append(words["message"]))

    class Broken:
        def ended(self, flight: Flight) -> None:
            raise ZeroDivisionError

    charged: list[Flight] = []
    group, flight = lake()
    reader, sink = join(group, flight)
    if what == "trace":
        flight.trace = cast(FlightTrace, Broken())
        flight.on_end = charged.append
    else:
        flight.on_end = Broken().ended
    flight.frames([frame(1)])
    flight.land(Head())
    assert (reader.done, flight.finished, sink.got[-5:]) == (True, True, LAST_CHUNK)
    assert told == [f"the {what} {'of' if what == 'trace' else 'for'} a flight"]
    assert charged == ([flight] if what == "trace" else [])
    group.remove(flight)


def test_readers_of_a_stored_answer_are_hits_also_where_they_joined_before_it_was_found() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"{}", Mode.WHOLE, "r"))
    first, second = (group.attach(flight, usage=True, whole=True, attached=late) for late in (False, True))
    assert second.verdict == "attached"
    flight.land_stored(Head(), 1.0, None)
    assert [first.verdict, second.verdict] == ["hit", "hit"]
    group.remove(flight)
