"""A flight's state, step by step: what it has when it is made, what each end leaves, who is woken, its charge."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.flight import BROKEN, SLICE_BYTES, STEP, Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.wire.frames import Usage
from proxy.wire.sse import LAST_CHUNK, chunk
from tests.kit.clock import virtual
from tests.kit.planned import planned
from tests.proxy.flights.test_flight import Sink, frame

ERROR = GatewayError(Code.UPSTREAM_TRUNCATED, "cut")


def made(
    mode: Mode = Mode.STREAM, *, at: Phase = Phase.QUEUED, memory: Memory | None = None, **more: Any
) -> Flight:
    """A flight of nobody's group, at a phase."""
    spec, state = planned(b"", mode, **more)
    flight = Flight(spec, lambda: 5.0, memory, state)
    for phase in (Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING):
        if flight.phase is at:
            break
        flight.enter(phase)
    return flight


def reading(flight: Flight, sink: Sink | None = None, **more: Any) -> Subscriber:
    reader = Subscriber(flight, pipe=sink, **more)
    flight.subscribers.add(reader)
    return reader


def fails(*given: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize("storable", [True, False])
def test_a_new_flight_has_had_nothing(storable: bool) -> None:
    flight = made(key=b"k", storable=storable)
    assert (flight.phase, flight.before, flight.ended, flight.finished) == (
        Phase.QUEUED,
        Phase.QUEUED,
        False,
        False,
    )
    assert (flight.log, flight.size, flight.tail, flight.content_events, flight.attempts) == ([], 0, b"", 0, 1)
    assert (flight.estimated, flight.replace, flight.folds, flight.storable) == (False, False, True, storable)
    assert (flight.private, made(key=None).private, flight.times.created) == (False, True, 5.0)
    unset = (flight.head, flight.error, flight.usage, flight.backend, flight.stored_at, flight.items, flight.held)
    assert unset == (None,) * 7
    unasked = (flight.folded, flight.look, flight.shape, flight.on_abandoned, flight.on_end, flight.on_spoiled)
    assert unasked == (None,) * 6
    assert (flight.trace, flight.throttle, flight.started) == (None, None, False)
    reader = Subscriber(flight)
    assert (reader.usage, reader.whole, reader.verdict, reader.most) == (True, False, "miss", SLICE_BYTES)
    assert (reader.cursor, reader.offset, reader.sent, reader.lagging) == (0, 0, 0, False)
    assert (reader.done, reader.broken, reader.since) == (False, False, -math.inf)


@virtual
async def test_a_reader_that_waits_for_the_end_is_woken_by_its_own_refusal() -> None:
    flight, error = made(), GatewayError(Code.QUEUE_TIMEOUT, "late")
    stays, refused = Subscriber(flight), Subscriber(flight)
    flight.subscribers |= {stays, refused}
    waits = [asyncio.ensure_future(reader.complete()) for reader in (stays, refused)]
    await asyncio.sleep(0)
    assert flight.refuse(error, lambda reader: reader is refused)
    await asyncio.sleep(1.0)
    assert [wait.done() for wait in waits] == [False, True]
    assert (refused.flight.error, refused.whole) == (error, True)
    flight.cancel()
    await asyncio.gather(*waits)


def test_what_can_be_answered_is_a_head_some_bytes_or_the_end() -> None:
    head, log, end = made(), made(at=Phase.PREFILL), made()
    head.head = Head()
    log.add(frame(1))
    end.cancel()
    assert [flight.started for flight in (head, log, end)] == [True] * 3


@pytest.mark.parametrize("at", [Phase.QUEUED, Phase.CONNECTING, Phase.PREFILL, Phase.STREAMING])
def test_it_may_be_asked_for_again_while_it_is_at_an_engine_and_nothing_has_come(at: Phase) -> None:
    flight = made(at=at)
    assert flight.untouched is (at in (Phase.CONNECTING, Phase.PREFILL))
    flight.mode = Mode.WHOLE  # the engine will not stream
    assert not flight.untouched


def test_a_phase_is_remembered_with_the_one_before_it() -> None:
    flight = made(at=Phase.PREFILL)
    assert (flight.before, flight.ended) == (Phase.CONNECTING, False)
    flight.cancel()
    assert (flight.before, flight.phase, flight.ended, flight.times.ended) == (
        Phase.PREFILL, Phase.CANCELLED, True, 5.0
    )  # fmt: skip


def test_a_flight_that_is_asked_for_again_has_had_nothing_but_one_attempt_more() -> None:
    flight: Any = made(Mode.WHOLE, at=Phase.PREFILL)
    flight.append_body(b"some of it")
    flight.mode, flight.head, flight.usage = Mode.RAW, Head(), Usage(prompt_tokens=1, completion_tokens=1)
    flight.times.first, flight.content_events = 3.0, 7
    flight.rewind()
    assert (flight.phase, flight.mode, flight.log, flight.size) == (Phase.CONNECTING, Mode.WHOLE, [], 0)
    assert (flight.head, flight.usage, flight.times.first) == (None, None, None)
    assert (flight.content_events, flight.attempts) == (0, 2)


@virtual
async def test_a_stream_that_does_not_fold_lets_go_of_who_waits_for_one_body() -> None:
    flight: Any = made(at=Phase.STREAMING)
    flight.look = lambda frame: None
    waits, streams = reading(flight, whole=True), reading(flight)
    woken = [waits.changed(), streams.changed()]
    flight.unfold()
    assert ([one.done() for one in woken], flight.folds, flight.look) == ([True, False], False, None)


def test_what_belongs_to_no_answer_goes_to_those_who_have_had_all_of_it_and_into_no_log() -> None:
    flight = made(key=b"k", at=Phase.STREAMING)
    sinks = {name: Sink() for name in ("up to date", "new", "behind", "lags")}
    readers = {name: reading(flight, sink) for name, sink in sinks.items()}
    silent = reading(flight)
    flight.frames([frame(1)])
    had = chunk(frame(1))
    readers["new"].sent = 0
    readers["behind"].cursor = 0
    readers["lags"].lagging = True
    flight.remark(b": hello\n\n")
    said = chunk(b": hello\n\n")
    got = {name: sink.got.removeprefix(had) for name, sink in sinks.items()}
    assert got == {"up to date": said, "new": b"", "behind": b"", "lags": b""}
    assert readers["up to date"].sent == len(had + said)
    assert [readers[name].lagging for name in sinks] == [False, False, False, True]
    assert (len(flight.log), silent.sent) == (1, 0)


@virtual
async def test_who_lags_after_a_remark_is_woken_and_one_whose_connection_broke_ends() -> None:
    words: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: words.append(context["message"]))
    flight = made(key=b"k", at=Phase.STREAMING)
    full, broken = Sink(), Sink()
    readers = [reading(flight, full), reading(flight, broken)]
    flight.frames([frame(1)])
    full.full = True
    broken.write = fails  # type: ignore[method-assign, assignment]
    woken = [one.changed() for one in readers]
    flight.remark(b": hello\n\n")
    assert [one.done() for one in woken] == [True, True]
    assert (readers[0].lagging, readers[1].broken, words) == (True, True, ["a reader of an answer"])


