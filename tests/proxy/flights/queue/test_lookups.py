"""What waits for a look-up: batches and their bounds, the window to the second, and what is forgotten."""

from __future__ import annotations

from proxy.flights.queue.lookups import LookupBatcher


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
    lookups.due(0.0)
    assert [lookups.looked(item) for item in "cca"] == [True, False, False]
    assert len(lookups) == 0


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
