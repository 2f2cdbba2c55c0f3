"""The law of a full queue at its bounds: just a share, just above one, and what is told."""

from __future__ import annotations

from collections.abc import Collection, Hashable

import pytest

from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.errors import Code, GatewayError
from proxy.flights.queue.shares import Shares, queue_full, share_exceeded


def shares(*items: str, priority: int = NORMAL) -> Shares[str]:
    """Of items whose owner is their first letter."""
    made: Shares[str] = Shares()
    for item in items:
        made.add(item, item[0], priority)
    return made


def readers(item: str) -> Collection[Hashable]:
    """An item's owner, and those that its name has after the number."""
    return {item[0], *item[2:]}


def refused(made: Shares[str], owner: str, limit: int, priority: int = NORMAL) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        made.make_room(owner, priority, limit, readers)
    return caught.value


def test_what_is_owned_is_counted_by_owner_and_class_until_it_is_dropped() -> None:
    made = shares("a1", "a2", "b1")
    made.add("aL", "a", LOW)
    made.add("b2", "b")
    assert (len(made), made.lengths(), made.owned("a"), made.owned("x")) == (2, [0, 4, 1], 3, 0)
    assert repr(made) == "<Shares of 2 owners>"
    made.drop("aL", "a", LOW)
    made.drop("a1", "a")
    made.drop("a1", "a")
    made.drop("a2", "x")
    assert (len(made), made.owned("a")) == (2, 1)
    made.drop("a2", "a")
    assert (len(made), made.owned("a"), made.lengths()) == (1, 0, [0, 2, 0])


def test_one_who_has_just_its_share_pushes_nobody_out_and_one_below_it_does() -> None:
    made = shares("a1", "a2", "a3", "b1")
    assert made.make_room("b", NORMAL, 4, readers)[0] == "a3"
    made.add("b2", "b")
    error = refused(made, "b", 4)
    assert (error.code, error.retry_after) == (Code.QUEUE_SHARE, 1)
    assert "(2 of 4 requests; 2 callers have requests queued)" in error.message


def test_nobody_who_has_just_a_share_makes_room() -> None:
    error = refused(shares("a1", "a2", "b1", "b2"), "c", 6)
    assert (error.code, error.status, error.retry_after) == (Code.QUEUE_FULL, 503, 1)
    assert "(6 requests)" in error.message
    victim, told = shares("a1", "a2", "b1").make_room("c", NORMAL, 3, readers)
    assert (victim, told.code) == ("a2", Code.QUEUE_SHARE)
    assert "(1 of 3 requests; 3 callers have requests queued)" in told.message


def test_who_is_alone_is_told_that_the_queue_is_full_and_so_is_the_first_of_all() -> None:
    assert refused(shares("a1", "a2"), "a", 2).code is Code.QUEUE_FULL
    assert refused(Shares(), "a", 2).code is Code.QUEUE_FULL


@pytest.mark.parametrize(
    ("waits", "comes", "gives"),
    [(LOW, NORMAL, True), (NORMAL, NORMAL, False), (NORMAL, HIGH, True), (HIGH, LOW, False)],
)
def test_an_own_item_makes_room_only_for_one_of_a_higher_class(waits: int, comes: int, gives: bool) -> None:
    made = shares("a1", priority=waits)
    if gives:
        victim, error = made.make_room("a", comes, 1, readers)
        assert (victim, error.code) == ("a1", Code.QUEUE_FULL)
    else:
        assert refused(made, "a", 1, comes).code is Code.QUEUE_FULL


def test_of_the_heaviest_the_newest_of_the_lowest_class_goes() -> None:
    made = shares("a1", "a2", "a3", priority=HIGH)
    for item, priority in (("a4", LOW), ("a5", LOW), ("a6", NORMAL)):
        made.add(item, "a", priority)
    order = []
    for _ in range(6):
        victim, _ = made.make_room("b", NORMAL, 2, readers)
        order.append(victim)
        made.drop(victim, "a", {"4": LOW, "5": LOW, "6": NORMAL}.get(victim[1], HIGH))
        if made.owned("a") == 1:
            break
    assert order == ["a5", "a4", "a6", "a3", "a2"]


def test_joining_all_of_a_flood_shields_nothing_once_the_reader_has_more_than_a_share() -> None:
    flood = [f"a{n}x" for n in range(4)]
    assert shares(*flood).make_room("b", NORMAL, 4, readers)[0] == "a3x", "x reads 4, above its share of 2"
    assert refused(shares("a0x", "a1x", "a2y", "a3y"), "b", 6).code is Code.QUEUE_FULL, "x and y read 2 of 2"
    assert shares("a0x", "a1x", "a2x", "a3y").make_room("b", NORMAL, 6, readers)[0] == "a2x"


def test_what_is_told_names_the_bound() -> None:
    assert "(3 of 10 requests; 3 callers have requests queued)" in share_exceeded(10, 3).message
    assert (share_exceeded(10, 3).retry_after, queue_full(7).retry_after) == (1, 1)
    assert "(7 requests)" in queue_full(7).message
