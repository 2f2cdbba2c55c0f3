"""Embeddings of several callers: turns, a full queue, refusals of one caller, memory and large answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.items import ITEM_BYTES
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.memory import Memory
from proxy.flights.spec import Head
from proxy.wire.embeddings import MAX_ITEMS, SLICE
from tests.kit.embed_stage import POISON, Stage, vector, vectors


def code_of(reader: Subscriber) -> Code | None:
    return reader.flight.error.code if reader.flight.error is not None else None


def texts(name: str, count: int) -> list[str]:
    return [f"{name}{n}" for n in range(count)]


def finish(stage: Stage) -> None:
    for _ in range(200):
        stage.loop.turn()
        if stage.sent:
            stage.answer()


def test_many_requests_of_one_caller_have_no_more_turns_than_one_of_another() -> None:
    stage = Stage(items=4)
    stage.ask("first")
    stage.loop.turn()
    for n in range(50):
        stage.ask([f"heavy{n}-{m}" for m in range(4)], caller="heavy")
    stage.ask(texts("light", 4), caller="light")
    stage.answer()
    stage.loop.turn()
    stage.answer()
    stage.loop.turn()
    assert [sum(text.startswith("light") for text in array) for array in stage.arrays] == [0, 2, 2]
    stage.close()


def test_a_full_queue_of_one_caller_takes_another_s_and_ends_the_newest_of_the_first() -> None:
    stage = Stage(limit=3, items=1)
    stage.ask("first", caller="heavy")
    stage.loop.turn()
    heavy = [stage.ask(f"h{n}", caller="heavy") for n in range(3)]
    with pytest.raises(GatewayError) as caught:
        stage.ask("one more", caller="heavy")
    assert caught.value.code is Code.QUEUE_FULL
    light = stage.ask("l", caller="light")
    assert [code_of(reader) for reader in heavy] == [None, None, Code.QUEUE_SHARE]
    with pytest.raises(GatewayError) as caught:
        stage.ask("one more", caller="heavy")
    assert (caught.value.code, caught.value.status) == (Code.QUEUE_SHARE, 429)
    finish(stage)
    assert vectors(light) == [vector("l")]


def test_a_request_that_another_caller_reads_too_is_not_pushed_out() -> None:
    stage = Stage(limit=3, items=1)
    stage.ask("first", caller="heavy")
    stage.loop.turn()
    heavy = [stage.ask(f"h{n}", caller="heavy") for n in range(3)]
    follower = stage.group.attach(heavy[2].flight, usage=True, whole=True, attached=True, owner="light")
    stage.embedder.joined(follower)
    stage.ask("l", caller="another")
    assert [code_of(reader) for reader in heavy] == [None, Code.QUEUE_SHARE, None]
    finish(stage)
    assert vectors(follower) == [vector("h2")]


def test_an_item_that_a_lighter_caller_wants_too_takes_its_turn() -> None:
    stage = Stage(items=1)
    stage.ask("first")
    stage.loop.turn()
    for n in range(20):
        stage.ask(f"h{n}", caller="heavy")
    light = stage.ask("h19", caller="light", user="another")
    assert len(stage.embedder.queue) == 20, "of the heavy one's last request nothing waits any more"
    for _ in range(3):
        stage.answer()
        stage.loop.turn()
    assert vectors(light) == [vector("h19")]
    stage.close()


def test_one_who_leaves_an_item_that_waits_in_another_s_turn_changes_no_turn() -> None:
    stage = Stage(items=1)
    stage.ask("first")
    stage.loop.turn()
    for n in range(20):
        stage.ask(f"h{n}", caller="heavy")
    light = stage.ask("h19", caller="light")
    stage.ask("h19", caller="third").leave()
    for _ in range(3):
        stage.answer()
        stage.loop.turn()
    assert vectors(light) == [vector("h19")]
    stage.close()


def test_a_request_that_a_lighter_caller_joins_takes_its_turn() -> None:
    stage = Stage(items=1)
    stage.ask("first")
    stage.loop.turn()
    last = [stage.ask(f"h{n}", caller="heavy") for n in range(20)][-1]
    light = stage.group.attach(last.flight, usage=True, whole=True, attached=True, owner="light")
    stage.embedder.joined(light)
    for _ in range(3):
        stage.answer()
        stage.loop.turn()
    assert vectors(light) == [vector("h19")]
    stage.close()


REFUSALS = (Code.QUEUE_SHARE, Code.QUEUE_FULL, Code.DEADLINE_UNMEETABLE, Code.QUEUE_TIMEOUT, Code.MEMORY_FULL)


class Choosy(Stage):
    """Whose queue takes no array in one caller's turn."""

    def __init__(self, code: Code, **bounds: Any) -> None:
        super().__init__(**bounds)
        self.code = code
        self.offered: list[Any] = []

    def _submit(self, flight: Flight) -> None:
        self.offered.append(flight.queue_state.owner)
        self.refuses = GatewayError(self.code, "no") if flight.queue_state.owner == "heavy" else None
        super()._submit(flight)


