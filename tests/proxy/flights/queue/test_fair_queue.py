"""The order of the line, under any sequence of what may happen to it."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.flights.queue.deficit_round_robin import QUANTUM, Ticket
from proxy.flights.queue.fair_queue import AGED_TURN, FairQueue

TICKETS = st.builds(
    Ticket,
    owner=st.sampled_from("abc"),
    priority=st.integers(HIGH, LOW),
    cost=st.integers(1, 5000),
    deadline=st.one_of(st.just(math.inf), st.floats(0, 100)),
    pool=st.sampled_from(["m1", "m2", None]),
)
OPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), TICKETS),
        st.tuples(st.just("grant"), st.sets(st.sampled_from(["m1", "m2", None]), max_size=2)),
        st.tuples(st.just("discard"), st.integers(0, 60)),
        st.tuples(st.just("promote"), st.tuples(st.integers(0, 60), st.integers(HIGH, LOW), st.floats(0, 100))),
        st.tuples(st.just("time"), st.floats(0, 20)),
    ),
    max_size=80,
)


def drained(line: FairQueue[Any], now: float = 0.0) -> list[Any]:
    """Everything, in the order in which it gets its place."""
    order = []
    while (item := line.next(now)) is not None:
        line.granted(item)
        order.append(item)
    return order


@given(ops=OPS, patience=st.sampled_from([0.0, 5.0, math.inf]))
def test_nothing_is_lost_or_served_twice_whatever_happens(ops: list[tuple[str, Any]], patience: float) -> None:
    line: FairQueue[int] = FairQueue(patience=patience)
    waits: dict[int, Ticket] = {}
    now, made = 0.0, 0
    for op, argument in ops:
        if op == "time":
            now += argument
        elif op == "offer":
            line.offer(made, argument, now)
            waits[made] = argument
            made += 1
        elif op == "grant":
            item = line.next(now, argument)
            able = [one for one, ticket in waits.items() if ticket.pool not in argument]
            assert (item in able) if able else item is None
            if item is not None:
                assert line.pool_of(item) == waits[item].pool
                line.granted(item)
                del waits[item]
        elif op == "discard":
            assert line.discard(argument) is (argument in waits)
            waits.pop(argument, None)
        else:
            item, priority, deadline = argument
            moved = line.promote(item, priority, deadline)
            assert not moved or item in waits
        assert list(line) == sorted(waits)
        assert len(line) == len(waits) == sum(line.lengths())
        owners = Counter(ticket.owner for ticket in waits.values())
        assert line.owners == len(owners)
        assert {owner: line.owned(owner) for owner in owners} == owners
    assert sorted(drained(line, now)) == sorted(waits)
    assert repr(line) == "<FairQueue 0/0/0 owners=0>"


@given(st.lists(st.integers(1, 9000), max_size=40))
def test_where_nothing_is_asked_for_it_is_first_come_first_served(costs: list[int]) -> None:
    line: FairQueue[int] = FairQueue()
    for at, cost in enumerate(costs):
        line.offer(at, Ticket(cost=cost), 0.0)
    assert drained(line) == list(range(len(costs)))


@given(
    costs=st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.integers(1, 6000), min_size=30, max_size=30), min_size=2
    ),
    quantum=st.integers(1, 3000),
)
def test_owners_that_wait_get_alike_within_a_quantum_and_an_item(
    costs: dict[str, list[int]], quantum: int
) -> None:
    line: FairQueue[tuple[str, int]] = FairQueue(quantum=quantum)
    for owner, items in costs.items():
        for at, cost in enumerate(items):
            line.offer((owner, at), Ticket(owner=owner, cost=cost), 0.0)
    most = max(max(items) for items in costs.values())
    had = dict.fromkeys(costs, 0)
    while all(line.owned(owner) for owner in costs):
        item = line.next(0.0)
        assert item is not None
        owner, at = item
        assert at == 30 - line.owned(owner), "one owner's items keep their order"
        line.granted(item)
        had[owner] += costs[owner][at]
        assert max(had.values()) - min(had.values()) <= quantum + 2 * most


def test_a_light_owner_does_not_wait_for_all_of_a_heavy_one() -> None:
    line: FairQueue[str] = FairQueue()
    for n in range(1000):
        line.offer(f"heavy {n}", Ticket(owner="heavy", cost=QUANTUM), 0.0)
    line.offer("light", Ticket(owner="light", cost=QUANTUM), 0.0)
    assert drained(line).index("light") <= 2


def test_a_large_item_has_its_turn_as_those_before_it_have_had_as_much() -> None:
    line: FairQueue[str] = FairQueue()
    line.offer("large", Ticket(owner="a", cost=10 * QUANTUM), 0.0)
    for n in range(50):
        line.offer(f"small {n}", Ticket(owner="b", cost=QUANTUM), 0.0)
    assert 8 <= drained(line).index("large") <= 11


def test_a_higher_class_goes_first() -> None:
    line: FairQueue[str] = FairQueue()
    for name, priority in (("l", LOW), ("n", NORMAL), ("h", HIGH), ("n2", NORMAL), ("h2", HIGH)):
        line.offer(name, Ticket(priority=priority), 0.0)
    assert line.lengths() == (2, 2, 1)
    assert drained(line) == ["h", "h2", "n", "n2", "l"]


def test_an_earlier_deadline_goes_first_among_one_owner_s_and_those_without_one_last() -> None:
    line: FairQueue[str] = FairQueue()
    for name, deadline in (("none", math.inf), ("late", 9.0), ("soon", 1.0), ("none2", math.inf)):
        line.offer(name, Ticket(deadline=deadline), 0.0)
    assert drained(line) == ["soon", "late", "none", "none2"]


@given(st.integers(0, 30), st.integers(0, 30))
def test_who_has_waited_long_is_served_within_four_places_for_each_one_before_it(before: int, others: int) -> None:
    """No class, no turn and no deadline starves anybody."""
    line: FairQueue[Any] = FairQueue(patience=10.0)
    for n in range(before):
        line.offer(("before", n), Ticket(owner="x", priority=LOW, deadline=1.0 + n), 0.0)
    line.offer("old", Ticket(owner="y", priority=LOW, cost=10**6), 0.0)
    for n in range(others):
        line.offer(("other", n), Ticket(owner="z", priority=HIGH), 0.0)
    places, made = 0, 0
    while (item := line.next(10.0)) != "old":
        line.granted(item)
        places += 1
        line.offer(("new", made), Ticket(owner="z", priority=HIGH, deadline=11.0), 10.0)  # it never ends
        made += 1
    assert places <= AGED_TURN * (before + 1)


def test_before_its_patience_ends_nothing_overtakes() -> None:
    line: FairQueue[str] = FairQueue(patience=10.0)
    line.offer("low", Ticket(priority=LOW), 0.0)
    for n in range(20):
        line.offer(f"high {n}", Ticket(priority=HIGH), 0.0)
    assert drained(line, 9.9)[-1] == "low"


def test_a_full_engine_holds_up_its_own_pool_only() -> None:
    line: FairQueue[str] = FairQueue()
    line.offer("a", Ticket(pool="m1", priority=HIGH), 0.0)
    line.offer("b", Ticket(pool="m2"), 0.0)
    assert line.next(0.0) == "a"
    assert line.next(0.0, {"m1"}) == "b"
    assert line.next(0.0, {"m1", "m2"}) is None
    assert len(line) == 2


def test_pools_of_the_same_engines_take_turns() -> None:
    line: FairQueue[str] = FairQueue()
    for n in range(3):
        line.offer(f"a{n}", Ticket(pool="m1"), 0.0)
        line.offer(f"b{n}", Ticket(pool="m2"), 0.0)
    assert drained(line) == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_a_more_urgent_reader_moves_an_item_up_and_none_moves_it_down() -> None:
    line: FairQueue[str] = FairQueue()
    for name in ("a", "b", "c"):
        line.offer(name, Ticket(), 0.0)
    assert line.promote("b", HIGH, math.inf)
    assert not line.promote("b", LOW, math.inf)
    assert line.promote("c", NORMAL, 5.0)
    assert not line.promote("gone", HIGH, 0.0)
    assert drained(line) == ["b", "c", "a"]


def test_who_comes_and_leaves_leaves_no_memory_behind() -> None:
    line: FairQueue[int] = FairQueue()
    line.offer(-1, Ticket(owner="a"), 0.0)
    for n in range(10_000):
        line.offer(n, Ticket(owner="a"), 0.0)
        line.discard(n)
    assert len(line._rings[NORMAL][None].tenants["a"].owners[None].heap) < 40


@pytest.mark.parametrize(
    ("ticket", "ahead"),
    [
        (Ticket(owner="new"), 1),  # the high one; of the others as many as of its own before it: none
        (Ticket(owner="a", cost=QUANTUM), 1 + 5 + 3),
        (Ticket(owner="b", cost=QUANTUM), 1 + 3 + 2),
        (Ticket(owner="a"), 1 + 5),
        (Ticket(owner="a", priority=HIGH), 0),
        (Ticket(owner="h", priority=HIGH), 1),
        (Ticket(owner="a", priority=LOW), 1 + 8),
        (Ticket(owner="a", pool="m2"), 0),
        (Ticket(owner="a", deadline=1.0), 1),
    ],
)
def test_how_many_go_before_it_at_least(ticket: Ticket, ahead: int) -> None:
    line: FairQueue[str] = FairQueue()
    for n in range(5):
        line.offer(f"a{n}", Ticket(owner="a", cost=ticket.cost), 0.0)
    for n in range(3):
        line.offer(f"b{n}", Ticket(owner="b", cost=ticket.cost), 0.0)
    line.offer("h", Ticket(owner="h", priority=HIGH), 0.0)
    assert line.ahead(ticket) == ahead
    if ticket.pool is None:
        line.offer("it", ticket, 0.0)
        assert drained(line).index("it") >= ahead, "it is no more than a lower bound"


def test_what_cannot_be_put_into_every_order_is_in_none() -> None:
    line: FairQueue[str] = FairQueue()
    line.offer("a", Ticket(), 0.0)
    with pytest.raises(TypeError):
        line.offer("b", Ticket(owner=[]), 0.0)  # type: ignore[arg-type]  # no dictionary takes it
    assert "b" not in line
    assert drained(line) == ["a"]


def test_of_an_owner_s_own_those_go_before_it_whose_deadline_is_no_later() -> None:
    line: FairQueue[float] = FairQueue()
    for deadline in (1.0, 2.0, 2.5, 3.0):
        line.offer(deadline, Ticket(owner="a", deadline=deadline), 0.0)
    line.discard(1.0)
    assert line.ahead(Ticket(owner="a", deadline=2.5)) == 2
