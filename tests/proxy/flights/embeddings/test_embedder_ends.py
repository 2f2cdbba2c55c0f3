"""The embedder's ends: what each fault costs, what each request is counted as, what nobody keeps afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings import embedder as module
from proxy.flights.embeddings.items import EmbeddingRequest, Result, array_of, no_parts
from proxy.flights.embeddings.queue import ARRAYS_A_TURN
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.redis.cache import Cache, Stored
from proxy.wire.openai import decode
from tests.kit.embed_stage import POISON, Stage, told, vector, vectors


def code_of(reader: Subscriber) -> Code | None:
    return reader.flight.error.code if reader.flight.error is not None else None


def counted(stage: Stage) -> dict[str, float]:
    lines = stage.metrics.render("text/plain")[0].decode().splitlines()
    ours = [line.removeprefix("gateway_embed_") for line in lines if line.startswith("gateway_embed_")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in ours}


def once(act: Callable[..., Any], at: int = 1) -> Callable[..., Any]:
    """The same, but it raises at this call."""
    calls = 0

    def called(*given: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise ZeroDivisionError
        return act(*given, **more)

    return called


def settled(stage: Stage) -> None:
    for _ in range(20):
        stage.loop.turn()
        while stage.sent:
            stage.answer()
    embedder = stage.embedder
    assert (len(embedder), len(embedder.queue), len(embedder.arrays), len(stage.group)) == (0, 0, 0, 0)
    assert repr(embedder) == "<Embedder 0 requests, <Arrays waiting=0 under_way=0 groups=0>>"


def test_it_knows_what_it_feeds_and_how_much_that_is() -> None:
    stage = Stage()
    reader = stage.ask(["a", "b"])
    assert (len(stage.embedder), reader.flight in stage.embedder) == (3, True)
    stage.loop.turn()
    assert len(stage.embedder) == 4, "a request, two items, a call"
    assert stage.sent[0] not in stage.embedder
    settled(stage)
    assert reader.flight not in stage.embedder


def test_items_and_arrays_are_counted_by_where_they_are_from_and_what_became_of_them() -> None:
    stage = Stage()
    nothing = {
        'items_total{source="cache"}', 'items_total{source="joined"}', 'items_total{source="asked"}',
        "arrays_split_total", "refused_items_total",
    }  # fmt: skip
    assert counted(stage) == dict.fromkeys(nothing, 0.0)
    stage.ask(["a", "b", "b"])
    stage.ask(["b", POISON], caller="x")
    settled(stage)
    found = counted(stage)
    assert (found['items_total{source="asked"}'], found['items_total{source="joined"}']) == (2.0, 1.0)
    assert found["refused_items_total"] == 1.0
    assert found["arrays_split_total"] >= 1.0
    assert found["array_items_sum"] == found["array_items_sum"] >= 3.0


@pytest.mark.parametrize("fields", ["string", "nothing"])
def test_what_has_no_items_is_the_scheduler_s(fields: str) -> None:
    stage = Stage()
    body = b'{"model":"m","input":[]}' if fields == "string" else b""
    api_request = decode("embeddings", body) if body else None
    flight = stage.group.launch(FlightSpec("POST", "/", body, Mode.WHOLE, "r", api_request=api_request))
    assert not stage.embedder.take(flight, b"")
    assert (len(stage.embedder), flight.on_abandoned, stage.group.live) == (0, None, {flight})
    stage.group.remove(flight)


def refused(stage: Stage, *inputs: str) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        stage.ask(list(inputs))
    return caught.value


def test_what_is_refused_is_told_by_its_reason_and_forgotten() -> None:
    why: list[str] = []
    stage = Stage(limit=1, refused=why.append)
    stage.ask("a", caller="x")
    with pytest.raises(GatewayError):
        stage.ask("b", caller="x")
    assert (why, len(stage.group), len(stage.embedder.queue)) == (["queue_full"], 1, 1)
    stage.close()
    error = refused(stage, "c")
    assert (error.code, error.retry_after, why[1:]) == (Code.SHUTTING_DOWN, 1, ["shutting_down"])
    assert (len(stage.group), len(stage.embedder), stage.faults) == (0, 0, [])


def test_a_request_that_is_invalid_is_not_counted_as_rejected_by_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def invalid(*given: Any, **more: Any) -> Any:
        raise GatewayError(Code.INVALID_JSON, "no")

    why: list[str] = []
    stage = Stage(refused=why.append)
    monkeypatch.setattr(stage.embedder._keyer, "items", invalid)
    assert refused(stage, "a").code is Code.INVALID_JSON
    assert (why, stage.faults, len(stage.group), len(stage.embedder)) == ([], [], 0, 0)


def test_what_raises_as_it_is_taken_is_let_go_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(memory=Memory(1 << 30))
    monkeypatch.setattr(stage.embedder.queue, "begins", once(stage.embedder.queue.begins))
    with pytest.raises(ZeroDivisionError):
        stage.ask("a")
    assert (len(stage.group), len(stage.embedder), stage.memory.held) == (0, 0, 0)
    assert stage.faults == ["a request for embeddings: ZeroDivisionError()"]


def test_who_makes_room_is_told_and_counted() -> None:
    why: list[str] = []
    stage = Stage(limit=2, refused=why.append)
    first = [stage.ask(name, caller="x") for name in "ab"]
    stage.ask("c", caller="y")
    assert ([code_of(reader) for reader in first], why) == ([None, Code.QUEUE_SHARE], ["pushed_out"])
    settled(stage)


def test_who_it_belongs_to_is_asked_once_as_it_comes() -> None:
    stage = Stage()
    names = ["me"]
    reader = stage.ask("a", caller=cast("str", names.pop))
    assert (reader.flight.queue_state.owner, names) == ("me", [])
    settled(stage)


def test_of_large_requests_one_that_cannot_begin_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.flights.embeddings.queue.SLICE", 1)
    stage = Stage(items=9)
    readers = [stage.ask([f"{n}a", f"{n}b"]) for n in range(3)]
    monkeypatch.setattr(stage.embedder, "_join", once(stage.embedder._join))
    settled(stage)
    assert [code_of(reader) for reader in readers] == [None, Code.INTERNAL, None]
    assert vectors(readers[2]) == [vector("2a"), vector("2b")]
    assert stage.faults == ["a request for embeddings: ZeroDivisionError()"]


@pytest.mark.parametrize(("what", "costs"), [("array_of", 0), ("group.launch", 2), ("counts", 2), ("submit", 2)])
def test_an_array_that_cannot_be_sent_costs_its_own_requests(
    what: str, costs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(items=2)
    readers = [stage.ask(name, caller=name) for name in ("a", "b")]
    other = stage.ask("c", dimensions=3)
    embedder = stage.embedder
    if what == "array_of":
        monkeypatch.setattr(module, "array_of", once(array_of))
    elif what == "group.launch":
        monkeypatch.setattr(stage.group, "launch", once(stage.group.launch))
    elif what == "counts":
        monkeypatch.setattr(embedder._counts, "array", once(embedder._counts.array))
    else:
        monkeypatch.setattr(embedder, "_submit", once(embedder._submit))
    settled(stage)
    failed = [code_of(reader) for reader in readers]
    assert failed == [Code.INTERNAL if n < costs else None for n in range(2)]
    assert vectors(other) == [vector("c")]
    assert len(stage.faults) == 1


def test_an_array_whose_making_raises_for_one_request_alone_fails_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage, made = Stage(), array_of

    def fragile(items: Any) -> Any:
        if any(b"bad" in item.text for item in items):
            raise ZeroDivisionError
        return made(items)

    monkeypatch.setattr(module, "array_of", fragile)
    bad, good = stage.ask("bad", caller="x"), stage.ask("good", caller="y")
    settled(stage)
    assert (code_of(bad), vectors(good)) == (Code.INTERNAL, [vector("good")])
    assert len(stage.faults) >= 2


@pytest.mark.parametrize("what", ["_settle", "was_sent"])
def test_what_an_answer_raises_ends_its_requests_or_nobody(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    reader, other = stage.ask("a"), stage.ask("b", dimensions=3)
    stage.loop.turn()
    if what == "_settle":
        monkeypatch.setattr(stage.embedder, "_settle", once(stage.embedder._settle))
    else:
        monkeypatch.setattr(EmbeddingRequest, "was_sent", once(EmbeddingRequest.was_sent))
    settled(stage)
    assert code_of(reader) is (Code.INTERNAL if what == "_settle" else None)
    assert vectors(other) == [vector("b")]
    assert len(stage.faults) == 1


def test_of_an_answer_one_vector_that_cannot_be_kept_costs_who_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    readers = [stage.ask(name) for name in ("a", "b")]
    stage.loop.turn()
    monkeypatch.setattr(stage.embedder, "_comes", once(stage.embedder._comes))
    settled(stage)
    assert (code_of(readers[0]), vectors(readers[1])) == (Code.INTERNAL, [vector("b")])


def test_a_missing_vector_is_looked_for_in_halves_and_a_cancelled_array_ends_its_requests() -> None:
    stage = Stage()
    readers = [stage.ask(name, caller=name) for name in ("a", "b")]
    stage.loop.turn()
    flight = stage.sent.pop()
    stage.group.remove(flight)
    flight.fail(GatewayError(Code.UPSTREAM_INCOMPLETE, "short"))
    stage.loop.step()
    settled(stage)
    assert [vectors(reader) for reader in readers] == [[vector("a")], [vector("b")]]
    assert counted(stage)["arrays_split_total"] == 1.0
    alone = stage.ask("c")
    stage.loop.turn()
    flight = stage.sent.pop()
    stage.group.remove(flight)
    flight.fail(GatewayError(Code.UPSTREAM_INCOMPLETE, "short"))
    stage.loop.step()
    gone = stage.ask("d")
    stage.loop.turn()
    flight = stage.sent.pop()
    stage.group.remove(flight)
    flight.cancel()
    stage.loop.step()
    assert (code_of(alone), code_of(gone)) == (Code.UPSTREAM_INCOMPLETE, Code.SHUTTING_DOWN)
    settled(stage)


def test_times_and_phases_of_a_request_are_those_of_its_arrays() -> None:
    stage = Stage(items=1)
    reader = stage.ask(["a", "b"])
    flight = reader.flight
    stage.loop.turn()
    call = stage.sent[0]
    call.times.dispatched, call.backend, call.attempts = 3.0, "e0", 2
    joined = stage.ask(["a"])
    assert (joined.flight.phase, joined.flight.backend, joined.flight.attempts) == (Phase.PREFILL, "e0", 2)
    assert (joined.flight.times.dispatched, joined.flight.carried_as) == (3.0, call.spec.request_id)
    stage.answer()
    assert (flight.phase, flight.attempts, flight.times.first) == (Phase.PREFILL, 2, None)
    stage.loop.turn()
    stage.sent[0].times.dispatched = 9.0
    settled(stage)
    assert (flight.phase, flight.times.dispatched, flight.attempts) == (Phase.LANDED, 3.0, 2)
    assert (flight.times.first, flight.times.first == flight.times.last) != (None, False)


def test_a_request_whose_array_reached_no_engine_has_not_left_the_queue() -> None:
    stage = Stage()
    reader = stage.ask("a")
    stage.loop.turn()
    stage.sent[0].phase = Phase.QUEUED
    joined = stage.ask("a", caller="b")
    assert joined.flight.phase is reader.flight.phase is Phase.QUEUED
    stage.sent[0].phase = Phase.PREFILL
    settled(stage)


def test_who_leaves_is_told_of_as_sent_where_it_was_and_ends_once() -> None:
    stage = Stage(memory=Memory(1 << 30))
    reader, waits = stage.ask("a"), stage.ask("b", dimensions=3)
    stage.loop.turn()
    late = stage.ask("late")
    for one in (reader, late):
        one.leave()
    assert (reader.flight.phase, reader.flight.before) == (Phase.CANCELLED, Phase.PREFILL)
    assert (late.flight.phase, late.flight.before) == (Phase.CANCELLED, Phase.QUEUED)
    settled(stage)
    assert vectors(waits) == [vector("b")]
    waits.leave()
    assert stage.memory.held == 0


def test_a_reader_that_joins_what_an_engine_has_hurries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, joined = Stage(), list[Any]()
    monkeypatch.setattr(stage.embedder.queue, "joined", lambda *given: joined.append(given))
    reader = stage.ask("a")
    stage.embedder.joined(reader)
    stage.loop.turn()
    reader.flight.enter(Phase.CONNECTING)
    stage.embedder.joined(reader)
    stranger = Subscriber(Flight(FlightSpec("POST", "/", b"", Mode.WHOLE, "r")))
    stage.embedder.joined(stranger)
    assert [caller for _, caller in joined] == [""]
    reader.flight.enter(Phase.PREFILL)
    settled(stage)


def test_with_a_window_the_turn_comes_as_it_closes() -> None:
    stage = Stage(window=2.0)
    timers: list[tuple[float, Callable[[], None]]] = []
    cancelled: list[int] = []

    class Handle:
        def cancel(self) -> None:
            cancelled.append(1)

    def call_at(when: float, call: Callable[[], None]) -> Handle:
        timers.append((when, call))
        return Handle()

    cast("Any", stage.loop).call_at = call_at
    reader = stage.ask("a")
    stage.loop.turn()
    stage.ask("b")
    stage.loop.turn()
    assert ([when for when, _ in timers], stage.sent) == ([2.0], [])
    stage.loop.now = 2.0
    timers[0][1]()
    stage.loop.step()
    assert stage.arrays == [["a", "b"]]
    stage.answer()
    stage.loop.turn()
    assert vectors(reader) == [vector("a")]
    stage.ask("c")
    stage.loop.turn()
    assert [when for when, _ in timers] == [2.0, 4.0]
    stage.embedder._heal()
    assert cancelled == [1]
    stage.loop.turn()
    assert len(timers) == 3, "the turn opens it again"
    stage.close()
    assert cancelled == [1, 1]


def test_after_the_end_no_turn_does_anything() -> None:
    stage = Stage()
    reader = stage.ask("a")
    stage.close()
    stage.loop.turn()
    assert (stage.arrays, code_of(reader), len(stage.embedder)) == ([], Code.SHUTTING_DOWN, 0)


def test_a_turn_is_asked_for_once_and_again_while_arrays_are_left() -> None:
    stage = Stage(items=1, calls=lambda model: 99)
    for n in range(ARRAYS_A_TURN):
        stage.ask(f"{n}")
    assert len(stage.loop.soon) == 1
    stage.loop.soon.pop(0)()
    stage.loop.step()
    assert (len(stage.sent), len(stage.loop.soon)) == (ARRAYS_A_TURN, 1)
    stage.loop.soon.pop(0)()
    assert stage.loop.soon == []
    settled(stage)


class Redis:
    """Answers at once with what it has."""

    available = True

    def __init__(self) -> None:
        self.has: dict[int, Stored] = {}
        self.kept: list[tuple[Stored, bool, float]] = []

    def lookup(self, keys: Sequence[bytes], done: Callable[[list[Stored | None]], None]) -> None:
        done([self.has.get(n) for n in range(len(keys))])

    def store(
        self, key: bytes, entry: Stored, settled: Callable[[], None], *, replace: bool, asked: float
    ) -> None:
        self.kept.append((entry, replace, asked))
        settled()


def test_a_request_of_stored_vectors_is_a_hit_and_is_counted_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    redis, landed = Redis(), list[Any]()
    stage = Stage(cache=cast("Cache", redis))
    monkeypatch.setattr(stage.metrics, "flight_landed", lambda *given: landed.append(given))
    redis.has = {
        0: Stored(kind="whole", created=9.0, body=Stage.body(["a"])),
        1: Stored(kind="whole", created=7.0, body=Stage.body(["b"])),
    }
    both = stage.ask(["a", "b"])
    settled(stage)
    assert (both.verdict, both.flight.stored_at, both.flight.items) == ("hit", 7.0, (2, 2, 8))
    assert (landed, redis.kept) == ([("hit", "m", None)], [])
    assert counted(stage)['items_total{source="cache"}'] == 2.0
    del redis.has[1]
    some = stage.ask(["c", "d"])
    settled(stage)
    assert (some.verdict, some.flight.stored_at, some.flight.items) == ("miss", None, (2, 1, 4))
    ((entry, replace, asked),) = redis.kept
    assert (entry.kind, entry.prompt_tokens, entry.completion_tokens, replace) == ("whole", 4, 0, False)
    assert some.flight.times.created <= asked < math.inf  # as its array was made
    assert len(landed) == 1


def test_a_refusal_that_is_an_answer_ends_a_request_once_and_what_has_no_parts_is_an_error() -> None:
    stage = Stage()
    reader = stage.ask("a")
    stage.loop.turn()
    stage.answer(404)
    assert (reader.flight.head and reader.flight.head.status, told(reader)) == (404, {"error": {"message": "no"}})
    one, two = stage.ask("b", caller="x"), stage.ask("c", caller="y")
    stage.loop.turn()
    flight = stage.sent.pop()
    stage.group.remove(flight)
    flight.append_body(b"{}")
    flight.land(Head(200, ()))
    stage.loop.step()
    assert [code_of(reader) for reader in (one, two)] == [Code.UPSTREAM_PROTOCOL] * 2
    assert no_parts("x").message == "The answer cannot be split into its vectors: x."
    assert FlightGroup().live == set()
    settled(stage)


def test_who_joins_what_has_come_has_it_at_once() -> None:
    stage = Stage(memory=Memory(1 << 30))
    first = stage.ask(["a", "b"])
    stage.loop.turn()
    (item_a, item_b) = stage.embedder._requests[first.flight].missing()
    stage.embedder._comes(item_a, Result.of(Stored(kind="whole", created=1.0, body=Stage.body(["a"]))))
    late = stage.ask("a", caller="late")
    assert vectors(late) == [vector("a")]
    assert (item_a.sent, item_b.result) == (True, None)
    stage.answer()
    stage.loop.turn()
    assert vectors(first) == [vector("a"), vector("b")]
    assert stage.memory.held > 0
    for reader in (first, late):
        reader.leave()
    assert stage.memory.held == 0


def test_of_items_that_are_given_up_one_that_raises_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(items=1)
    busy = stage.ask("x")
    stage.loop.turn()
    reader = stage.ask(["a", "b", "c"])
    monkeypatch.setattr(stage.embedder, "_drop_item", once(stage.embedder._drop_item))
    reader.leave()
    assert len(stage.embedder.arrays) == 1, "the others wait no longer"
    assert stage.faults == ["an embedding that is given up: ZeroDivisionError()"]
    settled(stage)
    assert vectors(busy) == [vector("x")]


def test_what_ends_all_leaves_no_vector_on_its_way() -> None:
    stage = Stage()
    stage.ask("a")
    stage.loop.turn()
    (item,) = stage.embedder._items.values()
    stage.embedder._delivery.add(item)
    assert len(stage.embedder) == 4
    stage.close()
    assert len(stage.embedder) == 0
    stage.embedder._turn()
    assert stage.sent == []


def test_a_refusal_that_raises_on_its_way_to_a_reader_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    reader = stage.ask(["a"])
    stage.loop.turn()
    monkeypatch.setattr(EmbeddingRequest, "refused", once(EmbeddingRequest.refused))
    stage.answer(400)
    settled(stage)
    assert code_of(reader) is Code.INTERNAL
