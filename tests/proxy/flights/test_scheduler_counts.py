"""What the scheduler tells of flights: to metrics, to the queue, to the store, and to who learns from answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from proxy.config.vocabulary import HIGH, LOW
from proxy.errors import Code, GatewayError
from proxy.flights import stored as kept
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.estimates import MIN_SAMPLES
from proxy.flights.scheduler import Scheduler
from proxy.flights.spec import Mode
from proxy.redis.cache import Stored
from proxy.wire.frames import Usage
from proxy.wire.sse import chunk
from tests.kit.clock import virtual
from tests.kit.planned import planned
from tests.proxy.flights.test_scheduler import DONE, FRAME, House

LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


def line_of(house: House, name: str) -> float:
    """A metric's value, by the beginning of its line."""
    lines = house.metrics.render("text/plain")[0].decode().splitlines()
    return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(name)), "nan"))


def landed(house: House, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(house.metrics, "flight_landed", lambda *given: told.append(given))
    return told


def ask(
    house: House, key: bytes | None = None, mode: Mode = Mode.STREAM, **more: Any
) -> tuple[Flight, Subscriber]:
    flight = house.group.launch(*planned(b"{}", mode, key=key, **more))
    reader = house.group.attach(flight, usage=True, whole=mode is Mode.WHOLE)
    house.scheduler.submit(flight)
    return flight, reader


@virtual
async def test_a_stream_s_mean_gap_and_its_tokens_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(kept=3)
    told = landed(house, monkeypatch)
    for events in (3, 2, 1):
        flight, _ = ask(house, model="m")
        house.engine.wire.head()
        for n in range(events):
            monkeypatch.setattr(flight, "clock", lambda n=n: 2.0 * n)
            house.engine.wire.body(FRAME.replace(b'"a"', b'"%d"' % n))
        house.engine.wire.body(DONE)
        await house.turn()
    assert told == [("landed", "m", 2.0, 3), ("landed", "m", 2.0, 2), ("landed", "m", None, 1)]
    await house.scheduler.close()


@virtual
async def test_what_left_failed_or_was_not_whole_is_counted_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(kept=4)
    told, reasons = landed(house, monkeypatch), list[tuple[str, str]]()
    _, leaver = ask(house, model="a")
    leaver.leave()
    ask(house, model="b")
    house.engine.wire.lose(GatewayError(Code.UPSTREAM_TOO_LARGE, "much"))
    ask(house, model="c")
    house.engine.wire.head()
    house.engine.wire.body(FRAME)
    house.engine.wire.lose(GatewayError(Code.UPSTREAM_INCOMPLETE, "no end"))
    flight, _ = ask(house, model="d")
    monkeypatch.setattr(house.metrics, "upstream_error", lambda *given: reasons.append(given))
    house.engine.wire.head()
    house.engine.wire.body(b'data: {"error":{"message":"no"}}\n\n' + DONE)
    assert [one[:2] for one in told] == [("cancelled", "a"), ("failed", "b"), ("error", "c"), ("error", "d")]
    assert flight.phase is Phase.LANDED
    assert reasons == [("e0", Code.UPSTREAM_ERROR_FRAME.code)]
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_who_waited_for_a_place_is_counted_by_class_with_its_wait() -> None:
    house = House(kept=2, ticket=lambda flight: Ticket(priority=flight.queue_state.priority))
    ask(house)
    flight, _ = ask(house, priority=LOW)
    made = flight.times.created
    flight.clock = lambda: made + 3.0
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    await house.turn()
    assert line_of(house, 'gateway_place_wait_seconds_sum{priority="low"}') == pytest.approx(3.0)
    assert line_of(house, 'gateway_place_wait_seconds_count{priority="low"}') == 1.0
    await house.scheduler.close()


@virtual
async def test_at_its_turn_one_that_has_no_time_left_ends_and_pays_for_nothing() -> None:
    house = House(kept=2, ticket=lambda flight: Ticket(latest=flight.queue_state.latest))
    ask(house)
    hurried, _ = ask(house, latest=5.0)
    for _ in range(MIN_SAMPLES):
        house.scheduler.queue.estimates.record_answer(None, 60.0)
    patient, _ = ask(house)
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    await house.turn()
    assert hurried.error is not None
    assert hurried.error.code is Code.DEADLINE_UNMEETABLE
    assert patient.phase is Phase.PREFILL
    assert line_of(house, 'gateway_queue_refused_total{why="deadline_unmeetable"}') == 1.0
    assert line_of(house, "gateway_place_wait_seconds_count") == 1.0
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_what_the_queue_does_not_take_or_keep_is_counted_by_its_reason() -> None:
    house = House(kept=1, limit=2, ticket=lambda flight: Ticket(owner=flight.spec.tenant))
    ask(house)
    ask(house, tenant=b"a")
    pushed, _ = ask(house, tenant=b"a")
    ask(house, tenant=b"b")
    assert pushed.error is not None
    assert pushed.error.code is Code.QUEUE_SHARE
    with pytest.raises(GatewayError):
        ask(house, tenant=b"b")
    assert line_of(house, 'gateway_queue_refused_total{why="pushed_out"}') == 1.0
    assert line_of(house, 'gateway_queue_refused_total{why="queue_share_exceeded"}') == 1.0
    assert len(house.group) == 3
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_one_more_reader_makes_what_waits_as_urgent_as_itself() -> None:
    house = House(
        kept=2,
        ticket=lambda flight: Ticket(
            owner=flight.spec.tenant, priority=flight.queue_state.priority, deadline=flight.queue_state.deadline
        ),
    )
    ask(house)
    flight, _ = ask(house, key=b"k", priority=LOW, deadline=50.0, latest=50.0)
    await asyncio.sleep(3.0)
    late = house.group.attach(flight, usage=True, whole=False, attached=True, owner="late")
    house.scheduler.promote(flight, 1, 60.0, late)
    assert (flight.queue_state.priority, flight.queue_state.deadline, flight.queue_state.latest, late.since) == (
        1,
        50.0,
        60.0,
        3.0,
    )
    house.scheduler.promote(flight, LOW, 40.0)
    house.scheduler.promote(flight, HIGH, 45.0)
    assert (flight.queue_state.priority, flight.queue_state.deadline, flight.queue_state.latest) == (
        HIGH,
        40.0,
        60.0,
    )
    assert line_of(house, "gateway_queue_promoted_total") == 3.0
    house.scheduler.promote(flight, HIGH, 40.0)
    assert line_of(house, "gateway_queue_promoted_total") == 3.0, "it was so already"
    house.engine.wire.head()
    house.engine.wire.body(DONE)
    await house.turn()
    assert flight.phase is Phase.PREFILL
    later = house.group.attach(flight, usage=True, whole=False, attached=True)
    house.scheduler.promote(flight, HIGH, 1.0, later)
    assert (later.since, flight.queue_state.deadline) == (-math.inf, 1.0), "it waits for no place"
    await house.scheduler.close()


@virtual
async def test_an_array_takes_the_turn_of_another_owner_that_joins() -> None:
    house = House(kept=1, ticket=lambda flight: Ticket(owner=flight.spec.tenant))
    ask(house)
    flights = [ask(house, tenant=b"heavy")[0] for _ in range(3)]
    house.scheduler.promote(flights[2], 1, math.inf, None, b"light")
    assert house.scheduler.queue.line.owned(b"light") == 1
    await house.scheduler.close()


class Seen:
    """A store that notes what it is asked and given."""

    max_entry = 200

    def __init__(self) -> None:
        self.available = True
        self.asked: list[tuple[list[bytes], list[bytes]]] = []
        self.done: list[Callable[[list[Stored | None]], None]] = []
        self.stored: list[tuple[bytes, str, bool, float]] = []
        self.settled: list[Callable[[], None]] = []
        self.skipped = 0

    def lookup(self, keys: Sequence[bytes], done: Callable[..., None], others: Sequence[bytes]) -> None:
        self.asked.append((list(keys), list(others)))
        self.done.append(done)

    def store(
        self, key: bytes, stored: Stored, settled: Callable[[], None], *, replace: bool, asked: float, fence: bytes
    ) -> bool:
        self.stored.append((key, stored.kind, replace, asked))
        self.settled.append(settled)
        return True

    def skip(self) -> None:
        self.skipped += 1


def with_store(monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[House, Seen]:
    house, seen = House(inflight=9, kept=9, **more), Seen()
    monkeypatch.setattr(house.scheduler, "_cache", seen)
    return house, seen


@virtual
async def test_a_look_up_asks_for_what_is_of_its_own_kind_first(monkeypatch: pytest.MonkeyPatch) -> None:
    house, seen = with_store(monkeypatch)
    batches: list[int] = []
    monkeypatch.setattr(house.metrics, "batch", batches.append)
    ask(house, b"a")
    ask(house, b"b", Mode.WHOLE)
    ask(house, b"c", Mode.WHOLE, fold=False)
    ask(house, b"d", fresh=True)
    ask(house)
    await house.turn()
    assert seen.asked == [([b"a", b"b" + kept.WHOLE, b"c" + kept.WHOLE], [b"a" + kept.WHOLE, b"b", b""])]
    assert batches == [3]
    await house.scheduler.close()


@virtual
async def test_a_hit_lands_at_once_and_is_counted_and_a_miss_departs(monkeypatch: pytest.MonkeyPatch) -> None:
    house, seen = with_store(monkeypatch)
    told = landed(house, monkeypatch)
    hit, _ = ask(house, b"a", model="m")
    miss, _ = ask(house, b"b")
    gone, reader = ask(house, b"c")
    await house.turn()
    reader.leave()
    body = chunk(FRAME) + chunk(DONE)
    stored = Stored(kind="stream", created=1.0, body=body, prompt_tokens=3, completion_tokens=4)
    seen.done.pop()([stored, None, stored])
    assert (hit.phase, miss.phase, gone.phase) == (Phase.LANDED, Phase.PREFILL, Phase.CANCELLED)
    assert (hit.stored_at, hit.usage) == (1.0, Usage(prompt_tokens=3, completion_tokens=4))
    assert [one[0] for one in told] == ["cancelled", "hit"]
    assert told[1] == ("hit", "m", None)
    assert house.group.live == {miss}
    await house.scheduler.close()
    house.left_nothing()


@virtual
async def test_a_hit_for_which_there_is_no_memory_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    house, seen = with_store(monkeypatch)
    told = landed(house, monkeypatch)
    flight, _ = ask(house, b"a")
    await house.turn()
    flight.memory = Memory(100_000)
    seen.done.pop()([Stored(kind="stream", created=1.0, body=chunk(b"x" * 70_000))])
    assert flight.error is not None
    assert told == [("failed", None, None)]
    house.left_nothing()
    await house.scheduler.close()


def answered(house: House, *frames: bytes) -> None:
    house.engine.wire.head()
    house.engine.wire.body(b"".join(frames))


@virtual
async def test_what_is_whole_is_stored_under_its_name_and_stays_joinable_until_it_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house, seen = with_store(monkeypatch)
    stream, _ = ask(house, b"a", fresh=True)
    answered(house, FRAME, DONE)
    whole, _ = ask(house, b"b", Mode.WHOLE, fresh=True)
    house.engine.wire.head(200, [("content-type", "application/json")])
    house.engine.wire.body(b'{"choices":[]}')
    house.engine.wire.end()
    assert [one[:3] for one in seen.stored] == [(b"a", "stream", True), (b"b" + kept.WHOLE, "whole", True)]
    assert [one[3] for one in seen.stored] == [stream.times.created, whole.times.created]
    assert house.group.live == {stream, whole}
    for settled in seen.settled:
        settled()
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_a_body_replaces_what_is_stored_only_where_that_is_of_no_use_or_it_was_asked_for_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    house, seen = with_store(monkeypatch)
    for useless in (False, True):
        flight, _ = ask(house, b"b", Mode.WHOLE)
        await house.turn()
        seen.done.pop()([None])
        flight.replace = useless
        house.engine.wire.head(200, [("content-type", "application/json")])
        house.engine.wire.body(b'{"choices":[]}')
        house.engine.wire.end()
        seen.settled.pop()()
    assert [one[2] for one in seen.stored] == [False, True]
    house.left_nothing()
    await house.scheduler.close()


@pytest.mark.parametrize("why", ["no key", "error", "not storable", "too large"])
@virtual
async def test_what_may_not_be_stored_is_not_and_is_joined_no_more(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, seen = with_store(monkeypatch)
    flight, _ = ask(house, None if why == "no key" else b"a", fresh=True)
    flight.storable = why != "not storable"
    frames = [b'data: {"error":{"message":"no"}}\n\n'] if why == "error" else [FRAME]
    answered(house, *frames * (9 if why == "too large" else 1), DONE)
    assert (seen.stored, seen.skipped) == ([], int(why == "too large"))
    house.left_nothing()
    await house.scheduler.close()


@virtual
async def test_what_is_just_as_large_as_may_be_stored_is(monkeypatch: pytest.MonkeyPatch) -> None:
    house, seen = with_store(monkeypatch)
    seen.max_entry = len(chunk(FRAME) + chunk(DONE))
    ask(house, b"a", fresh=True)
    answered(house, FRAME, DONE)
    assert (len(seen.stored), seen.skipped) == (1, 0)
    seen.settled.pop()()
    house.left_nothing()
    await house.scheduler.close()


def taught(house: House, learned: list[Any], passed: list[Any]) -> Scheduler:
    scheduler = house.scheduler
    scheduler._on_complete = learned.append
    scheduler._on_unknown_shape = lambda engine, flight: passed.append((engine.name, flight))
    return scheduler


@virtual
async def test_what_an_answer_came_to_is_learned_where_it_waited_and_is_whole() -> None:
    house = House(kept=5)
    learned: list[Flight] = []
    passed: list[tuple[str, Flight]] = []
    scheduler = taught(house, learned, passed)
    flights = []
    for assumed, usage_added, frame in (
        (0, False, FRAME),
        (9, False, FRAME),
        (9, True, FRAME),
        (9, True, b'data: {"error":{"message":"no"}}\n\n'),
    ):
        flight, _ = ask(house, usage_added=usage_added)
        flight.queue_state.assumed = assumed
        answered(house, frame, DONE)
        await house.turn()
        flights.append(flight)
    assert learned == flights[1:3]
    assert passed == [("e0", flights[2])]
    await scheduler.close()
    house.left_nothing()


@virtual
async def test_how_long_answers_take_is_told_of_those_that_have_little_time() -> None:
    house = House(kept=20)
    for n in range(2 * MIN_SAMPLES):
        flight, _ = ask(house, latest=1000.0 if n % 2 else math.inf)
        sent = flight.times.dispatched
        assert sent is not None
        flight.clock = lambda sent=sent: sent + 7.0  # type: ignore[misc]
        answered(house, FRAME, DONE)
        await house.turn()
        known = house.scheduler.queue.estimates.answer_time(None, 0.5)
        assert known == (pytest.approx(7.0) if n == 2 * MIN_SAMPLES - 1 else 0.0)
    await house.scheduler.close()
    house.left_nothing()
