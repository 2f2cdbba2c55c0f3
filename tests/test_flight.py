"""The lake: every reader sees one log from its start, at its own pace; the last to leave says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flight import SLICE, Flight, Subscriber
from proxy.group import FlightGroup
from proxy.phase import TRANSITIONS, Phase
from proxy.plan import Head, Mode, Plan
from proxy.wire.sse import chunk


class Sink:
    """A reader's socket that may say it is full."""

    def __init__(self) -> None:
        self.got = b""
        self.writes = 0
        self.full = False

    def write(self, data: bytes) -> bool:
        self.got += data
        self.writes += 1
        return not self.full


def lake(*, key: bytes | None = b"k", mode: Mode = Mode.STREAM) -> tuple[FlightGroup, Flight]:
    group = FlightGroup()
    flight = group.launch(Plan(method="POST", path="/", body=b"", mode=mode, request_id="r", key=key))
    return group, flight


def frame(n: int) -> bytes:
    return b"data: %d\n\n" % n


def join(group: FlightGroup, flight: Flight) -> tuple[Subscriber, Sink]:
    reader = group.attach(flight, usage=True, whole=False, verdict="miss")
    sink = Sink()
    reader.pipe = sink
    reader.pump()
    return reader, sink


script = st.lists(
    st.tuples(st.sampled_from(["append", "join", "leave", "full", "drain"]), st.integers(0, 9)),
    max_size=50,
)


@given(script, st.booleans())
def test_every_reader_sees_the_same_log_from_the_start_whatever_happens(
    steps: list[tuple[str, int]], fails: bool
) -> None:
    group, flight = lake()
    emptied: list[Flight] = []
    flight.on_empty = emptied.append
    readers: list[tuple[Subscriber, Sink]] = [join(group, flight)]
    n = 0
    for what, pick in steps:
        some = readers[pick % len(readers)] if readers else None
        if what == "append":
            flight.frames([frame(n), frame(n + 1)])
            n += 2
        elif what == "join" and not emptied:
            readers.append(join(group, flight))
        elif what == "leave" and some is not None:
            some[0].leave()
            readers.remove(some)
        elif what == "full" and some is not None:
            some[1].full = True
        elif what == "drain" and some is not None:
            some[1].full = False
            if some[0].lagging:
                some[0].lagging = False
                some[0].pump()
    assert len(emptied) == (0 if readers else 1)
    if fails:
        flight.fail(GatewayError(Code.UPSTREAM_TRUNCATED, "cut"))
    else:
        flight.land(Head())
    whole = b"".join(chunk(frame(i)) for i in range(n)) + flight.tail
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

    def write(self, data: bytes) -> bool:
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
    plan = Plan("POST", "/", b"", Mode.STREAM, "r", key=b"k", usage_added=True)
    flight = group.launch(plan)
    sinks = []
    for usage in (True, False):
        reader = group.attach(flight, usage=usage, whole=False, verdict="hit")
        reader.pipe = sink = Sink()
        sinks.append(sink)
    flight.stored(chunk(frame(1)) + chunk(frame(2)), chunk(frame(1)))
    flight.land(Head())
    assert [sink.writes for sink in sinks] == [1, 1]
    assert sinks[0].got == chunk(frame(1)) + chunk(frame(2)) + b"0\r\n\r\n"
    assert sinks[1].got == chunk(frame(1)) + b"0\r\n\r\n"
    group.remove(flight)
