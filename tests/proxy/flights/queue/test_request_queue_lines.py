"""The queue's lines one by one: what is held, granted, rebuilt and cleared, and the bounds of what it says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from proxy.config.vocabulary import HIGH, LOW
from proxy.errors import Code, GatewayError
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.estimates import MIN_SAMPLES
from proxy.flights.queue.request_queue import RequestQueue


def queue(ticket_factory: dict[str, Ticket] | None = None, **more: Any) -> RequestQueue[str]:
    """One of small bounds, whose twins begin with the same letter."""
    known = ticket_factory or {}
    bounds: dict[str, Any] = {"limit": 100, "max_batch": 9} | more
    return RequestQueue(ticket=lambda item: known.get(item, Ticket()), twin=lambda item: item[0], **bounds)


def places(request_queue: RequestQueue[str], count: int, then: Callable[[], None] = lambda: None) -> None:
    """So many places from the line, one a second from 0."""
    for n in range(count):
        left = [True]
        request_queue.dispatch(lambda item, left=left: bool(left) and left.pop(), float(n))  # type: ignore[misc]
        then()


def everywhere() -> RequestQueue[str]:
    """An item in each of its lines."""
    request_queue = queue(max_batch=1, patience=7.0)
    for item in ("looking", "arrived"):
        request_queue.offer(item, 0.0, lookup=True)
    assert request_queue.due(0.0) == ["looking"]
    request_queue.offer("held", 0.0, lookup=False, hold=True)
    request_queue.offer("waits", 0.0, lookup=False)
    request_queue.requeue("back", 0.0)
    return request_queue


ALL = ["arrived", "looking", "held", "back", "waits"]


def test_whatever_line_an_item_is_in_it_is_here_and_counts() -> None:
    request_queue = everywhere()
    assert [item in request_queue for item in ALL] == [True] * 5
    assert "another" not in request_queue
    assert len(request_queue) == 5
    assert request_queue.in_lookup() == ["looking"]
    assert repr(request_queue) == "<RequestQueue arrived=1 looking=1 missed=1>"
    for left, item in zip((4, 3, 2, 1, 0), ALL, strict=True):
        assert request_queue.discard(item)
        assert (item in request_queue, len(request_queue), request_queue.discard(item)) == (False, left, False)
    assert not request_queue.twin_index


def test_what_is_cleared_is_given_back_and_nothing_of_it_is_left() -> None:
    request_queue = everywhere()
    assert request_queue.clear() == ALL
    assert [item in request_queue for item in ALL] == [False] * 5
    assert (len(request_queue), bool(request_queue.twin_index), request_queue.waits, request_queue.due(9.0)) == (
        0,
        False,
        False,
        [],
    )
    assert request_queue.line.patience == 7.0
    request_queue.offer("next", 0.0, lookup=True)
    assert request_queue.due(0.0) == ["next"], "no look-up is under way"


def test_a_line_made_anew_has_what_waited_in_its_order_and_its_twins() -> None:
    request_queue = everywhere()
    request_queue.offer("wide", 1.0, lookup=False)
    old = request_queue.line
    request_queue.twin_index.clear()  # as where knowing one raised
    request_queue.twin_index["g"] = {"gone": None}
    request_queue.rebuild()
    assert request_queue.line is not old
    assert list(request_queue.line) == ["waits", "wide"]
    assert [list(request_queue.twins(item)) for item in ("w", "h", "g")] == [["waits", "wide"], ["held"], []]


def test_an_item_waits_for_a_place_unless_it_is_to_be_held_and_may_then_be_let_go() -> None:
    request_queue = queue()
    request_queue.offer("a", 0.0, lookup=False)
    request_queue.offer("b", 0.0, lookup=False, hold=True)
    assert list(request_queue.line) == ["a"]
    assert request_queue.discard("b")
    assert (len(request_queue), request_queue.release("b", 0.0)) == (1, False)


def test_who_gets_its_place_along_with_another_waits_no_longer_and_pays_for_it() -> None:
    ticket_factory = {name: Ticket(owner=name[0], cost=100) for name in ("a1", "a2", "b1")}
    request_queue = queue(ticket_factory)
    for name in ticket_factory:
        request_queue.offer(name, 0.0, lookup=False)
    request_queue.grant("a1")
    assert list(request_queue.line) == ["a2", "b1"]
    assert request_queue.line.next(0.0) == "b1", "a has had its turn"
    assert list(request_queue.twins("a1")) == ["a2"]
    request_queue.grant("unknown")
    assert len(request_queue) == 2


async def test_a_miss_that_cannot_be_queued_is_given_back_and_the_others_wait() -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, told: reported.append(told["message"]))
    request_queue = queue({"bad": Ticket(owner=[])})  # type: ignore[arg-type]  # no dictionary takes it
    for item in ("bad", "good", "hit"):
        request_queue.offer(item, 0.0, lookup=True)
    batch = request_queue.due(0.0)
    ((item, error),) = request_queue.lookups_done(batch, ["bad", "good"], 0.0)
    assert (item, error.code, reported) == ("bad", Code.INTERNAL, ["an item that is queued"])
    assert list(request_queue.line) == ["good"]
    assert len(request_queue) == 1


def test_misses_that_were_queued_before_it_raised_are_not_queued_twice() -> None:
    request_queue = queue()
    for item in "ab":
        request_queue.offer(item, 0.0, lookup=True)
    batch = request_queue.due(0.0)
    request_queue.enqueue("a", 1.0)
    assert request_queue.lookups_done(batch, batch, 2.0) == []
    assert [entry.arrived for entry in request_queue.line.entries.values()] == [1.0, 2.0]


def test_what_was_put_back_and_left_as_another_got_its_place_is_not_offered() -> None:
    request_queue = queue()
    for item in "ab":
        request_queue.requeue(item, 0.0)
    offered = []

    def take(item: str) -> bool:
        offered.append(item)
        return request_queue.discard("b")

    request_queue.dispatch(take, 0.0)
    assert (offered, len(request_queue)) == (["a"], 0)


def test_its_turn_is_that_of_the_caller_that_waits_for_least_its_own_where_they_are_alike() -> None:
    readers = {"a": ["x", "y"], "b": ["x", "y"], "c": ["y", "x"]}
    request_queue: RequestQueue[str] = RequestQueue(
        limit=9, max_batch=9, ticket=lambda item: Ticket(owner="x"), callers=lambda item: readers.get(item, ["x"])
    )
    for item in "abc":
        request_queue.enqueue(item, 0.0)
    assert [entry.ticket.owner for entry in request_queue.line.entries.values()] == ["x", "y", "x"]


def test_who_joins_may_bring_its_own_turn() -> None:
    request_queue = queue({name: Ticket(owner="heavy") for name in "abc"})
    for name in "abc":
        request_queue.enqueue(name, 0.0)
    assert request_queue.promote("c", 1, math.inf, "light")
    assert request_queue.line.owned("light") == 1
    assert not request_queue.promote("c", 1, math.inf)


def test_a_full_queue_takes_one_that_makes_room_and_the_bound_is_the_limit() -> None:
    request_queue = queue({"low": Ticket(priority=LOW), "high": Ticket(priority=HIGH)}, limit=2)
    request_queue.offer("low", 0.0, lookup=False)
    request_queue.offer("x", 0.0, lookup=False)
    request_queue.offer("high", 0.0, lookup=False)
    assert sorted(request_queue.line) == ["high", "x"]


def test_of_fewer_places_than_some_no_pace_is_told_and_the_last_ones_tell_it() -> None:
    request_queue = queue()
    for n in range(100):
        request_queue.enqueue(f"{n}", 0.0)
    places(request_queue, MIN_SAMPLES - 1)
    assert request_queue.wait(Ticket(), 6.0) == 0.0
    places(request_queue, 1)
    request_queue.dispatch(lambda item: False, 8.0)
    assert request_queue.wait(Ticket(), 8.0) == (100 - MIN_SAMPLES) * 8.0 / MIN_SAMPLES
    request_queue.clear()
    for n in range(100):
        request_queue.enqueue(f"{n}", 0.0)
    places(request_queue, 4 * MIN_SAMPLES + 5)
    times = request_queue.estimates._dispatches[None]
    assert (times[0], len(times)) == (5.0, 4 * MIN_SAMPLES)


def paced(latest: float, timeout: float = math.inf) -> RequestQueue[str]:
    """One place a second; of the 10 that wait all go before what has this `latest`."""
    request_queue = queue(
        {"late": Ticket(owner="z", priority=LOW, deadline=latest, latest=latest)}, timeout=timeout
    )
    for n in range(MIN_SAMPLES + 10):
        request_queue.enqueue(f"{n}", 0.0)
    places(request_queue, MIN_SAMPLES)
    return request_queue


def test_who_can_just_be_in_time_is_taken() -> None:
    now = float(MIN_SAMPLES)
    request_queue = paced(now + 10.0)
    assert request_queue.wait(Ticket(owner="z", priority=LOW), now) == 10.0
    request_queue.enqueue("late", now)
    with pytest.raises(GatewayError) as caught:
        paced(now + 9.99).enqueue("late", now)
    assert caught.value.retry_after == 10
    assert caught.value.message == (
        "The estimated wait for an engine of 10.0 s and answer time of 0.0 s exceed the "
        "10.0 s that are left of x-request-timeout."
    )


def test_who_would_wait_for_just_as_long_as_may_be_is_taken() -> None:
    now = float(MIN_SAMPLES)
    for timeout in (10.0, 10.5):
        paced(math.inf, timeout).enqueue("late", now)
    hurried = paced(now + 99.0, 10.0)
    hurried.enqueue("late", now)
    for latest in (math.inf, now + 99.0):
        with pytest.raises(GatewayError) as caught:
            paced(latest, 9.9).enqueue("late", now)
        assert (caught.value.code, caught.value.retry_after) == (Code.QUEUE_TIMEOUT, 1)


def test_at_its_turn_just_enough_time_is_enough_and_none_that_is_left_is_told_as_none() -> None:
    request_queue = queue()
    for _ in range(MIN_SAMPLES):
        request_queue.estimates.record_answer("m", 4.0)
    assert request_queue.too_late("m", 4.0) is None
    late = request_queue.too_late("m", -3.0)
    assert late is not None
    assert late.message == (
        "The estimated wait for an engine of 0.0 s and answer time of 4.0 s exceed the "
        "0.0 s that are left of x-request-timeout."
    )


def test_who_waited_as_long_as_may_be_is_told_for_how_long_and_when_to_come_again() -> None:
    request_queue = queue(timeout=5.0)
    request_queue.enqueue("a", 1.0)
    request_queue.requeue("b", 0.0)
    assert request_queue.next_overdue() == 5.0
    (b, error), (a, _) = request_queue.overdue(6.0)
    assert (b, a, error.retry_after) == ("b", "a", 1)
    assert error.message == "No engine had capacity within 5 s (queue_timeout); retry shortly."
    assert (len(request_queue), request_queue.next_overdue()) == (0, math.inf)
