"""One owner's order and the ring's turns, as objects: what leaves, what is begun anew, who pays."""

from __future__ import annotations

import math
import random

import pytest

from proxy.flights.queue.deficit_round_robin import RUN, DeficitRoundRobin, Entry, Ticket, _Owner


def entry(
    number: int, *, deadline: float = math.inf, owner: str = "o", cost: int = 1, begins: tuple[int, ...] = ()
) -> Entry[int]:
    return Entry(number, Ticket(owner=owner, cost=cost, prefixes=begins), number, 0.0, 1, deadline)


def test_what_is_left_of_many_keeps_its_order() -> None:
    owner: _Owner[int] = _Owner()
    entries = [entry(n, deadline=float((n * 7) % 41)) for n in range(41)]
    for one in entries:
        owner.push(one)
    left = [one for one in entries if one.number % 10 == 0]
    for one in entries:
        if one.number % 10:
            owner.drop(one)
    assert owner.live == len(left) == 5
    assert len(owner.heap) <= 2 * 5 + 16
    order = []
    while owner.live:
        head = owner.head()
        order.append(head.deadline)
        owner.drop(head)
    assert order == sorted(one.deadline for one in left)


def test_what_leaves_is_no_longer_found_by_its_beginning() -> None:
    owner: _Owner[int] = _Owner()
    one, other, hurried = entry(1, begins=(7,)), entry(2, begins=(7,)), entry(3, begins=(7,), deadline=9.0)
    for each in (one, other, hurried):
        owner.push(each)
    assert list(owner.alike[7]) == [one, other]
    owner.drop(hurried)
    owner.drop(one)
    assert (list(owner.alike[7]), one.at, owner.live) == ([other], None, 1)
    owner.drop(other)
    assert (owner.alike, owner.live) == ({}, 0)


def test_a_run_passes_the_oldest_over_so_often_and_no_more() -> None:
    owner: _Owner[int] = _Owner()
    oldest = entry(0)
    owner.push(oldest)
    owner.last = tuple([7])  # noqa: C409 - of any length to a type checker
    for n in range(1, RUN + 2):
        owner.push(entry(n, begins=(7,)))
    passed = 0
    while (head := owner.head()) is not oldest:
        owner.served(head)
        owner.drop(head)
        passed += 1
        assert owner.overtakes == passed
    assert passed == RUN - 1
    owner.served(oldest)
    assert (owner.overtakes, owner.last) == (0, ())


def test_one_with_a_deadline_counts_in_no_run() -> None:
    owner: _Owner[int] = _Owner()
    hurried = entry(1, deadline=3.0, begins=(5,))
    owner.push(hurried)
    owner.overtakes = 4
    owner.served(hurried)
    assert (owner.overtakes, owner.last) == (4, (5,))


def test_what_has_not_come_in_does_not_leave() -> None:
    ring: DeficitRoundRobin[int] = DeficitRoundRobin(10)
    one, never = entry(1), entry(2)
    ring.push(one)
    ring.drop(never)
    ring.drop(entry(3, owner="unknown"))
    assert ring.tenants["o"].live == 1
    ring.drop(one)
    ring.drop(one)
    assert ring.tenants == {}


def test_turns_go_round_by_deficit_and_who_is_alone_pays_nothing() -> None:
    ring: DeficitRoundRobin[int] = DeficitRoundRobin(10)
    first, second = entry(1, owner="a", cost=25), entry(2, owner="b", cost=10)
    ring.push(first)
    ring.served(first)
    assert ring.tenants["a"].deficit == 0
    ring.push(second)
    assert ring.head() is second, "a needs two rounds more"
    ring.served(second)
    assert ring.tenants["b"].deficit == 0
    ring.drop(second)
    ring.push(entry(3, owner="b", cost=10))
    assert ring.head().number == 3
    ring.served(ring.head())
    assert ring.head() is first


def test_rounds_in_which_nobody_can_take_anything_are_skipped_all_at_once() -> None:
    ring: DeficitRoundRobin[int] = DeficitRoundRobin(10)
    dear, dearer = entry(1, owner="a", cost=995), entry(2, owner="b", cost=2000)
    for one in (dear, dearer):
        ring.push(one)
    assert ring.head() is dear
    assert (ring.tenants["a"].deficit, ring.tenants["b"].deficit) == (1000, 990)
    ring.served(dear)
    assert ring.tenants["a"].deficit == 5


@pytest.mark.parametrize("seed", range(5))
def test_when_most_have_left_the_rest_goes_by_deadline(seed: int) -> None:
    chance = random.Random(seed)
    owner: _Owner[int] = _Owner()
    entries = [entry(n, deadline=chance.random()) for n in range(100)]
    for one in entries:
        owner.push(one)
    for one in chance.sample(entries, 70):
        owner.drop(one)
    left = [one for one in entries if one.at is not None]
    order = []
    while owner.live:
        order.append(owner.head())
        owner.drop(order[-1])
    assert order == sorted(left, key=lambda one: one.deadline)


def test_a_cost_of_any_size_has_its_turn_in_two_rounds() -> None:
    ring: DeficitRoundRobin[int] = DeficitRoundRobin(64)
    for n, owner in enumerate("abc"):
        ring.push(entry(n, owner=owner, cost=10**15 + n))
    first = ring.head()
    assert first.ticket.owner == "a"
    assert ring.tenants["a"].deficit - first.ticket.cost < 64
