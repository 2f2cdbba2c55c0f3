"""What waits for a look-up: batches and their bounds, the window to the second, and what is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.queue.lookups import FairLookups, LookupBatcher


def test_a_batch_is_due_as_it_is_full_or_as_the_oldest_has_waited_for_the_window() -> None:
    lookups: LookupBatcher[str] = LookupBatcher(max_batch=2, window=5.0)
    assert (lookups.due(9.0), lookups.next_deadline()) == ([], None)
    lookups.arrived["a"] = 1.0
    assert lookups.next_deadline() == 6.0
    assert lookups.due(5.9) == []
    lookups.arrived["b"] = 2.0
    lookups.arrived["c"] = 3.0
    assert lookups.due(3.0) == ["a", "b"], "it is full"
    assert (list(lookups.arrived), list(lookups.looking), len(lookups)) == (["c"], ["a", "b"], 3)
    assert lookups.due(99.0) == [], "one is under way"
    lookups.over(["a", "b"])
    assert lookups.due(7.9) == []
    assert lookups.due(8.0) == ["c"]


def test_without_a_window_what_has_come_is_due() -> None:
    lookups: LookupBatcher[str] = LookupBatcher(max_batch=9)
    lookups.arrived["a"] = 1.0
    assert lookups.due(1.0) == ["a"]


def test_what_is_here_can_be_forgotten_wherever_it_is_and_once() -> None:
    lookups: LookupBatcher[str] = LookupBatcher(max_batch=1)
    for item in "abc":
        lookups.arrived[item] = 0.0
    lookups.due(0.0)
    assert [item in lookups for item in "abx"] == [True, True, False]
    assert [lookups.discard(item) for item in "abxa"] == [True, True, False, False]
    assert (len(lookups), list(lookups.arrived)) == (1, ["c"])


def test_one_look_up_s_end_takes_nothing_of_the_next_one_along() -> None:
    lookups: LookupBatcher[str] = LookupBatcher(max_batch=9)
    lookups.arrived["a"] = 0.0
    lookups.due(0.0)
    lookups.discard("a")
    lookups.arrived["b"] = 0.0
    assert lookups.due(0.0) == ["b"]
    lookups.over(["a"])
    assert list(lookups.looking) == ["b"]


def test_what_is_cleared_is_gone() -> None:
    lookups: LookupBatcher[str] = LookupBatcher(max_batch=1)
    for item in "ab":
        lookups.arrived[item] = 0.0
    lookups.due(0.0)
    lookups.clear()
    assert (len(lookups), "a" in lookups, "b" in lookups) == (0, False, False)
    lookups.arrived["c"] = 0.0
    assert lookups.due(0.0) == ["c"]


def test_callers_take_turns_item_by_item() -> None:
    lookups: FairLookups[str] = FairLookups(max_batch=4)
    for item in ("a1", "a2", "a3", "a4", "a5", "b1", "b2", "c1"):
        lookups.add(item, item[0])
    assert lookups.due() == ["a1", "b1", "c1", "a2"]
    assert lookups.due() == [], "one is under way"
    lookups.add("d1", "d")
    assert [lookups.looked(item) for item in ("a1", "b1", "c1", "a2", "a2")] == [True, True, True, True, False]
    assert lookups.due() == ["b2", "a3", "d1", "a4"]
    assert (len(lookups), "a5" in lookups, "d1" in lookups, "a1" in lookups) == (5, True, True, False)


def test_an_item_in_another_turn_is_looked_up_once() -> None:
    lookups: FairLookups[str] = FairLookups(max_batch=2)
    for item in ("a1", "a2", "a3"):
        lookups.add(item, "a")
    lookups.move("a3", "b")
    lookups.move("a2", "a")
    lookups.move("x", "b")
    assert lookups.due() == ["a1", "a3"]
    assert [lookups.discard(item) for item in ("a1", "a3", "a3")] == [True, True, False]
    lookups.move("a2", "b")
    lookups.move("a2", "a")
    assert (lookups.due(), len(lookups)) == (["a2"], 1)
    assert lookups.looked("a2")
    assert lookups.due() == []


STEPS = st.sampled_from(["add", "move", "discard", "look"])


@given(st.lists(st.tuples(STEPS, st.integers(0, 9), st.integers(0, 2)), max_size=200))
def test_each_item_that_stays_is_looked_up_once_and_nothing_is_left(steps: list[tuple[str, int, int]]) -> None:
    lookups: FairLookups[int] = FairLookups(max_batch=3)
    here: set[int] = set()
    for step, item, caller in steps:
        if step == "add" and item not in lookups:
            lookups.add(item, caller)
            here.add(item)
        elif step == "move":
            lookups.move(item, caller)
        elif step == "discard":
            assert lookups.discard(item) is (item in here)
            here.discard(item)
        elif step == "look":
            here -= {found for found in lookups.due() if lookups.looked(found)}
        assert len(lookups) == len(here)
    while here:
        batch = lookups.due()
        assert 0 < len(batch) == len({*batch} & here)
        here -= {found for found in batch if lookups.looked(found)}
    assert (lookups.due(), len(lookups), len(lookups._turns)) == ([], 0, 0)


def test_items_that_are_removed_are_not_kept() -> None:
    lookups: FairLookups[int] = FairLookups(max_batch=1)
    for item in range(1000):
        lookups.add(item, "a")
    for item in range(999):
        lookups.discard(item)
    assert sum(map(len, lookups._turns.values())) <= 18
    assert lookups.due() == [999]
    assert len(lookups._turns) == 0