def test_a_stored_stream_holds_its_bytes_once_for_each_view() -> None:
    one, both = made(key=b"k"), made(key=b"k", usage_added=True)
    for flight in (one, both):
        flight.replay_stored(Head(200), b"all of it", b"all", None)
        assert (flight.log, flight.size, flight.phase) == ([b"all of it"], 9, Phase.STREAMING)
        flight.land(Head(200))
        assert flight.tail == LAST_CHUNK
    assert (one.view(usage=False), both.view(usage=False)) == ([b"all of it"], [b"all"])


def test_the_end_of_a_body_is_its_length_or_a_last_chunk() -> None:
    for mode, length, tail in ((Mode.RAW, None, LAST_CHUNK), (Mode.RAW, 3, b""), (Mode.WHOLE, 3, b"")):
        flight = made(mode, at=Phase.PREFILL)
        if mode is Mode.RAW:
            flight.start(Head(201, (), length))
            flight.land()
        else:
            flight.append_body(b"abc")
            flight.enter(Phase.STREAMING)
            flight.land(Head(201, (), length))
        assert (flight.tail, flight.head and flight.head.status) == (tail, 201)


@pytest.mark.parametrize(
    ("mode", "length", "framed"), [(Mode.RAW, None, True), (Mode.RAW, 3, False), (Mode.WHOLE, None, False)]
)
def test_a_piece_is_a_chunk_only_where_no_length_is_known(mode: Mode, length: int | None, framed: bool) -> None:
    flight = made(mode, key=b"k", at=Phase.PREFILL)
    sink = Sink()
    reading(flight, sink)
    if mode is Mode.RAW:
        flight.start(Head(200, (), length))
    else:
        flight.head = Head()
    flight.append_body(b"abc")
    wired = chunk(b"abc") if framed else b"abc"
    assert (flight.log, flight.size) == ([wired], len(wired))
    assert sink.got == (wired if mode is Mode.RAW else b"")


@virtual
async def test_a_raw_answer_s_head_is_told_as_it_comes() -> None:
    flight = made(Mode.RAW, at=Phase.PREFILL)
    woken = reading(flight).changed()
    flight.start(Head(200))
    assert woken.done()


def test_how_a_failure_ends_depends_on_what_is_read() -> None:
    for mode in Mode:
        flight = made(mode, key=b"k", at=Phase.PREFILL)
        if mode is Mode.STREAM:
            flight.add(frame(1))
        else:
            flight.append_body(b"abc")
        flight.fail(ERROR)
        assert (flight.error, flight.phase, flight.finished) == (ERROR, Phase.FAILED, True)
        assert flight.tail.endswith(LAST_CHUNK) is (mode is Mode.STREAM)
        assert flight.log == ([] if mode is Mode.WHOLE else [flight.log[0]])


