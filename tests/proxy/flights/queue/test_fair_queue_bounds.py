"""The line at its bounds: made anew, what it cannot take, whose turn a promotion takes, and ages to the second."""

from __future__ import annotations

import math

import pytest

from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.flights.queue.deficit_round_robin import QUANTUM, Ticket
from proxy.flights.queue.fair_queue import AGED_TURN, FairQueue
from tests.proxy.flights.queue.test_fair_queue import drained


def test_a_line_made_anew_keeps_items_classes_deadlines_ages_and_settings() -> None:
    line: FairQueue[str] = FairQueue(patience=3.0, quantum=7)
    for at, name in enumerate("abc"):
        line.offer(name, Ticket(owner="o", cost=5), float(at))
    line.promote("c", HIGH, 2.0)
    line.promote("b", NORMAL, 9.0)
    again = line.rebuilt()
    entries = [(e.item, e.priority, e.deadline, e.arrived, e.ticket.cost) for e in again.entries.values()]
    assert entries == [
        ("a", NORMAL, math.inf, 0.0, 5),
        ("b", NORMAL, 9.0, 1.0, 5),
        ("c", HIGH, 2.0, 2.0, 5),
    ]
    assert (again.patience, again._quantum, again.lengths()) == (3.0, 7, (1, 2, 0))
    assert repr(again) == "<FairQueue 1/2/0 owners=1>"
    assert drained(again) == ["c", "b", "a"]


def test_what_raises_as_it_enters_is_told_of_and_is_in_no_order() -> None:
    line: FairQueue[str] = FairQueue(patience=0.0)
    line.offer("a", Ticket(deadline=1.0), 0.0)
    with pytest.raises(TypeError):
        line.offer("b", Ticket(deadline="soon"), 0.0)  # type: ignore[arg-type]  # no heap compares it
    assert (list(line), line.owned(b""), line.owners) == (["a"], 1, 1)
    assert drained(line) == ["a"]
    assert line.oldest == math.inf


@pytest.mark.parametrize(("waits", "moves"), [(2, False), (3, True)])
def test_it_takes_the_turn_of_another_owner_only_where_that_one_waits_for_less_with_it(
    waits: int, moves: bool
) -> None:
    line: FairQueue[str] = FairQueue()
    for n in range(waits):
        line.offer(f"heavy {n}", Ticket(owner="heavy"), 0.0)
    line.offer("light", Ticket(owner="light"), 0.0)
    assert line.promote("heavy 0", NORMAL, math.inf, "light") is moves
    assert (line.owned("light"), line.owned("heavy")) == ((2, waits - 1) if moves else (1, waits))
    assert line.owners == 2


@pytest.mark.parametrize(
    ("priority", "deadline", "moves"),
    [(NORMAL, 5.0, False), (HIGH, 5.0, True), (NORMAL, 4.9, True), (LOW, 4.9, True), (HIGH, 9.0, True)],
)
def test_a_promotion_to_what_it_has_already_moves_nothing_and_none_takes_anything_away(
    priority: int, deadline: float, moves: bool
) -> None:
    line: FairQueue[str] = FairQueue()
    line.offer("it", Ticket(deadline=5.0), 0.0)
    assert line.promote("it", priority, deadline) is moves
    (entry,) = line.entries.values()
    assert (entry.priority, entry.deadline) == (min(NORMAL, priority), min(5.0, deadline))
    assert line.lengths() == ((1, 0, 0) if priority == HIGH else (0, 1, 0))


def test_one_place_in_so_many_goes_to_the_oldest_of_the_pools_that_are_not_blocked() -> None:
    line: FairQueue[str] = FairQueue(patience=10.0)
    line.offer("oldest", Ticket(pool="full", priority=LOW), 0.0)
    line.offer("old", Ticket(pool="free", priority=LOW), 1.0)
    for n in range(9):
        line.offer(f"high {n}", Ticket(pool="free", priority=HIGH), 2.0)
    order = []
    for _ in range(2 * AGED_TURN):
        item = line.next(11.0, {"full"})
        assert item is not None
        line.granted(item)
        order.append(item)
    assert order.index("old") == AGED_TURN - 1
    assert order.count("old") == 1


def test_what_is_granted_twice_or_left_meanwhile_takes_no_place() -> None:
    line: FairQueue[str] = FairQueue(patience=0.0)
    for n in range(AGED_TURN):
        line.offer(f"{n}", Ticket(priority=LOW), 0.0)
    line.offer("high", Ticket(priority=HIGH), 0.0)
    for _ in range(AGED_TURN - 1):
        line.granted("gone")
    assert line.next(0.0) == "high", "nothing has had its place yet"


def test_ages_are_told_to_the_second() -> None:
    line: FairQueue[str] = FairQueue()
    assert (line.oldest, line.waited(0.0, 9.0)) == (math.inf, [])
    line.offer("a", Ticket(), 1.0)
    line.offer("b", Ticket(), 2.0)
    assert line.oldest == 1.0
    assert line.waited(3.0, 3.9) == []
    assert line.waited(3.0, 4.0) == ["a"]
    assert line.waited(3.0, 5.0) == ["a", "b"]


@pytest.mark.parametrize(("cost", "others"), [(QUANTUM, 2), (QUANTUM // 4, 0), (10 * QUANTUM, 3)])
def test_of_others_as_many_go_before_it_as_of_its_own_but_for_what_a_quantum_buys(cost: int, others: int) -> None:
    line: FairQueue[str] = FairQueue()
    for n in range(2):
        line.offer(f"mine {n}", Ticket(owner="me", cost=cost), 0.0)
    line.offer("one", Ticket(owner="one", cost=cost), 0.0)
    for n in range(5):
        line.offer(f"two {n}", Ticket(owner="two", cost=cost), 0.0)
    assert line.ahead(Ticket(owner="me", cost=cost)) == 2 + others


def test_pools_have_nothing_of_each_other_before_them() -> None:
    line: FairQueue[str] = FairQueue()
    for pool in ("m1", "m2"):
        line.offer(f"high {pool}", Ticket(pool=pool, priority=HIGH), 0.0)
        line.offer(f"normal {pool}", Ticket(owner="x", pool=pool), 0.0)
    assert line.ahead(Ticket(owner="x", pool="m1", priority=LOW)) == 2
    assert line.ahead(Ticket(owner="x", pool="m3", priority=LOW)) == 0
    assert line.ahead(Ticket(owner="x", pool="m1", deadline=1.0)) == 1


@pytest.mark.parametrize(("blocked", "found"), [((), "old"), (("p1",), "young"), (("p1", "p2"), "high")])
def test_the_aged_turn_is_the_oldest_item_s_of_all_pools_that_have_room(
    blocked: tuple[str, ...], found: str
) -> None:
    line: FairQueue[str] = FairQueue(patience=1.0)
    line.offer("old", Ticket(pool="p1", priority=LOW), 0.0)
    line.offer("young", Ticket(pool="p2", priority=LOW), 0.1)
    for n in range(AGED_TURN):
        line.offer(f"high {n}", Ticket(pool="p3", priority=HIGH), 0.2)
    for _ in range(AGED_TURN - 1):
        item = line.next(0.5)
        assert item is not None
        line.granted(item)
    chosen = line.next(9.0, blocked)
    assert chosen is not None
    assert chosen.startswith(found)