@pytest.mark.parametrize("code", REFUSALS)
def test_what_the_queue_says_of_one_caller_is_not_told_to_the_others_of_its_array(code: Code) -> None:
    stage = Choosy(code)
    heavy, light, third = (stage.ask(name, caller=name) for name in ("heavy", "light", "third"))
    finish(stage)
    assert code_of(heavy) is code
    assert [vectors(light), vectors(third)] == [[vector("light")], [vector("third")]]
    assert stage.offered == ["heavy", "light"]


def test_what_the_queue_says_of_one_caller_is_not_told_to_who_wants_the_same_item_or_reads_the_same_request() -> (
    None
):
    stage = Choosy(Code.QUEUE_SHARE)
    one = stage.ask("a", caller="heavy")
    same_item = stage.ask("a", caller="light", user="another")
    other = stage.ask("b", caller="heavy")
    same_request = stage.group.attach(other.flight, usage=True, whole=True, attached=True, owner="light")
    finish(stage)
    assert [code_of(one), code_of(other)] == [Code.QUEUE_SHARE] * 2
    assert [vectors(same_item), vectors(same_request)] == [[vector("a")], [vector("b")]]


def test_an_array_knows_whose_it_is_and_hears_of_who_joins_it() -> None:
    told: list[Any] = []
    stage = Stage(promote=lambda *given: told.append(given))
    stage.ask("a", caller="one")
    stage.ask("b", caller="two")
    stage.loop.turn()
    (array,) = stage.sent
    assert array.queue_state.callers is not None
    assert set(array.queue_state.callers()) == {"one", "two"}
    stage.ask("a", caller="three", user="x", priority=0)
    assert set(array.queue_state.callers()) == {"one", "two", "three"}
    assert told == [(array, 0, float("inf"), None, "three")]
    stage.close()


def test_an_array_that_has_waited_for_too_long_is_asked_again_for_who_came_later() -> None:
    stage = Stage()
    early = stage.ask("a", caller="one")
    stage.loop.turn()
    stage.loop.now = 5.0
    late = stage.ask(["a"], caller="two", user="x")
    (array,) = stage.sent
    stage.sent.clear()
    stage.group.remove(array)
    array.fail(GatewayError(Code.QUEUE_TIMEOUT, "too long"))
    stage.loop.step()
    assert code_of(early) is Code.QUEUE_TIMEOUT
    finish(stage)
    assert vectors(late) == [vector("a")]


# -- memory ---------------------------------------------------------------------------------------


def test_what_waits_is_charged_by_its_items_and_given_back_when_it_has_been_served_or_left() -> None:
    memory = Memory(1 << 24)
    stage = Stage(memory=memory)
    readers = [stage.ask(texts(name, 100), caller=name) for name in "ab"]
    assert memory.kinds["embeddings"] >= 200 * ITEM_BYTES
    finish(stage)
    assert 0 < memory.held < 100 * ITEM_BYTES, "what is left is the answers"
    for reader in readers:
        reader.leave()
    assert memory.held == 0
    left = stage.ask(texts("c", 100), caller="c")
    left.leave()
    assert memory.held == 0


