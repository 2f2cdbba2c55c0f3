"""The life of an array, step by step: who leaves when, what is refused when, and what is left of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.builder import closing
from proxy.flights.embeddings.items import EmbeddingRequest
from proxy.flights.flight import Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import Head
from proxy.redis.cache import Cache
from tests.kit.embed_stage import POISON, Stage, vector, vectors

JSON = (("content-type", "application/json"),)


def begun(stage: Stage) -> None:
    """Run the turn that makes arrays, and no step of theirs."""
    stage.loop.soon.pop(0)()


def over(stage: Stage) -> None:
    stage.loop.turn()
    stage.loop.turn()
    embedder = stage.embedder
    assert repr(embedder.arrays) == "<Arrays waiting=0 under_way=0 groups=0>"
    assert (len(embedder), len(embedder.queue), len(stage.group), stage.faults) == (0, 0, 0, [])


def test_an_array_whose_items_nobody_wants_before_its_first_step_is_not_sent() -> None:
    stage = Stage()
    one, other = stage.ask("a", caller="one", dimensions=3), stage.ask(["a", "b"], caller="other")
    begun(stage)
    assert len(stage.embedder) == 2 + 3 + 2, "requests, items of two kinds, arrays"
    one.leave()
    assert one.flight.phase is Phase.CANCELLED
    stage.loop.step()
    assert stage.arrays == [["a", "b"]]
    stage.answer()
    assert vectors(other) == [vector("a"), vector("b")]
    over(stage)


def test_an_item_that_is_given_up_before_its_array_s_first_step_is_left_out_of_it() -> None:
    stage = Stage()
    one, other = stage.ask("a", caller="one"), stage.ask("b", caller="other")
    begun(stage)
    one.leave()
    stage.loop.step()
    assert stage.arrays == [["b"]]
    stage.answer()
    assert vectors(other) == [vector("b")]
    over(stage)


def test_who_joins_before_its_first_step_is_served_by_it_and_takes_the_sooner_turn() -> None:
    stage = Stage(items=1, calls=lambda model: 9)
    heavy = [stage.ask(f"h{n}", caller="heavy") for n in range(3)]
    begun(stage)
    light = stage.ask("h2", caller="light", user="another")
    stage.loop.turn()
    assert (stage.arrays, [flight.queue_state.owner for flight in stage.sent]) == (
        [["h0"], ["h1"], ["h2"]],
        ["heavy", "heavy", "light"],
    )
    for _ in range(3):
        stage.answer()
    assert [vectors(reader) for reader in (*heavy, light)] == [[vector(f"h{n}")] for n in (0, 1, 2, 2)]
    over(stage)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_whoever_leaves_after_a_refusal_is_not_asked_for_again(steps: int) -> None:
    stage = Stage()
    readers = [stage.ask(name, caller=name) for name in "ab"]
    stage.loop.turn()
    flight = stage.sent.pop()
    stage.group.remove(flight)
    flight.append_body(b"{}")
    flight.land(Head(400, JSON))
    stage.loop.step(steps)
    readers[1].leave()
    assert readers[1].flight.phase is Phase.CANCELLED
    stage.loop.step()
    assert len(stage.embedder.arrays) == 1
    stage.loop.turn()
    assert stage.arrays == [["a", "b"], ["a"]]
    stage.answer()
    assert vectors(readers[0]) == [vector("a")]
    over(stage)


@pytest.mark.parametrize("phase", [Phase.QUEUED, Phase.CONNECTING, Phase.PREFILL])
def test_the_last_to_leave_cancels_the_array_at_once_wherever_it_is(phase: Phase) -> None:
    class Slow(Stage):
        def _submit(self, flight: Flight) -> None:
            flight.when_abandoned(self._cancelled)
            for step in (Phase.CONNECTING, Phase.PREFILL):
                if flight.phase is not phase:
                    flight.enter(step)
            self.sent.append(flight)

    stage = Slow()
    readers = [stage.ask("a", caller="one"), stage.ask("b", caller="other")]
    stage.loop.turn()
    (flight,) = stage.sent
    readers[0].leave()
    assert flight.phase is phase
    readers[1].leave()
    assert (flight.phase, flight.before, stage.sent) == (Phase.CANCELLED, phase, [])
    later = stage.ask("a")
    over_before = len(stage.embedder)
    assert over_before == 3, "a request, its item, and the array that is being cancelled"
    stage.loop.step()
    assert len(stage.embedder) == 2
    later.leave()
    over(stage)


def test_an_array_that_ends_as_it_is_submitted_is_not_waited_for() -> None:
    class Quick(Stage):
        def _submit(self, flight: Flight) -> None:
            self.group.remove(flight)
            flight.fail(GatewayError(Code.UPSTREAM_UNREACHABLE, "nobody"))

    stage = Quick()
    reader = stage.ask("a")
    stage.loop.turn()
    assert reader.flight.error is not None
    assert reader.flight.error.code is Code.UPSTREAM_UNREACHABLE
    over(stage)


def test_an_array_that_is_over_keeps_nothing_and_its_flight_tells_it_nothing() -> None:
    stage = Stage()
    reader = stage.ask("a")
    stage.loop.turn()
    (flight,) = stage.sent
    (item,) = stage.embedder._items.values()
    assert (item.call is not None, flight.on_end is not None, len(flight.subscribers)) == (True, True, 1)
    assert flight.queue_state.callers is not None
    stage.answer()
    kept: list[Any] = [item.call, flight.on_end, flight.queue_state.callers, flight.subscribers]
    assert kept == [None, None, None, set()]
    assert vectors(reader) == [vector("a")]
    over(stage)


def test_where_its_place_cannot_be_given_back_it_is_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, calls = Stage(), list[Any]()
    reader = stage.ask("a")
    stage.loop.turn()
    ended = stage.embedder.arrays.ended

    def fails_once(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 1:
            raise ZeroDivisionError
        ended(*given)

    monkeypatch.setattr(stage.embedder.arrays, "ended", fails_once)
    stage.answer()
    assert vectors(reader) == [vector("a")]
    assert (stage.faults, len(stage.embedder)) == (["an array of embeddings: ZeroDivisionError()"], 1)
    stage.loop.turn()
    stage.loop.turn()
    assert (len(calls), len(stage.embedder), calls[0]) == (2, 0, calls[1])
    stage.faults.clear()
    over(stage)


def test_the_check_doubles_nothing() -> None:
    stage = Stage(items=1)
    readers = [stage.ask(name) for name in "ab"]
    stage.loop.turn()
    readers.append(stage.ask("c"))
    begun_, queued = stage.arrays[:], len(stage.embedder.arrays)
    stage.embedder._heal()
    assert (begun_, len(stage.embedder.arrays), queued) == ([["a"]], 2, 2)
    joins = [stage.ask(name, caller="another") for name in "ab"]
    assert len(stage.embedder.arrays) == 2, "what is wanted can still be joined"
    for _ in readers:
        stage.answer()
        stage.loop.turn()
    assert sorted(stage.arrays) == [["a"], ["b"], ["c"]]
    assert [vectors(reader) for reader in readers + joins] == [[vector(name)] for name in "abcab"]
    over(stage)


@pytest.mark.parametrize("good", [True, False])
def test_an_engine_whose_parts_all_come_after_a_refusal_takes_no_more_arrays_of_several(good: bool) -> None:
    apart: list[str | None] = []
    stage = Stage(items=8, apart=apart.append)
    names = ["a", "b", "c", "d" if good else POISON]
    readers = [stage.ask(name, caller=name) for name in names]
    stage.loop.turn()
    stage.sent[0].backend = "e0"
    while stage.sent:
        assert apart == []
        stage.answer(400 if len(stage.inputs(stage.sent[0])) > 1 else None)
        stage.loop.turn()
    assert [reader.flight.head and reader.flight.head.status for reader in readers] == [200] * 3 + [
        200 if good else 400
    ]
    assert apart == (["e0"] if good else [])
    over(stage)


class Slow:
    """A store that answers when it is told to."""

    available = True

    def __init__(self) -> None:
        self.replies: list[Callable[[list[Any]], None]] = []
        self.stores: list[Callable[[], None]] = []

    def lookup(self, keys: Sequence[bytes], done: Callable[[list[Any]], None]) -> None:
        self.replies.append(done)

    def store(self, key: bytes, stored: Any, settled: Callable[[], None], **more: Any) -> None:
        self.stores.append(settled)


@pytest.mark.parametrize("looked_up", [False, True])
def test_the_check_sends_nothing_that_is_to_be_looked_up(looked_up: bool) -> None:
    store = Slow()
    stage = Stage(cache=cast("Cache", store))
    reader = stage.ask("a")
    if looked_up:
        stage.loop.turn()
    assert len(store.replies) == looked_up
    stage.embedder._heal()
    stage.loop.turn()
    assert (stage.arrays, len(stage.embedder.arrays), len(store.replies)) == ([], 0, 1)
    store.replies.pop()([None])
    stage.loop.turn()
    stage.answer()
    assert (stage.arrays, vectors(reader)) == ([["a"]], [vector("a")])
    late = stage.ask("a", caller="late")
    assert vectors(late) == [vector("a")], "it can be joined until it is stored"
    store.stores.pop()()
    over(stage)


def test_an_array_that_was_ended_by_the_check_is_not_ended_twice() -> None:
    stage = Stage()
    reader = stage.ask("a")
    stage.loop.turn()
    flight = stage.sent.pop()
    stage.group.remove(flight)
    flight.append_body(Stage.body(["a"]))
    flight.land(Head(200, JSON))
    stage.loop.step(1)  # the task is done, its callback has not run
    stage.embedder._heal()
    assert len(stage.embedder) == 0
    assert vectors(reader) == [vector("a")]
    over(stage)


def test_what_one_s_own_text_raises_after_the_answer_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, gets = Stage(), EmbeddingRequest.gets
    bad, good = stage.ask("bad", caller="x"), stage.ask("good", caller="y")

    def fragile(request: EmbeddingRequest, item: Any, result: Any) -> bool:
        if item.text == b'"bad"':
            raise ZeroDivisionError
        return gets(request, item, result)

    monkeypatch.setattr(EmbeddingRequest, "gets", fragile)
    stage.loop.turn()
    stage.answer()
    assert vectors(good) == [vector("good")]
    assert bad.flight.error is not None
    assert bad.flight.error.code is Code.INTERNAL
    assert stage.faults == ["an answer of embeddings: ZeroDivisionError()"]
    stage.faults.clear()
    over(stage)


@pytest.mark.parametrize("raises", [False, True])
def test_closing_waits_for_every_array_also_one_whose_cancellation_raised(raises: bool) -> None:
    stage = Stage()
    reader = stage.ask("a")
    stage.loop.turn()
    (flight,) = stage.sent

    def fails(flight: Flight) -> None:
        raise ZeroDivisionError

    if raises:
        flight.when_abandoned(fails)
    ended = []

    async def close() -> None:
        ended.append((flight.ended, reader.flight.ended))
        await asyncio.sleep(0)
        if not flight.ended:
            flight.fail(GatewayError(Code.SHUTTING_DOWN, "closed"))

    async def closed() -> None:
        await closing(stage.embedder, close)()
        assert len(stage.embedder) == 0, "it has waited"

    task = stage.loop.create_task(closed())
    stage.loop.step()
    assert (task.done() and task.result(), ended) == (None, [(not raises, True)])
    assert len(stage.embedder) == 0
    assert len(stage.faults) == raises


@pytest.mark.parametrize("how", ["unreachable", "503", "429"])
def test_what_comes_between_the_end_of_a_failed_array_and_its_settling_gets_an_array_of_its_own(how: str) -> None:
    stage = Stage()
    first = stage.ask("a", caller="one")
    stage.loop.turn()
    array = stage.sent.pop()
    stage.group.remove(array)
    if how == "unreachable":
        array.fail(GatewayError(Code.UPSTREAM_UNREACHABLE, "gone"))
    else:
        array.append_body(b"{}")
        array.land(Head(int(how)))
    late = stage.ask("a", caller="two", user="x")
    for _ in range(4):
        stage.loop.turn()
    assert first.flight.ended
    assert not late.flight.ended
    while stage.sent:
        stage.answer()
        stage.loop.turn()
    assert vectors(late) == [vector("a")]
    stage.close()


def test_an_array_whose_task_is_cancelled_ends_its_requests_and_frees_its_place() -> None:
    stage = Stage()
    first = stage.ask("a")
    stage.loop.turn()
    (task,) = stage.embedder._tasks
    task.cancel()
    for _ in range(4):
        stage.loop.turn()
    assert first.flight.ended
    assert not stage.embedder._tasks
    second = stage.ask("b")
    stage.loop.turn()
    stage.answer()
    stage.loop.turn()
    assert vectors(second) == [vector("b")]
    stage.close()