@pytest.mark.parametrize("at", [Phase.QUEUED, Phase.LANDED])
@virtual
async def test_the_last_resort_ends_whatever_it_is_and_charges_it_once(at: Phase) -> None:
    words: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: words.append(context["message"]))
    for mode in (Mode.STREAM, Mode.WHOLE):
        flight, paid = made(mode), list[Flight]()
        woken = reading(flight).changed()
        if at is Phase.LANDED:
            flight.phase, flight.ended, flight.times.ended, flight.tail, flight.error = at, True, 1.0, b"t", ERROR
        flight.on_end = paid.append
        other = GatewayError(Code.INTERNAL, "ours")
        flight.broke(other)
        flight.broke(other)
        assert (flight.phase, flight.ended, flight.finished, woken.done()) == (Phase.FAILED, True, True, True)
        assert paid == [flight]
        assert not callable(getattr(flight, "on_end"))  # noqa: B009 - narrowed above
        fresh = at is Phase.QUEUED
        assert flight.error is (other if fresh else ERROR)
        assert flight.times.ended == (5.0 if fresh else 1.0)
        assert flight.tail == ((BROKEN if mode is Mode.STREAM else b"") if fresh else b"t")
        flight.on_end = fails
        flight.broke(other)
    assert words == ["the charge for a flight"] * 2


@pytest.mark.parametrize("readers", [0, 1])
def test_what_a_log_is_charged_is_given_back_at_its_end_or_as_its_last_reader_leaves(readers: int) -> None:
    memory = Memory(10 * STEP)
    flight = made(Mode.WHOLE, at=Phase.STREAMING, memory=memory, owner="me")
    some = [reading(flight) for _ in range(readers)]
    assert flight.charge(7)
    assert flight.charge(3), "it is never charged less"
    assert (memory.held, memory.heaviest()) == (7, [("me", 7)])
    flight.cancel()
    assert memory.held == 7 * readers
    for reader in some:
        reader.leave()
    assert memory.held == 0


def test_without_a_budget_nothing_is_charged_and_a_log_may_grow_by_steps_to_its_bound() -> None:
    flight = made()
    flight.size = 10
    assert (flight.grow(10**9), flight.grow(10 + STEP - 1), flight.grow(10)) == (10 + STEP, 9 + STEP, 10)
    assert flight.held is None
    error = flight.grow(9)
    assert isinstance(error, GatewayError)
    assert "exceeds 9 bytes" in error.message


@pytest.mark.parametrize(
    ("private", "lagging", "goes_on"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_where_the_budget_is_used_up_only_who_is_held_back_anyway_goes_on(
    private: bool, lagging: bool, goes_on: bool
) -> None:
    flight = made(memory=Memory(1), key=None if private else b"k")
    reading(flight).lagging = lagging
    assert isinstance(flight.grow(10**9), int) is goes_on
    flight.cancel()


def test_some_readers_are_refused_where_another_remains_and_else_none_is() -> None:
    group = FlightGroup()
    flight = group.launch(FlightSpec("POST", "/", b"", Mode.STREAM, "r", key=b"k"))
    readers = [group.attach(flight, usage=True, whole=False) for _ in range(3)]
    assert not flight.refuse(ERROR, lambda reader: True)
    assert (flight.subscribers, flight.phase) == (set(readers), Phase.QUEUED)
    readers[0].cursor = 3
    assert flight.refuse(ERROR, lambda reader: reader is not readers[2])
    assert flight.subscribers == {readers[2]}
    for reader in readers[:2]:
        assert (reader.flight.error, reader.flight.subscribers, reader.cursor) == (ERROR, {reader}, 0)
        assert reader.flight.spec is flight.spec
        assert reader.flight.clock is flight.clock
    group.remove(flight)


def test_readers_at_one_place_share_what_is_joined_and_others_have_their_own() -> None:
    flight = made(key=b"k", usage_added=True)
    flight.log += [b"a", b"b", b"c"]
    flight.log_without_usage += [b"x", b"y", b"z"]
    first = flight.joined(flight.log, 0, 2)
    assert (first, flight.joined(flight.log, 0, 2) is first) == (b"ab", True)
    assert flight.joined(flight.log_without_usage, 0, 2) == b"xy"
    assert flight.joined(flight.log_without_usage, 0, 3) == b"xyz"
    assert flight.joined(flight.log_without_usage, 1, 3) == b"yz"


def test_whose_a_reader_is_is_asked_once() -> None:
    asked: list[int] = []

    def owner() -> str:
        asked.append(1)
        return "me"

    reader = Subscriber(made(), owner=owner)
    assert (reader.caller, reader.caller, asked) == ("me", "me", [1])
    reader.waits(4.0)
    assert reader.since == 4.0


def test_the_last_to_leave_says_so_unless_it_has_ended() -> None:
    for ended in (False, True):
        flight, empty = made(), list[Flight]()
        flight.on_abandoned = empty.append
        readers = [reading(flight, Sink()), reading(flight)]
        if ended:
            flight.cancel()
        for reader in readers:
            reader.leave()
        assert (empty, readers[0].pipe) == ([] if ended else [flight], None)