def test_with_no_memory_left_a_request_is_refused_and_another_caller_s_is_not() -> None:
    stage = Stage(memory=Memory(MAX_ITEMS * (ITEM_BYTES + 100) * 4))
    for n in range(2):
        stage.ask(texts(f"{n}-", MAX_ITEMS), caller="heavy")
    with pytest.raises(GatewayError) as caught:
        stage.ask(texts("more", MAX_ITEMS), caller="heavy")
    assert (caught.value.code, caught.value.status) == (Code.MEMORY_FULL, 503)
    stage.ask("a", caller="light")
    stage.close()
    assert (stage.memory.held, len(stage.group)) == (0, 0)


def large(stage: Stage, count: int, size: int) -> None:
    """Answer the call under way with vectors of so many bytes."""
    flight = stage.sent.pop(0)
    stage.group.remove(flight)
    numbers = b"[" + b"0" * (size - 2) + b"]"
    data = b",".join(b'{"index":%d,"embedding":"%b"}' % (n, numbers) for n in range(count))
    flight.append_body(b'{"object":"list","data":[' + data + b'],"usage":{"prompt_tokens":9}}')
    flight.land(Head(200))
    stage.loop.step()


def test_one_input_many_times_is_held_once_and_never_joined() -> None:
    stage = Stage(memory=Memory(1 << 24))
    reader = stage.ask(["same"] * MAX_ITEMS, caller="a")
    stage.loop.turn()
    large(stage, 1, 100_000)
    stage.loop.turn()
    flight = reader.flight
    assert flight.ended
    assert flight.head is not None
    assert flight.head.length == flight.size > 200_000_000
    assert sum({id(piece): len(piece) for piece in flight.log}.values()) < 400_000
    assert stage.memory.held < 400_000
    reader.leave()
    assert stage.memory.held == 0


def test_an_answer_larger_than_may_be_is_refused_before_it_is_put_together() -> None:
    stage = Stage(largest=1_000_000)
    reader = stage.ask(["same"] * 100, caller="a")
    other = stage.ask("same", caller="b", user="x")
    stage.loop.turn()
    large(stage, 1, 20_000)
    stage.loop.turn()
    error = reader.flight.error
    assert error is not None
    assert (error.code, error.status, error.param) == (Code.PROMPT_TOO_LARGE, 413, "input")
    assert "1000000 bytes" in error.message
    assert other.flight.head is not None
    assert other.flight.head.status == 200


def test_vectors_for_which_there_is_no_memory_end_their_request_and_no_other() -> None:
    stage = Stage(memory=Memory(4 << 20), items=64)
    heavy = stage.ask(texts("h", 60), caller="heavy")
    light = stage.ask("l", caller="light")
    stage.loop.turn()
    large(stage, 61, 50_000)
    stage.loop.turn()
    assert code_of(heavy) is Code.MEMORY_FULL
    assert light.flight.error is None
    light.leave()
    assert stage.memory.held == 0


def test_an_item_for_very_many_is_handed_out_over_several_turns_and_who_leaves_meanwhile_is_left_out() -> None:
    stage = Stage(limit=5000)
    readers = [stage.ask("same", user=f"{n}") for n in range(2 * SLICE + 10)]
    stage.loop.turn()
    stage.answer()
    landed = sum(reader.flight.ended for reader in readers)
    assert 0 < landed <= SLICE
    readers[-1].leave()
    stage.loop.turn()
    assert all(vectors(reader) == [vector("same")] for reader in readers[:-1])
    assert len(stage.embedder) == 0


STEPS = st.one_of(
    st.tuples(st.just("ask"), st.sampled_from("aaabbc"), st.lists(st.integers(0, 30), min_size=1, max_size=5)),
    st.tuples(st.just("join"), st.sampled_from("abc"), st.integers(0, 50)),
    st.tuples(st.just("leave"), st.just(""), st.integers(0, 50)),
    st.tuples(st.just("turn"), st.just(""), st.just(0)),
    st.tuples(st.just("answer"), st.just(""), st.just(0)),
)


