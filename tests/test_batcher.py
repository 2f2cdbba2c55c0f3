"""The queue: nothing lost, nothing twice, bounds kept, first come first served, and the window."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.batcher import Batcher
from proxy.errors import Code, GatewayError

steps = st.lists(
    st.tuples(
        st.sampled_from(["look", "direct", "due", "looked", "place", "discard", "wait"]), st.integers(0, 30)
    ),
    max_size=60,
)


def takes(took: list[int], room: int) -> Callable[[int], bool]:
    """An engine with room for so many."""

    def take(item: int) -> bool:
        if len(took) < room:
            took.append(item)
            return True
        return False

    return take


@given(steps, st.integers(1, 8), st.integers(1, 4), st.sampled_from([0.0, 5.0]))
def test_nothing_is_lost_nothing_comes_twice_and_bounds_hold(
    script: list[tuple[str, int]], limit: int, max_batch: int, window: float
) -> None:
    batcher: Batcher[int] = Batcher(limit=limit, max_batch=max_batch, window=window)
    now, new = 0.0, 0
    waiting: set[int] = set()
    placed: list[int] = []
    looking: list[int] = []
    for what, n in script:
        if what in ("look", "direct"):
            new += 1
            if len(waiting) < limit:
                batcher.offer(new, now, lookup=what == "look")
                waiting.add(new)
            else:
                with pytest.raises(GatewayError) as full:
                    batcher.offer(new, now, lookup=what == "look")
                assert full.value.code is Code.QUEUE_FULL
                assert full.value.retry_after
        elif what == "due":
            batch = batcher.due(now)
            assert len(batch) <= max_batch
            assert not (batch and looking)
            assert batch == sorted(batch)
            looking = looking or batch
        elif what == "looked":
            misses = [item for item in looking if item % 2]
            batcher.looked(misses)
            waiting -= {item for item in looking if item not in misses}
            looking = []
        elif what == "place":
            took: list[int] = []
            batcher.place(takes(took, n % 3))
            assert waiting >= set(took)
            waiting -= set(took)
            placed += took
        elif what == "discard" and waiting:
            item = sorted(waiting)[n % len(waiting)]
            assert batcher.discard(item)
            assert not batcher.discard(item)
            waiting.discard(item)
        else:
            now += n
        assert len(batcher) == len(waiting) <= limit
    assert len(placed) == len(set(placed))


def test_with_no_window_a_batch_is_due_at_once_and_the_next_when_the_round_trip_ends() -> None:
    batcher: Batcher[str] = Batcher(limit=9, max_batch=2)
    for name in "abc":
        batcher.offer(name, 0.0, lookup=True)
    assert batcher.due(0.0) == ["a", "b"]
    assert batcher.due(0.0) == []
    batcher.looked([])
    assert batcher.due(0.0) == ["c"]


def test_a_window_is_waited_for_unless_the_batch_is_full() -> None:
    batcher: Batcher[str] = Batcher(limit=9, max_batch=2, window=1.0)
    batcher.offer("a", 10.0, lookup=True)
    assert batcher.due(10.5) == []
    assert batcher.next_deadline() == 11.0
    assert batcher.due(11.0) == ["a"]
    batcher.looked([])
    batcher.offer("b", 20.0, lookup=True)
    batcher.offer("c", 20.1, lookup=True)
    assert batcher.due(20.1) == ["b", "c"]


def test_a_reader_that_left_during_the_look_up_is_not_placed() -> None:
    batcher: Batcher[str] = Batcher(limit=9, max_batch=9)
    batcher.offer("a", 0.0, lookup=True)
    batcher.due(0.0)
    batcher.discard("a")
    assert not batcher.looking("a")
    batcher.looked(["a"])
    batcher.place(lambda item: pytest.fail(f"{item} was placed"))
