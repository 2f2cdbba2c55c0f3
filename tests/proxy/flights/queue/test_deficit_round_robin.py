"""Turns: of owners by tokens is in test_line.py; here, what begins alike goes in runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.queue.deficit_round_robin import RUN, Ticket
from proxy.flights.queue.fair_queue import FairQueue
from tests.proxy.flights.queue.test_fair_queue import drained


def offered(beginnings: Sequence[tuple[int, ...]], **more: Any) -> FairQueue[int]:
    line: FairQueue[int] = FairQueue()
    for at, prefixes in enumerate(beginnings):
        line.offer(at, Ticket(prefixes=prefixes, **more), 0.0)
    return line


def test_what_begins_alike_goes_in_a_row_the_oldest_first() -> None:
    a, b = (1,), (2,)
    assert drained(offered([a, b, a, (), b, a])) == [0, 2, 5, 1, 4, 3]


def test_the_longest_common_beginning_decides() -> None:
    far, near = (1, 30), (1, 20)
    assert drained(offered([near, far, (), near, (1,), near])) == [0, 3, 5, 1, 4, 2]


def test_a_deadline_goes_before_what_begins_alike() -> None:
    line = offered([(1,), (2,), (1,)])
    line.offer(9, Ticket(prefixes=(3,), deadline=5.0), 0.0)
    line.granted(0)
    assert drained(line) == [9, 1, 2], "and a run ends with it"


def test_who_gets_a_deadline_is_no_longer_found_by_how_it_begins() -> None:
    line = offered([(1,), (2,), (1,)])
    line.granted(0)
    assert line.promote(2, 1, 3.0)
    assert line.discard(2)
    assert drained(line) == [1]


def test_a_run_ends_where_its_owner_s_oldest_has_waited_for_it() -> None:
    line = offered([(1,), (2,), *([(1,)] * 40)])
    assert drained(line).index(1) == RUN


def test_where_all_begin_alike_what_they_go_on_with_alike_decides_for_ever() -> None:
    """One prompt of the system's for all, several long texts after it."""
    beginnings = [(0, at % 3 + 1) for at in range(120)]
    order = drained(offered(beginnings))
    runs = [len(list(run)) for _, run in groupby(beginnings[item][1] for item in order)]
    assert len(runs) <= 120 / RUN + 3
    assert max(runs) <= 3 * RUN


@pytest.mark.parametrize("owners", [1, 2])
def test_each_owner_s_run_goes_on_through_the_others_turns(owners: int) -> None:
    line: FairQueue[tuple[int, int]] = FairQueue(quantum=1)
    for at in range(8):
        for owner in range(owners):
            line.offer((owner, at), Ticket(owner=owner, prefixes=(at % 2,)), 0.0)
    order = drained(line)
    for owner in range(owners):
        begins = [at % 2 for of, at in order if of == owner]
        assert [key for key, _ in groupby(begins)] == [0, 1]


@given(st.lists(st.sampled_from([(), (1,), (2,), (1, 5), (1, 6), (3, 7)]), max_size=120))
def test_nobody_waits_for_more_than_a_run_for_each_one_before_it(beginnings: list[tuple[int, ...]]) -> None:
    order = drained(offered(beginnings))
    assert sorted(order) == list(range(len(beginnings)))
    for place, item in enumerate(order):
        assert place <= RUN * (item + 1)


@given(st.lists(st.tuples(st.sampled_from([(1,), (1, 2), (3,)]), st.booleans()), max_size=60))
def test_what_leaves_leaves_nothing_behind(steps: list[tuple[tuple[int, ...], bool]]) -> None:
    line: FairQueue[int] = FairQueue()
    for at, (prefixes, leaves) in enumerate(steps):
        line.offer(at, Ticket(prefixes=prefixes), 0.0)
        if leaves:
            line.discard(at // 2)
    waits = list(line)
    assert sorted(drained(line)) == waits
    assert line.oldest == math.inf


def test_deadlines_in_between_give_what_begins_like_them_no_more_than_a_run() -> None:
    line: FairQueue[Any] = FairQueue()
    line.offer("old", Ticket(prefixes=(9,)), 0.0)
    places = 0
    for n in range(10 * RUN):
        prefixes = (n % 2,)
        line.offer(("hurried", n), Ticket(prefixes=prefixes, deadline=1.0 + n), 0.0)
        line.offer(("alike", n), Ticket(prefixes=prefixes), 0.0)
        for _ in range(2):  # the hurried one, then one without a deadline
            item = line.next(0.0)
            if item == "old":
                return
            assert item is not None
            places += item[0] == "alike"
            assert places <= RUN
            line.granted(item)
    raise AssertionError("it never had its place")


def test_who_may_take_just_what_it_needs_has_its_turn_first() -> None:
    line: FairQueue[str] = FairQueue(quantum=10)
    line.offer("first", Ticket(owner="a", cost=10), 0.0)
    line.offer("second", Ticket(owner="b", cost=1), 0.0)
    assert drained(line) == ["first", "second"]


def test_who_is_alone_pays_for_nothing() -> None:
    line: FairQueue[str] = FairQueue(quantum=10)
    for n in range(3):
        line.offer(f"a{n}", Ticket(owner="a", cost=100), 0.0)
    assert line.next(0.0) == "a0"
    line.granted("a0")
    for n in range(2):
        line.offer(f"b{n}", Ticket(owner="b", cost=100), 0.0)
    assert drained(line) == ["a1", "b0", "a2", "b1"]
