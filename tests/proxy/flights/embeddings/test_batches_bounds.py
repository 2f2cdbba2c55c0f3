"""Arrays at their bounds, and what leaves them: just full, just late, in whose turn, and what is forgotten."""

from __future__ import annotations

import pytest

from proxy.flights.embeddings.batches import ArrayBatcher, _Turn, _Waiting, halves

GONE = "<Arrays waiting=0 under_way=0 groups=0>"


def one(group: str) -> int:
    return 1


def arrays(items: int = 4, tokens: int = 100, window: float = 0.0) -> ArrayBatcher[str, str]:
    return ArrayBatcher(items=items, tokens=tokens, window=window)


def test_a_turn_forgets_removed_items_once_they_are_the_most() -> None:
    turn = _Turn[str]()
    for n in range(40):
        turn.order.append(f"{n}")
        turn.live[f"{n}"] = _Waiting(1, 0.0)
    for n in range(20, 38):
        turn.drop(f"{n}")
    for n in range(10):
        assert turn.drop(f"{n}") == _Waiting(1, 0.0)
    assert (len(turn.live), len(turn.order)) == (12, 40)
    turn.drop("39")
    assert [*turn.order] == [*turn.live] == [*map(str, range(10, 20)), "38"]
    assert turn.head() == ("10", _Waiting(1, 0.0))


def test_items_that_weigh_the_same_and_come_together_share_a_record() -> None:
    made = arrays(items=9)
    for item, tokens, now in (("a", 1, 0.0), ("b", 1, 0.0), ("c", 2, 0.0), ("d", 2, 1.0), ("e", 2, 1.0)):
        made.offer("g", "o", item, tokens, now)
    live = made._lines["g"].callers[None]["o"].live
    assert [live[item] for item in "abcde"] == [(1, 0.0), (1, 0.0), (2, 0.0), (2, 1.0), (2, 1.0)]
    assert (live["a"] is live["b"], live["d"] is live["e"]) == (True, True)


def test_what_waits_and_what_is_under_way_is_told() -> None:
    made = ArrayBatcher[str, str](items=4, tokens=100)
    made.offer("g", "o", "a", 1, 0.0)
    assert (len(made), repr(made)) == (1, "<Arrays waiting=1 under_way=0 groups=1>")
    assert made.due(0.0, one) == [("g", ["a"])]
    assert repr(made) == "<Arrays waiting=0 under_way=1 groups=1>"
    made.ended("g", [["a"], []])
    assert repr(made) == "<Arrays waiting=1 under_way=0 groups=1>"
    assert made.due(0.0, one) == [("g", ["a"])]
    made.ended("g")
    assert repr(made) == GONE


@pytest.mark.parametrize(("tokens", "is_due"), [([5, 4], False), ([5, 5], True), ([1, 1, 1], True)])
def test_with_a_window_an_array_goes_up_early_where_items_or_tokens_fill_it(
    tokens: list[int], is_due: bool
) -> None:
    made = arrays(items=3, tokens=10, window=5.0)
    for n, weight in enumerate(tokens):
        made.offer("g", "o", f"{n}", weight, 0.0)
    assert bool(made.due(4.9, one)) is is_due
    assert bool(made.due(5.0, one)) is not is_due


def test_what_has_left_fills_nothing() -> None:
    made = arrays(items=3, tokens=10, window=5.0)
    made.offer("g", "o", "heavy", 9, 0.0)
    made.offer("g", "o", "light", 2, 1.0)
    made.discard("g", "o", "heavy")
    made.discard("g", "o", "heavy")
    assert made.due(1.0, one) == []
    assert made.next_deadline(one) == 6.0
    made.discard("g", "o", "light")
    made.discard("g", "o", "light")
    made.discard("h", "o", "light")
    assert (made.next_deadline(one), repr(made)) == (None, GONE)


def test_an_array_takes_just_as_many_tokens_as_may_be() -> None:
    made = arrays(items=9, tokens=10)
    for name, weight in (("a", 6), ("b", 4), ("c", 1)):
        made.offer("g", "o", name, weight, 0.0)
    assert made.due(0.0, lambda group: 9) == [("g", ["a", "b"]), ("g", ["c"])]


def test_no_more_arrays_go_up_than_are_asked_for() -> None:
    made = arrays(items=1)
    for name in "abcd":
        made.offer("g", "o", name, 1, 0.0)
    assert [array for _, array in made.due(0.0, lambda group: 9, 2)] == [["a"], ["b"]]
    assert [array for _, array in made.due(0.0, lambda group: 3)] == [["c"]]
    assert made.due(0.0, lambda group: 3) == []


