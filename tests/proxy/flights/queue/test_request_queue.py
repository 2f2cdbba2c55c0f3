"""The queue, under any sequence of what may happen to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import Code, GatewayError
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.request_queue import RequestQueue

OPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.booleans()),
        st.tuples(st.just("due"), st.just(0)),
        st.tuples(st.just("looked"), st.integers(0, 255)),
        st.tuples(st.just("place"), st.integers(0, 5)),
        st.tuples(st.just("discard"), st.integers(0, 40)),
        st.tuples(st.just("time"), st.integers(0, 3)),
    ),
    max_size=60,
)


@given(ops=OPS, limit=st.integers(1, 8), max_batch=st.integers(1, 4), window=st.integers(0, 3))
def test_nothing_is_lost_or_served_twice_whatever_happens(
    ops: list[tuple[str, Any]], limit: int, max_batch: int, window: int
) -> None:
    queue: RequestQueue[int] = RequestQueue(limit=limit, max_batch=max_batch, window=float(window))
    arrived: list[tuple[int, float]] = []
    looking: list[int] = []
    missed: list[int] = []
    trips: list[
        list[int]
    ] = []  # look-ups under way, each as it was asked for: two, where all of one was discarded
    now, made = 0.0, 0
    for op, argument in ops:
        if op == "time":
            now += argument
        elif op == "offer":
            full = len(arrived) + len(looking) + len(missed) >= limit
            try:
                queue.offer(made, now, lookup=argument)
                assert not full
                if argument:
                    arrived.append((made, now))
                else:
                    missed.append(made)
            except GatewayError as error:
                assert full
                assert error.code is Code.QUEUE_FULL
                assert error.retry_after is not None
            made += 1
        elif op == "due":
            closed = bool(arrived) and (len(arrived) >= max_batch or now >= arrived[0][1] + window)
            expected = [item for item, _ in arrived[:max_batch]] if closed and not looking else []
            assert queue.due(now) == expected
            if expected:
                del arrived[: len(expected)]
                looking = expected
                trips.append(expected)
        elif op == "looked":
            if not trips:
                continue
            trip = trips.pop(argument % len(trips))
            misses = [item for at, item in enumerate(trip) if argument >> at & 1]
            queue.lookups_done(trip, misses, now)
            missed += [item for item in misses if item in looking]
            looking = [item for item in looking if item not in trip]
            assert not any(item in queue.looking for item in trip)
        elif op == "place":
            offered: list[int] = []

            def take(item: int, offered: list[int] = offered, room: int = argument) -> bool:
                offered.append(item)
                return len(offered) <= room

            queue.dispatch(take, 0.0)
            assert offered == missed[: argument + 1]
            missed = missed[argument:]
        else:
            waits = argument in [item for item, _ in arrived] + looking + missed
            assert queue.discard(argument) is waits
            arrived = [(item, at) for item, at in arrived if item != argument]
            looking = [item for item in looking if item != argument]
            missed = [item for item in missed if item != argument]
        assert len(queue) == len(arrived) + len(looking) + len(missed) <= limit
        assert queue.next_deadline() == (arrived[0][1] + window if arrived else None)
        assert all(item in queue.looking for item in looking)


def test_a_full_queue_says_when_to_come_again() -> None:
    queue: RequestQueue[str] = RequestQueue(limit=1, max_batch=1)
    queue.offer("a", 0.0, lookup=True)
    with pytest.raises(GatewayError) as caught:
        queue.offer("b", 0.0, lookup=False)
    assert caught.value.status == 503
    assert caught.value.retry_after == 1


def test_without_a_window_nobody_waits_for_company() -> None:
    queue: RequestQueue[str] = RequestQueue(limit=9, max_batch=9)
    queue.offer("a", 5.0, lookup=True)
    queue.offer("b", 5.0, lookup=True)
    assert queue.due(5.0) == ["a", "b"]


def test_a_look_up_of_which_all_were_discarded_takes_nothing_of_the_next_one_along() -> None:
    queue: RequestQueue[str] = RequestQueue(limit=9, max_batch=9)
    queue.offer("left", 0.0, lookup=True)
    assert queue.due(0.0) == ["left"]
    queue.discard("left")
    queue.offer("stays", 0.0, lookup=True)
    assert queue.due(0.0) == ["stays"]
    queue.lookups_done(["left"], ["left"], 0.0)
    assert "stays" in queue.looking
    queue.lookups_done(["stays"], ["stays"], 0.0)
    assert list(queue.line) == ["stays"]


def test_an_item_may_be_discarded_while_the_engines_are_being_offered_to_it() -> None:
    queue: RequestQueue[str] = RequestQueue(limit=9, max_batch=9)
    for item in "abc":
        queue.offer(item, 0.0, lookup=False)

    def take(item: str) -> bool:
        queue.discard(item)
        return item == "b"

    queue.dispatch(take, 0.0)
    assert len(queue) == 0


def test_what_is_put_back_goes_first_and_blocks_no_other_pool() -> None:
    pools = {"a": "x", "b": "x", "back": "x", "other": "y"}
    queue: RequestQueue[str] = RequestQueue(
        limit=2, max_batch=1, timeout=5.0, ticket=lambda item: Ticket(owner=item, pool=pools[item])
    )
    queue.enqueue("a", 0.0)
    queue.enqueue("other", 0.0)
    queue.requeue("back", 1.0)
    assert (len(queue), queue.waits) == (3, True), "no bound is asked"
    offered: list[str] = []
    full = {"x"}

    def take(item: str) -> bool:
        offered.append(item)
        return pools[item] not in full

    queue.dispatch(take, 1.0)
    assert offered == ["back", "other"], "nobody of its pool is asked before it"
    offered.clear()
    full.clear()
    queue.dispatch(take, 2.0)
    assert (offered, len(queue)) == (["back", "a"], 0)


def test_what_is_put_back_waits_no_longer_than_others_and_can_be_discarded() -> None:
    queue: RequestQueue[str] = RequestQueue(limit=2, max_batch=1, timeout=5.0)
    queue.requeue("one", 1.0)
    queue.requeue("two", 2.0)
    assert queue.next_overdue() == 6.0
    assert [item for item, _ in queue.overdue(6.5)] == ["one"]
    assert queue.discard("two")
    assert (queue.waits, len(queue), queue.discard("two")) == (False, 0, False)
