"""The queue when it is full, when it is slow, and when twins wait: who makes room, who is told what."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.vocabulary import HIGH, LOW
from proxy.errors import Code, GatewayError
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.estimates import MAX_ANSWERS, MAX_POOLS, MIN_SAMPLES
from proxy.flights.queue.request_queue import FAST, USUAL, RequestQueue

Item = tuple[str, int]


class Pushing(RequestQueue[Item]):
    """Keeps what is pushed out."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.pushed: list[tuple[Item, GatewayError]] = []

    def offer(self, item: Item, now: float, *, lookup: bool, hold: bool = False, on_pushed: Any = None) -> None:
        pushed = on_pushed or (lambda item, error: self.pushed.append((item, error)))
        super().offer(item, now, lookup=lookup, hold=hold, on_pushed=pushed)


def queue(limit: int, **more: Any) -> tuple[RequestQueue[Item], list[tuple[Item, GatewayError]]]:
    """One whose items' owner is their first letter; what is pushed out is kept."""
    classes = {"H": HIGH, "L": LOW}
    made = Pushing(
        limit=limit,
        max_batch=9,
        ticket=lambda item: Ticket(owner=item[0][0], priority=classes.get(item[0][-1], 1)),
        **more,
    )
    return made, made.pushed


def fill(request_queue: RequestQueue[Item], owner: str, count: int) -> None:
    for n in range(count):
        request_queue.offer((owner, n), 0.0, lookup=False)


def refusal(request_queue: RequestQueue[Item], item: Item) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        request_queue.offer(item, 0.0, lookup=False)
    return caught.value


def test_one_owner_alone_that_fills_the_queue_is_told_that_there_is_no_capacity() -> None:
    request_queue, pushed = queue(4)
    fill(request_queue, "a", 4)
    error = refusal(request_queue, ("a", 9))
    assert (error.code, error.retry_after) == (Code.QUEUE_FULL, 1)
    assert pushed == []


def test_a_newcomer_under_its_share_pushes_out_the_newest_of_who_waits_for_most() -> None:
    request_queue, pushed = queue(4)
    fill(request_queue, "a", 4)
    request_queue.offer(("b", 0), 0.0, lookup=False)
    ((victim, error),) = pushed
    assert victim == ("a", 3)
    assert (error.code, error.status, error.retry_after) == (Code.QUEUE_SHARE, 429, 1)
    assert "2 of 4" in error.message
    assert len(request_queue) == 4


def test_who_has_its_share_is_told_so_while_others_wait_too() -> None:
    request_queue, pushed = queue(4)
    fill(request_queue, "a", 3)
    fill(request_queue, "b", 1)
    error = refusal(request_queue, ("a", 9))
    assert (error.code, error.status) == (Code.QUEUE_SHARE, 429)
    assert pushed == []


def test_an_own_item_of_a_lower_class_makes_room_for_a_more_urgent_one() -> None:
    request_queue, pushed = queue(3)
    fill(request_queue, "aL", 3)
    request_queue.offer(("aH", 0), 0.0, lookup=False)
    assert [(item, error.code) for item, error in pushed] == [(("aL", 2), Code.QUEUE_FULL)]
    assert refusal(request_queue, ("aL", 9)).code is Code.QUEUE_FULL


def test_what_only_waits_for_a_look_up_is_not_pushed_out() -> None:
    request_queue, pushed = queue(2)
    for n in range(2):
        request_queue.offer(("a", n), 0.0, lookup=True)
    assert refusal(request_queue, ("b", 0)).code is Code.QUEUE_FULL
    assert pushed == []


@given(st.lists(st.sampled_from("aaaaaabbc"), max_size=200), st.integers(3, 20))
def test_whoever_comes_none_has_less_than_its_share_because_of_another(owners: list[str], limit: int) -> None:
    request_queue, pushed = queue(limit)
    wanted: Counter[str] = Counter()
    for n, owner in enumerate(owners):
        wanted[owner] += 1
        try:
            request_queue.offer((owner, n), 0.0, lookup=False)
        except GatewayError:
            assert len(request_queue) == limit
        assert len(request_queue) <= limit
    waiting = Counter(item[0] for item in request_queue.line)
    assert sum(waiting.values()) == min(len(owners), limit)
    share = limit // max(1, len(wanted))
    for owner, count in wanted.items():
        assert waiting[owner] >= min(count, share), (waiting, pushed)