@given(st.lists(STEPS, max_size=60), st.integers(3, 8))
def test_whoever_comes_joins_and_leaves_everyone_has_its_vectors_or_a_refusal_of_its_own(
    steps: list[tuple[str, str, Any]], limit: int
) -> None:
    stage = Stage(limit=limit, items=3, memory=Memory(1 << 30))
    readers: list[tuple[Subscriber, str, list[str]]] = []
    asked: dict[str, int] = {}
    for what, caller, value in steps:
        if what == "ask":
            given_ = [f"t{n}" for n in value]
            asked[caller] = asked.get(caller, 0) + 1
            try:
                readers.append((stage.ask(given_, caller=caller, user=f"{len(readers)}"), caller, given_))
            except GatewayError as e:
                assert e.code in (Code.QUEUE_FULL, Code.QUEUE_SHARE)
        elif what == "join" and readers:
            of, _, given_ = readers[value % len(readers)]
            if not of.flight.ended and of in of.flight.subscribers:
                reader = stage.group.attach(of.flight, usage=True, whole=True, attached=True, owner=caller)
                stage.embedder.joined(reader)
                readers.append((reader, caller, given_))
        elif what == "leave" and readers:
            readers.pop(value % len(readers))[0].leave()
        elif what == "turn":
            stage.loop.turn()
        elif what == "answer" and stage.sent:
            stage.answer()
    finish(stage)
    for reader, _, given_ in readers:
        assert reader.flight.ended
        if code_of(reader) is None:
            assert vectors(reader) == [vector(text) for text in given_]
        else:
            assert code_of(reader) in (Code.QUEUE_FULL, Code.QUEUE_SHARE)
        reader.leave()
    assert stage.faults == []
    assert (len(stage.embedder), len(stage.embedder.queue), len(stage.embedder.arrays), len(stage.group)) == (
        0,
    ) * 4
    assert stage.memory.held == 0


def test_who_brought_an_item_that_is_to_be_asked_again_leaves_and_it_is_asked_for_the_others() -> None:
    stage = Stage(items=2)
    brought = stage.ask(["a", POISON], caller="one")
    joined = stage.ask("a", caller="two", user="x")
    stage.loop.turn()
    stage.answer()  # refused: it is asked again in parts
    brought.leave()
    finish(stage)
    assert vectors(joined) == [vector("a")]


def test_of_large_requests_that_come_at_once_one_begins_in_a_turn_and_a_small_one_waits_for_none() -> None:
    stage = Stage(items=64, calls=lambda model: 1000, memory=Memory(1 << 30))
    readers = [stage.ask(texts(f"{n}-", SLICE + 1), caller=f"{n}") for n in range(4)]
    small = stage.ask("small", caller="small")
    assert len(stage.embedder.arrays) == SLICE + 2
    readers[1].leave()
    assert len(stage.embedder.queue) == 4
    finish(stage)
    assert vectors(small) == [vector("small")]
    for n in (0, 2, 3):
        assert vectors(readers[n]) == [vector(text) for text in texts(f"{n}-", SLICE + 1)]
    for reader in [*readers, small]:
        reader.leave()
    assert (len(stage.embedder), stage.memory.held, stage.faults) == (0, 0, [])


def test_what_many_clients_leave_at_once_is_given_up_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.flights.embeddings.embedder.DROPS", 3)
    stage = Stage(items=1)
    first = stage.ask("first", caller="first")
    stage.loop.turn()
    readers = [stage.ask(texts(name, 3), caller=name) for name in "abcd"]
    both = stage.ask(["b0", "c2"], caller="stays")
    stage.loop.turn()
    assert len(stage.embedder.arrays) == 12
    for reader in readers:
        reader.leave()
    assert all(reader.flight.ended for reader in readers)
    left = [len(stage.embedder.arrays)]
    while left[-1] > 2:
        stage.loop.soon.pop(0)()
        left.append(len(stage.embedder.arrays))
    assert left == [9, 7, 5, 2]
    finish(stage)
    assert vectors(both) == [vector("b0"), vector("c2")]
    assert [array for array in stage.arrays if array not in (["first"], ["b0"], ["c2"])] == []
    for reader in (first, both):
        reader.leave()
    assert (len(stage.embedder), stage.memory.held, stage.faults) == (0, 0, [])
    stage.close()


def test_at_the_end_all_of_it_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.flights.embeddings.embedder.DROPS", 1)
    stage = Stage(items=1)
    readers = [stage.ask(texts(name, 3), caller=name) for name in "abcd"]
    stage.loop.turn()
    stage.close()
    assert [code_of(reader) for reader in readers] == [Code.SHUTTING_DOWN] * 4
    assert (len(stage.embedder), stage.memory.held, stage.sent, stage.faults) == (0, 0, [], [])
