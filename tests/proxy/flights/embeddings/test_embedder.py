"""The embedder with a scripted engine and loop: whatever comes in whatever order, everyone gets its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.queue import ARRAYS_A_TURN
from proxy.flights.flight import Subscriber
from proxy.flights.phase import Phase
from proxy.flights.spec import Head
from tests.kit.embed_stage import POISON, Stage, cost, told, vector, vectors


def test_what_arrives_in_one_turn_goes_up_as_one_array_and_comes_back_apart() -> None:
    stage = Stage()
    first, two = stage.ask("a"), stage.ask(["b", "c"])
    stage.loop.turn()
    assert stage.arrays == [["a", "b", "c"]]
    stage.answer()
    assert (vectors(first), vectors(two)) == ([vector("a")], [vector("b"), vector("c")])
    assert told(first)["usage"]["prompt_tokens"] + told(two)["usage"]["prompt_tokens"] == 12


def test_one_request_alone_goes_up_and_comes_back_as_it_is() -> None:
    stage = Stage()
    reader = stage.ask(["a", "b"], user="me")
    stage.loop.turn()
    assert stage.sent[0].spec.body == reader.flight.spec.body
    stage.answer()
    assert b"".join(reader.flight.log) == Stage.body(["a", "b"])


def test_an_input_that_is_there_twice_or_under_way_is_asked_once_and_paid_by_who_brought_it() -> None:
    stage = Stage()
    one = stage.ask(["a", "a"])
    stage.loop.turn()
    two = stage.ask(["a", "b"])
    stage.loop.turn()
    assert stage.arrays == [["a"]]
    stage.answer()
    stage.loop.turn()
    assert stage.arrays == [["a"], ["b"]]
    stage.answer()
    assert vectors(one) == [vector("a")] * 2
    assert vectors(two) == [vector("a"), vector("b")]
    assert (told(one)["usage"]["prompt_tokens"], told(two)["usage"]["prompt_tokens"]) == (8, 8)
    paid = [reader.flight.usage.prompt_tokens - reader.flight.items.unpaid for reader in (one, two)]  # type: ignore[union-attr]
    assert paid == [4, 4]


def test_who_pays_leaves_before_it_is_sent_and_another_does() -> None:
    stage = Stage()
    first = stage.ask("x")
    stage.loop.turn()
    brought, joined = stage.ask("a"), stage.ask("a")
    brought.leave()
    assert brought.flight.phase is Phase.CANCELLED
    stage.answer()
    stage.loop.turn()
    stage.answer()
    assert vectors(first) == [vector("x")]
    assert (joined.verdict, joined.flight.items.unpaid) == ("miss", 0)  # type: ignore[union-attr]


def test_who_pays_leaves_after_it_is_sent_and_nobody_else_pays() -> None:
    stage = Stage()
    brought = stage.ask("a")
    joined, third = stage.ask("a"), stage.ask("a")
    stage.loop.turn()
    brought.leave()
    stage.answer()
    assert [(reader.verdict, reader.flight.items.unpaid) for reader in (joined, third)] == [  # type: ignore[union-attr]
        ("attached", cost("a"))
    ] * 2


def test_one_who_joined_leaves_before_it_is_sent_and_who_brought_it_pays() -> None:
    stage = Stage(items=1)
    stage.ask("x")
    stage.loop.turn()
    brought, joined, third = (stage.ask("a") for _ in range(3))
    joined.leave()
    for _ in range(2):
        stage.answer()
        stage.loop.turn()
    unpaid = [reader.flight.items.unpaid for reader in (brought, third)]  # type: ignore[union-attr]
    assert unpaid == [0, cost("a")]


def test_all_joined_is_attached() -> None:
    stage = Stage()
    stage.ask("a")
    stage.loop.turn()
    two = stage.ask(["a"], user="another")
    stage.answer()
    assert (two.verdict, two.flight.items) == ("attached", (1, 0, 4))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"dimensions": 4}),
        ({}, {"encoding_format": "base64"}),
        ({}, {"unknown": 1}),
        ({"scope": b"a"}, {"scope": b"b"}),
    ],
)
def test_other_options_and_other_owners_never_share_an_array(one: Any, other: Any) -> None:
    stage = Stage()
    stage.ask("a", **one)
    stage.ask("b", **other)
    stage.ask("a", **other)
    stage.loop.turn()
    assert stage.arrays == [["a"], ["b", "a"]]
    stage.close()


def test_texts_and_ids_never_share_an_array() -> None:
    stage = Stage()
    stage.ask("a")
    ids = stage.ask([5, 6, 7])
    stage.loop.turn()
    assert stage.arrays == [["a"], [[5, 6, 7]]]
    stage.answer()
    stage.answer()
    assert vectors(ids) == [vector([5, 6, 7])]


def test_a_new_one_joins_what_an_engine_makes_and_others_join_it() -> None:
    stage = Stage(calls=lambda model: 9)
    stage.ask("a", fresh=True)
    stage.loop.turn()
    stage.ask("a", fresh=True)
    stage.ask("a")
    stage.loop.turn()
    assert stage.arrays == [["a"]]
    stage.ask("b")
    stage.loop.turn()
    stage.ask("b", fresh=True)
    stage.loop.turn()
    assert stage.arrays == [["a"], ["b"]]
    stage.close()


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_only_the_poisoned_request_gets_the_engine_s_refusal(status: int) -> None:
    stage = Stage(items=8)
    good = [stage.ask([f"g{n}"]) for n in range(3)]
    bad = stage.ask(["g9", POISON])
    stage.loop.turn()
    while stage.sent:
        stage.answer(poison=status)
        stage.loop.turn()
    assert [vectors(reader) for reader in good] == [[vector(f"g{n}")] for n in range(3)]
    assert bad.flight.head is not None
    assert (bad.flight.head.status, told(bad)["error"]["message"]) == (status, "no")


def test_who_spoiled_an_array_and_left_spoils_it_for_nobody() -> None:
    stage = Stage()
    bad, good = stage.ask(POISON), stage.ask("a")
    stage.loop.turn()
    bad.leave()
    stage.answer()
    stage.loop.turn()
    assert stage.arrays == [[POISON, "a"], ["a"]]
    stage.answer()
    assert vectors(good) == [vector("a")]


def test_one_who_joined_a_good_input_of_a_poisoned_request_gets_its_vector() -> None:
    stage = Stage()
    bad = stage.ask(["a", POISON])
    good = stage.ask("a")
    stage.loop.turn()
    while stage.sent:
        stage.answer()
        stage.loop.turn()
    assert vectors(good) == [vector("a")]
    assert bad.flight.head is not None
    assert bad.flight.head.status == 400


@pytest.mark.parametrize("status", [401, 404, 429, 502, 503])
def test_a_refusal_that_is_about_no_input_is_everyones(status: int) -> None:
    stage = Stage()
    readers = [stage.ask(text) for text in "abc"]
    stage.loop.turn()
    stage.answer(status)
    stage.loop.turn()
    assert [reader.flight.head.status for reader in readers if reader.flight.head] == [status] * 3
    assert not stage.sent
    assert b"gateway_embed_refused_items_total 0" in stage.metrics.render("text/plain")[0].replace(b"{}", b"")


def test_an_engine_that_fails_fails_everyone_and_the_next_are_asked() -> None:
    stage = Stage()
    readers = [stage.ask(text) for text in "ab"]
    stage.loop.turn()
    stage.answer(0)
    assert [reader.flight.error.code for reader in readers if reader.flight.error] == [
        Code.UPSTREAM_UNREACHABLE
    ] * 2
    later = stage.ask("a")
    stage.loop.turn()
    stage.answer()
    assert vectors(later) == [vector("a")]


def test_an_array_of_several_without_its_vectors_is_an_error_and_one_s_own_answer_is_passed_on() -> None:
    for given_, code in ((["a", "b"], None), (["a"], Code.UPSTREAM_PROTOCOL)):
        stage = Stage()
        reader, _ = stage.ask(given_), None if code is None else stage.ask("b")
        stage.loop.turn()
        flight = stage.sent.pop()
        stage.group.remove(flight)
        flight.append_body(b'{"data":[]}')
        flight.land(Head(200))
        stage.loop.step()
        assert (reader.flight.error and reader.flight.error.code) == code
        assert (b"".join(reader.flight.log) == b'{"data":[]}') is (code is None)


def test_what_the_queue_refuses_fails_its_requests_and_nobody_waits_for_it() -> None:
    stage = Stage(items=2)
    stage.refuses = GatewayError(Code.QUEUE_FULL, "full")
    readers = [stage.ask("a"), stage.ask(["b", "c", "d"])]
    stage.loop.turn()
    assert [reader.flight.error is stage.refuses for reader in readers] == [True, True]
    stage.refuses = None
    reader = stage.ask("a")
    stage.loop.turn()
    stage.answer()
    assert vectors(reader) == [vector("a")]


def test_more_than_may_wait_are_refused() -> None:
    stage = Stage(limit=2)
    stage.ask("a")
    stage.ask("b")
    with pytest.raises(GatewayError, match="queue is full"):
        stage.ask("c")
    stage.loop.turn()
    stage.ask("d")  # those are at the engine now, and do not wait any more
    stage.close()


def test_closing_fails_everyone_and_stops_the_engine() -> None:
    stage = Stage(items=1)
    readers = [stage.ask(text) for text in "abc"]
    stage.loop.turn()
    stage.close()
    assert {reader.flight.error.code for reader in readers if reader.flight.error} == {Code.SHUTTING_DOWN}
    assert (len(stage.sent), len(stage.group)) == (0, 0)
    with pytest.raises(GatewayError, match="shutting down") as e:
        stage.ask("d")
    assert e.value.retry_after == 1


TEXTS = st.lists(st.sampled_from([*"abcdefgh", POISON]), min_size=1, max_size=6)
STEP = st.one_of(
    st.tuples(st.just("ask"), TEXTS),
    st.tuples(st.just("answer"), st.sampled_from([None, None, None, None, 500, 0])),
    st.tuples(st.just("leave"), st.integers(0, 20)),
    st.tuples(st.just("turn"), st.none()),
)


@given(st.lists(STEP, max_size=40), st.integers(1, 5), st.integers(1, 3))
def test_everyone_gets_its_own_vectors_in_order_or_an_honest_error_and_nothing_is_left(
    steps: list[tuple[str, Any]], items: int, calls: int
) -> None:
    stage = Stage(items=items, calls=lambda model: calls)
    alive: list[tuple[Subscriber, list[str]]] = []
    everyone: list[tuple[Subscriber, list[str]]] = []
    failed = 0
    for what, value in [*steps, *[("turn", None), ("answer", None)] * 300]:
        if what == "ask":
            alive.append((stage.ask(value), value))
            everyone.append(alive[-1])
        elif what == "answer" and stage.sent:
            failed += value is not None
            stage.answer(value)
        elif what == "leave" and alive:
            alive.pop(value % len(alive))[0].leave()
        elif what == "turn":
            stage.loop.turn()
        assert len(stage.sent) <= calls
    assert all(len(array) <= items for array in stage.arrays)
    paid = 0
    for reader, texts in alive:
        assert reader.flight.ended
        head = reader.flight.head
        if head is not None and head.status == 200:
            assert POISON not in texts
            assert vectors(reader) == [vector(text) for text in texts]
            assert reader.flight.usage is not None
            assert reader.flight.items is not None
            paid += reader.flight.usage.prompt_tokens - reader.flight.items.unpaid
        else:
            assert POISON in texts or failed
    if not failed and len(alive) == len(everyone) and not any(POISON in texts for _, texts in alive):
        asked = [text for array in stage.arrays for text in array]
        assert paid == sum(map(cost, asked))
    assert (len(stage.embedder), len(stage.embedder.arrays), len(stage.group)) == (0, 0, 0)


def test_an_engine_that_fails_on_a_bad_input_is_never_given_two_clients_in_one_array() -> None:
    stage = Stage(mixes=lambda model: False)
    good, bad = stage.ask(["a", "b"]), stage.ask(["a", "c"])
    stage.loop.turn()
    assert stage.arrays == [["a", "b"], ["a", "c"]]
    stage.answer()
    stage.answer(500)
    assert vectors(good) == [vector("a"), vector("b")]
    assert bad.flight.head is not None
    assert bad.flight.head.status == 500


def test_more_arrays_than_one_turn_sends_go_up_in_the_turns_after_it() -> None:
    stage = Stage(items=1, calls=lambda model: 100)
    readers = [stage.ask(f"{n}") for n in range(2 * ARRAYS_A_TURN + 1)]
    stage.loop.turn()
    assert len(stage.sent) == len(readers)
    for _ in readers:
        stage.answer()
    stage.loop.turn()
    assert [vectors(reader) for reader in readers] == [[vector(f"{n}")] for n in range(len(readers))]
    assert stage.faults == [], "without a window no timer is set, which this loop could not"


@pytest.mark.parametrize("lost", ["what is to be sent", "what has come"])
def test_what_a_turn_that_raises_has_lost_is_looked_for_again(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    reader = stage.ask("a")
    if lost == "what has come":
        stage.loop.turn()
        with monkeypatch.context() as losing:
            losing.setattr(stage.embedder._delivery, "add", lambda item: None)
            stage.answer()
        assert not reader.flight.ended
        stage.ask("b")

    def raises(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr(stage.embedder.queue, "due", raises)
        stage.loop.turn()
    assert stage.faults
    stage.loop.turn()
    stage.answer()
    stage.loop.turn()
    assert vectors(reader) == [vector("a")]
    stage.close()