def test_what_cannot_be_in_time_is_refused_at_once_and_nothing_is_while_nothing_is_known() -> None:
    late = Ticket(deadline=5.0, latest=5.0)
    ticket_factory = {"late": late}
    request_queue: RequestQueue[str] = RequestQueue(
        limit=100, max_batch=9, ticket=lambda item: ticket_factory.get(item, Ticket())
    )
    for n in range(30):
        request_queue.offer(f"{n}", 0.0, lookup=False)
    request_queue.offer("late", 0.0, lookup=False)  # nobody knows how long it takes
    request_queue.discard("late")
    for n in range(MIN_SAMPLES):  # one place a second
        request_queue.dispatch(one(request_queue), float(n))
    assert request_queue.wait(late, 7.0) == 0.0  # its deadline lets it go before all the others
    ticket_factory["late"] = Ticket(owner="other", priority=LOW, deadline=5.0, latest=5.0)
    with pytest.raises(GatewayError) as caught:
        request_queue.offer("late", 7.0, lookup=False)
    assert (caught.value.code, caught.value.status) == (Code.DEADLINE_UNMEETABLE, 503)
    assert caught.value.retry_after == math.ceil(22 * 7 / 8)
    ticket_factory["late"] = Ticket(owner="other", priority=LOW, deadline=7.0 + 22.0, latest=7.0 + 22.0)
    request_queue.offer("late", 7.0, lookup=False)
    assert request_queue.promote("late", HIGH, 6.0)
    assert next(iter([request_queue.line.next(7.0)])) == "late"


def test_what_would_wait_for_longer_than_may_be_is_refused_at_once_with_how_long_that_is() -> None:
    other = Ticket(owner="other")
    request_queue: RequestQueue[str] = RequestQueue(
        limit=100, max_batch=9, timeout=10.0, ticket=lambda item: other if item == "other" else Ticket()
    )
    for n in range(30):
        request_queue.offer(f"{n}", 0.0, lookup=False)  # nobody knows how long it takes
    for n in range(MIN_SAMPLES):  # one place a second
        request_queue.dispatch(one(request_queue), float(n))
    with pytest.raises(GatewayError) as caught:
        request_queue.offer("late", 7.0, lookup=False)
    assert (caught.value.code, caught.value.status) == (Code.QUEUE_TIMEOUT, 503)
    assert "is 19.2 s" in caught.value.message
    assert "is 10 s" in caught.value.message
    assert caught.value.retry_after == 10
    request_queue.offer("other", 7.0, lookup=False)  # its turn comes soon


@given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=40))
def test_who_has_waited_as_long_as_may_be_is_given_up_oldest_first(steps: list[tuple[float, bool]]) -> None:
    request_queue: RequestQueue[int] = RequestQueue(limit=100, max_batch=9, timeout=10.0)
    assert request_queue.next_overdue() == math.inf
    now, came, gone = 0.0, dict[int, float](), []
    for n, (passes, places) in enumerate(steps):
        now += passes
        overdue = request_queue.overdue(now)
        assert [item for item, _ in overdue] == [item for item, at in came.items() if at + 10.0 <= now]
        assert {error.code for _, error in overdue} <= {Code.QUEUE_TIMEOUT}
        for item, _ in overdue:
            del came[item]
        try:
            request_queue.enqueue(n, now)
        except GatewayError as error:
            assert error.code is Code.QUEUE_TIMEOUT
            continue
        came[n] = now
        if places:
            request_queue.dispatch(one(request_queue), now)
            gone = [item for item in came if item not in request_queue.line]
            for item in gone:
                del came[item]
        assert request_queue.next_overdue() == (min(came.values()) + 10.0 if came else math.inf)
    while came:
        overdue = request_queue.overdue(request_queue.next_overdue())
        assert overdue, "at the time that is named there is one, whatever floats make of it"
        for item, _ in overdue:
            del came[item]


def test_what_answers_take_counts_too_before_and_at_its_turn() -> None:
    ticket = Ticket(deadline=10.0, latest=10.0)
    request_queue: RequestQueue[str] = RequestQueue(limit=9, max_batch=9, ticket=lambda item: ticket)
    for _ in range(MIN_SAMPLES - 1):
        request_queue.estimates.record_answer(None, 4.0)
    assert request_queue.estimates.answer_time(None, FAST) == 0.0
    request_queue.offer("a", 9.0, lookup=False)
    request_queue.estimates.record_answer(None, 40.0)  # one that was slow is not what is gone by
    assert (
        request_queue.estimates.answer_time(None, FAST) == request_queue.estimates.answer_time(None, USUAL) == 4.0
    )
    assert request_queue.estimates.answer_time("another", FAST) == 0.0
    request_queue.offer("b", 6.0, lookup=False)
    with pytest.raises(GatewayError) as caught:
        request_queue.offer("c", 6.1, lookup=False)
    assert caught.value.code is Code.DEADLINE_UNMEETABLE
    late = request_queue.too_late(None, 3.9)
    assert late is not None
    assert "answer time of 4.0 s exceed the 3.9 s" in late.message
    assert late.retry_after == 1
    assert request_queue.too_late(None, 4.1) is None