def test_where_it_raises_nothing_has_gone_up_and_nothing_is_lost() -> None:
    made = arrays(items=1)
    for group in "gh":
        made.offer(group, "o", f"{group}1", 1, 0.0)

    def calls(group: str) -> int:
        if group == "h":
            raise ZeroDivisionError
        return 1

    with pytest.raises(ZeroDivisionError):
        made.due(0.0, calls)
    assert repr(made) == "<Arrays waiting=2 under_way=0 groups=2>"
    assert made.due(0.0, one) == [("g", ["g1"]), ("h", ["h1"])]


def test_whose_turn_an_item_waits_in_is_known() -> None:
    made = arrays()
    made.offer("g", "o", "a", 1, 0.0, "me")
    where = [
        ("g", "o", "a", "me"),
        ("g", "o", "a", "you"),
        ("g", "p", "a", "me"),
        ("h", "o", "a", "me"),
        ("g", "o", "b", "me"),
    ]
    assert [made.waits(*place) for place in where] == [True, False, False, False, False]
    assert [made.leave(*place) for place in where[1:]] == [False] * 4
    assert made.leave(*where[0])
    assert (made.leave(*where[0]), repr(made)) == (False, GONE)


def test_what_is_to_be_asked_again_waits_in_nobody_s_turn() -> None:
    made = arrays()
    made.offer("g", "o", "a", 1, 0.0)
    made.offer("g", "o", "b", 1, 0.0)
    made.due(0.0, one)
    made.ended("g", [["a", "b"]])
    assert made.waits("g", "nobody", "a", "nobody")
    assert not made.leave("g", "o", "a")
    assert len(made) == 2
    made.discard("g", "o", "a")
    assert made.due(0.0, one) == [("g", ["b"])]
    made.ended("g", [["b"]])
    made.discard("g", "o", "b")
    assert (repr(made), made.due(0.0, one)) == (GONE, [])


def test_parts_that_everyone_left_take_no_call() -> None:
    made = arrays()
    made.offer("g", "o", "a", 1, 0.0)
    made.offer("g", "o", "b", 1, 0.0)
    made.due(0.0, one)
    made.ended("g", [["a"], ["b"]])
    made.discard("g", "o", "a")
    made.offer("g", "o", "c", 1, 0.0)
    assert made.due(0.0, lambda group: 9) == [("g", ["b"]), ("g", ["c"])]


def test_callers_take_turns_and_so_do_their_requests() -> None:
    made = arrays(items=8)
    for owner, caller in (("one", "x"), ("two", "x"), ("three", "y")):
        for n in range(2):
            made.offer("g", owner, f"{owner} {n}", 1, 0.0, caller)
    ((_, array),) = made.due(0.0, one)
    assert array == ["one 0", "three 0", "two 0", "three 1", "one 1", "two 1"]


def test_a_window_is_of_a_group_that_has_room_and_of_its_oldest_item() -> None:
    made = arrays(window=5.0)
    made.offer("g", "o", "a", 1, 3.0)
    made.offer("g", "p", "b", 1, 1.0)
    made.offer("h", "o", "c", 1, 2.0)
    assert made.next_deadline(one) == 6.0
    assert made.next_deadline({"g": 0, "h": 1}.__getitem__) == 7.0
    assert made.next_deadline(lambda group: 0) is None


def test_who_comes_and_leaves_leaves_no_memory_behind() -> None:
    made = arrays()
    made.offer("g", "o", "stays", 1, 0.0)
    for n in range(1000):
        made.offer("g", "o", f"{n}", 1, 0.0)
        made.discard("g", "o", f"{n}")
    turn = made._lines["g"].callers[None]["o"]
    assert len(turn.order) <= 2 + 16
    assert (turn.head()[0], made.due(0.0, one)) == ("stays", [("g", ["stays"])])


@pytest.mark.parametrize(
    ("wanted", "parts"),
    [
        ([], []),
        (["a"], []),
        (["a", "a"], []),
        (["ab", "ab"], [[0], [1]]),
        (["a", "b"], [[0], [1]]),
        (["a", "b", "a"], [[0], [2, 1]]),
        (["a", "b", "a", "b"], [[0, 2], [1, 3]]),
    ],
)
def test_a_refused_array_is_cut_between_those_who_want_it(wanted: list[str], parts: list[list[int]]) -> None:
    assert halves(range(len(wanted)), lambda n: frozenset(wanted[n])) == parts


def test_once_nobody_wants_any_part_none_is_kept_for_later() -> None:
    made = arrays()
    for name in "ab":
        made.offer("g", "o", name, 1, 0.0)
    made.due(0.0, one)
    made.offer("g", "o", "c", 1, 0.0)
    made.ended("g", [["a"], ["b"]])
    for name in "ab":
        made.discard("g", "o", name)
    assert len(made._lines["g"].again) == 0
    assert made.due(0.0, one) == [("g", ["c"])]
