"""The pure core of embeddings in arrays: nothing lost, nothing twice, order and bounds kept, turns taken."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.flights.embeddings.batches import ArrayBatcher, halves

ONE = lambda group: 1  # noqa: E731


def made(**bounds: int) -> ArrayBatcher[str, str]:
    return ArrayBatcher(**{"items": 4, "tokens": 100} | bounds)


def test_what_waits_together_goes_up_together_and_in_order() -> None:
    arrays = made()
    for item in "abc":
        arrays.offer("g", item, item, 1, 0.0)
    assert arrays.due(0.0, ONE) == [("g", ["a", "b", "c"])]
    assert len(arrays) == 0


def test_what_comes_while_a_call_is_under_way_waits_for_its_end() -> None:
    arrays = made()
    arrays.offer("g", 1, "a", 1, 0.0)
    assert arrays.due(0.0, ONE) == [("g", ["a"])]
    arrays.offer("g", 1, "b", 1, 0.0)
    arrays.offer("g", 2, "c", 1, 0.0)
    assert arrays.due(9.0, ONE) == []
    assert arrays.due(9.0, lambda group: 2) == [("g", ["b", "c"])]
    arrays.ended("g")
    arrays.ended("g")
    assert repr(arrays) == "<Arrays waiting=0 under_way=0 groups=0>"


def test_groups_never_meet_and_do_not_wait_for_each_other() -> None:
    arrays = made()
    for group in "gh":
        arrays.offer(group, 1, f"{group}1", 1, 0.0)
    assert arrays.due(0.0, ONE) == [("g", ["g1"]), ("h", ["h1"])]


def test_an_array_is_bounded_by_items_and_by_tokens_but_for_one_that_is_too_large_alone() -> None:
    arrays = made(items=3, tokens=10)
    for item, tokens in (("a", 4), ("b", 6), ("c", 1), ("d", 50), ("e", 1), ("f", 1), ("g", 1), ("h", 1)):
        arrays.offer("g", 1, item, tokens, 0.0)
    found = [array for _, array in arrays.due(0.0, lambda group: 9)]
    assert found == [["a", "b"], ["c"], ["d"], ["e", "f", "g"], ["h"]]


def test_a_small_request_is_not_behind_a_large_one() -> None:
    arrays = made(items=4)
    for n in range(100):
        arrays.offer("g", "large", f"L{n}", 1, 0.0)
    arrays.offer("g", "small", "s", 1, 0.0)
    assert arrays.due(0.0, ONE) == [("g", ["L0", "s", "L1", "L2"])]


def test_with_a_window_an_array_waits_for_company_until_it_is_full_or_its_oldest_has_waited() -> None:
    arrays: ArrayBatcher[str, str] = ArrayBatcher(items=2, tokens=100, window=1.0)
    arrays.offer("g", 1, "a", 1, 5.0)
    assert arrays.due(5.9, ONE) == []
    assert arrays.next_deadline(ONE) == 6.0
    assert arrays.due(6.0, ONE) == [("g", ["a"])]
    assert arrays.next_deadline(ONE) is None
    arrays.ended("g")
    for item in "bc":
        arrays.offer("g", 1, item, 1, 7.0)
    assert arrays.due(7.0, ONE) == [("g", ["b", "c"])]


def test_parts_of_a_refused_array_go_before_what_waits() -> None:
    arrays = made()
    for item in "ab":
        arrays.offer("g", item, item, 1, 0.0)
    arrays.due(0.0, ONE)
    arrays.offer("g", "c", "c", 1, 0.0)
    arrays.ended("g", [["a"], ["b"]])
    arrays.discard("g", "a", "a")
    assert arrays.due(0.0, lambda group: 9) == [("g", ["b"]), ("g", ["c"])]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=64), st.data())
def test_isolating_asks_every_good_item_and_ends_with_the_bad_ones_owners_alone(
    pairs: list[tuple[int, int]], data: st.DataObject
) -> None:
    """`pairs`: who brought each item, and who joined it."""
    items = list(range(len(pairs)))
    wanted = [frozenset(pair) for pair in pairs]
    bad = data.draw(st.sets(st.sampled_from(items), min_size=1))
    left, good, refused, calls = [items], [], [], 0
    while left:
        array = left.pop()
        calls += 1
        if not bad & set(array):
            good += array
            continue
        parts = halves(array, wanted.__getitem__)
        left += parts
        if not parts:
            refused.append(array)
    assert sorted([*good, *(item for array in refused for item in array)]) == items
    assert all(len(array) == 1 or len(set().union(*(wanted[n] for n in array))) == 1 for array in refused)
    assert calls <= 2 * len(items) - 1


@pytest.mark.parametrize(("owners", "calls"), [(64, 13), (2, 3)])
def test_one_bad_item_is_found_by_halving(owners: int, calls: int) -> None:
    left, made = [list(range(64))], 0
    while left:
        array = left.pop()
        made += 1
        if 17 in array:
            left += halves(array, lambda item: frozenset({item % owners}))
    assert made == calls


class Machine(RuleBasedStateMachine):
    """Everything that may happen, in any order: nothing is lost, nothing goes up twice, bounds and order hold."""

    CALLS = 2

    def __init__(self) -> None:
        super().__init__()
        self.arrays: ArrayBatcher[str, int] = ArrayBatcher(items=3, tokens=10, window=1.0)
        self.now = 0.0
        self.made: dict[int, tuple[str, str, int]] = {}
        self.waiting: set[int] = set()
        self.again: set[int] = set()
        self.under_way: dict[str, list[list[int]]] = defaultdict(list)
        self.went: dict[tuple[str, str], list[int]] = defaultdict(list)

    @rule(group=st.sampled_from("gh"), owner=st.sampled_from("abc"), tokens=st.integers(0, 12))
    def offer(self, group: str, owner: str, tokens: int) -> None:
        item = len(self.made)
        self.made[item] = (group, owner, tokens)
        self.waiting.add(item)
        self.arrays.offer(group, owner, item, tokens, self.now)

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0]))
    def due(self, seconds: float) -> None:
        self.now += seconds
        for group, array in self.arrays.due(self.now, lambda group: self.CALLS):
            assert array
            assert {self.made[item][0] for item in array} == {group}
            assert set(array) <= self.waiting
            assert len(array) <= 3
            assert len(array) == 1 or sum(self.made[item][2] for item in array) <= 10
            self.waiting -= set(array)
            self.under_way[group].append(array)
            for item in array:
                if item not in self.again:
                    self.went[group, self.made[item][1]].append(item)
        assert all(len(calls) <= self.CALLS for calls in self.under_way.values())
        for group in "gh":  # whoever has waited its window has gone, unless all calls are taken
            old = [item for item in self.waiting if self.made[item][0] == group]
            if len(self.under_way[group]) < self.CALLS and old:
                deadline = self.arrays.next_deadline(
                    {group: self.CALLS, "g" if group == "h" else "h": 0}.__getitem__
                )
                assert deadline is not None
                assert deadline > self.now

    @precondition(lambda self: any(self.under_way.values()))
    @rule(split=st.booleans(), data=st.data())
    def end(self, split: bool, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from([group for group, calls in self.under_way.items() if calls]))
        array = self.under_way[group].pop(0)
        parts = halves(array, lambda item: frozenset({item})) if split else []
        self.arrays.ended(group, parts)
        for part in parts:
            self.waiting |= set(part)
            self.again |= set(part)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.waiting)))
        group, owner, _ = self.made[item]
        self.arrays.discard(group, owner, item)
        self.waiting.discard(item)

    @invariant()
    def what_waits_is_what_was_given_and_neither_went_nor_left(self) -> None:
        assert len(self.arrays) == len(self.waiting)

    @invariant()
    def an_owner_s_items_go_in_their_order(self) -> None:
        assert all(items == sorted(items) for items in self.went.values())

    def teardown(self) -> None:
        for _ in range(1000):
            self.now += 1.0
            self.due(0.0)
            for group, calls in self.under_way.items():
                while calls:
                    calls.pop()
                    self.arrays.ended(group)
            if not self.waiting:
                break
        assert repr(self.arrays) == "<Arrays waiting=0 under_way=0 groups=0>"


TestMachine = Machine.TestCase