def test_the_pace_of_a_line_that_has_emptied_says_nothing_of_the_next_one() -> None:
    request_queue: RequestQueue[int] = RequestQueue(limit=100, max_batch=9)
    for n in range(20):
        request_queue.offer(n, 0.0, lookup=False)
    for n in range(10):
        request_queue.dispatch(one(request_queue), float(n))
    assert request_queue.wait(Ticket(), 9.0) > 0.0
    request_queue.dispatch(lambda item: True, 10.0)
    assert len(request_queue) == 0
    for n in range(20):
        request_queue.offer(n, 20.0, lookup=False)
    assert request_queue.wait(Ticket(), 21.0) == 0.0


def one(request_queue: Any) -> Any:
    """Takes one item, and no more."""
    places = iter([True])
    return lambda item: next(places, False)


def test_who_is_ended_at_its_turn_has_had_no_place_and_tells_nothing_of_the_pace() -> None:
    request_queue: RequestQueue[int] = RequestQueue(limit=100, max_batch=9)
    for n in range(20):
        request_queue.offer(n, 0.0, lookup=False)
    left = iter(range(MIN_SAMPLES))

    def take(item: int) -> bool:
        """Ends the first items, and has no room for the others."""
        return next(left, None) is not None and request_queue.discard(item)

    request_queue.dispatch(take, 1.0)
    assert len(request_queue) == 20 - MIN_SAMPLES
    assert request_queue.wait(Ticket(), 2.0) == 0.0


def test_misses_that_cannot_be_in_time_any_more_are_given_back() -> None:
    ticket_factory = {"late": Ticket(priority=LOW, deadline=1.0, latest=1.0)}
    request_queue: RequestQueue[str] = RequestQueue(
        limit=100, max_batch=9, ticket=lambda item: ticket_factory.get(item, Ticket())
    )
    for n in range(40):
        request_queue.offer(f"{n}", 0.0, lookup=False)
    for n in range(MIN_SAMPLES):
        request_queue.dispatch(one(request_queue), float(n))
    request_queue.offer("late", 7.0, lookup=True)
    batch = request_queue.due(7.0)
    ((item, error),) = request_queue.lookups_done(batch, batch, 7.0)
    assert (item, error.code) == ("late", Code.DEADLINE_UNMEETABLE)
    assert "late" not in request_queue.looking
    assert not request_queue.discard("late")


def test_twins_are_found_held_or_in_the_line_until_they_have_their_place() -> None:
    request_queue: RequestQueue[str] = RequestQueue(
        limit=9, max_batch=9, twin=lambda item: item[0] if item[0] != "x" else None
    )
    request_queue.offer("a1", 0.0, lookup=False)
    request_queue.offer("a2", 0.0, lookup=False, hold=True)
    request_queue.offer("b1", 0.0, lookup=False)
    request_queue.offer("x1", 0.0, lookup=False)
    assert list(request_queue.line) == ["a1", "b1", "x1"]
    assert list(request_queue.twins("a9")) == ["a1", "a2"]
    assert list(request_queue.twins("x1")) == []
    request_queue.grant("a2")
    assert list(request_queue.twins("a1")) == ["a1"]
    assert not request_queue.release("a2", 0.0)
    request_queue.offer("a3", 0.0, lookup=False, hold=True)
    assert request_queue.release("a3", 0.0)
    request_queue.grant("a3")
    request_queue.discard("a1")
    request_queue.dispatch(lambda item: True, 0.0)
    assert not request_queue.twin_index
    assert len(request_queue) == 0


def test_of_so_many_pools_the_times_of_answers_are_known_and_one_more_begins_anew() -> None:
    request_queue: RequestQueue[int] = RequestQueue(limit=9, max_batch=9)
    for _ in range(MIN_SAMPLES):
        for pool in range(MAX_POOLS):
            request_queue.estimates.record_answer(f"{pool}", 4.0)
    assert {request_queue.estimates.answer_time(f"{pool}", USUAL) for pool in range(MAX_POOLS)} == {4.0}
    request_queue.estimates.record_answer("one more", 4.0)
    assert {request_queue.estimates.answer_time(f"{pool}", USUAL) for pool in range(MAX_POOLS)} == {0.0}


def test_of_so_many_last_answers_the_times_are_known() -> None:
    request_queue: RequestQueue[int] = RequestQueue(limit=9, max_batch=9)
    request_queue.estimates.record_answer(None, 9.0)
    for _ in range(MAX_ANSWERS - 1):
        request_queue.estimates.record_answer(None, 1.0)
    assert request_queue.estimates.answer_time(None, 1.0 - 1e-9) == 9.0
    request_queue.estimates.record_answer(None, 1.0)
    assert request_queue.estimates.answer_time(None, 1.0 - 1e-9) == 1.0
