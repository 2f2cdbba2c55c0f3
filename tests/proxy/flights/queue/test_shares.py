"""The law of a full queue: equal shares by caller, whatever comes in whatever order, and whoever joins whom."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.vocabulary import HIGH, LOW, NORMAL
from proxy.errors import Code, GatewayError
from proxy.flights.queue.shares import Shares

Item = tuple[str, int]


class Queue:
    """A queue under the law: items have an owner, and may have other readers."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shares: Shares[Item] = Shares()
        self.items: dict[Item, int] = {}  # and the class of each
        self.readers: dict[Item, set[str]] = {}
        self.pushed: list[tuple[Item, GatewayError]] = []

    def offer(self, owner: str, priority: int = NORMAL) -> Item:
        if len(self.items) >= self.limit:
            item, error = self.shares.make_room(owner, priority, self.limit, self.callers)
            self.shares.drop(item, item[0], self.items.pop(item))
            self.pushed.append((item, error))
        item = (owner, len(self.items) + len(self.pushed) + 1000 * len(self.readers))
        self.items[item] = priority
        self.readers[item] = set()
        self.shares.add(item, owner, priority)
        return item

    def callers(self, item: Item) -> set[str]:
        return {item[0]} | self.readers[item]


def test_the_newest_that_somebody_else_reads_too_stays_and_the_next_goes() -> None:
    queue = Queue(4)
    items = [queue.offer("heavy") for _ in range(4)]
    queue.readers[items[3]] = {"light"}
    queue.offer("other")
    assert [item for item, _ in queue.pushed] == [items[2]]
    assert queue.pushed[0][1].code is Code.QUEUE_SHARE


def test_an_own_item_of_a_lower_class_that_somebody_else_reads_too_makes_no_room() -> None:
    queue = Queue(2)
    low = queue.offer("a", LOW)
    queue.offer("a", HIGH)
    queue.readers[low] = {"b"}
    with pytest.raises(GatewayError):
        queue.offer("a", HIGH)
    queue.readers[low] = set()
    queue.offer("a", HIGH)
    assert [(item, error.code) for item, error in queue.pushed] == [(low, Code.QUEUE_FULL)]


def test_one_that_joins_all_of_a_flood_does_not_shield_it() -> None:
    queue = Queue(8)
    items = [queue.offer("heavy") for _ in range(8)]
    for item in items:
        queue.readers[item] = {"accomplice"}
    queue.offer("light")
    assert [item for item, _ in queue.pushed] == [items[7]]


def test_who_joined_one_of_a_flood_keeps_it_though_all_of_it_was_joined() -> None:
    queue = Queue(8)
    items = [queue.offer("heavy") for _ in range(8)]
    for item in items:
        queue.readers[item] = {"accomplice"}
    queue.readers[items[7]] = {"light"}
    queue.offer("other")
    assert [item for item, _ in queue.pushed] == [items[6]]


@given(st.lists(st.tuples(st.sampled_from("aaaaaabbcd"), st.integers(0, 2)), max_size=150), st.integers(4, 20))
def test_nobody_above_its_share_keeps_one_below_it_out_and_nothing_is_lost_or_twice(
    comes: list[tuple[str, int]], limit: int
) -> None:
    queue = Queue(limit)
    taken = refused = 0
    for owner, priority in comes:
        before = Counter(item[0] for item in queue.items)
        owners = len(before.keys() | {owner})
        share = limit // owners
        try:
            queue.offer(owner, priority)
            taken += 1
        except GatewayError as e:
            refused += 1
            assert len(queue.items) == limit
            if before[owner] < share:
                assert max(before.values()) <= share
                assert e.code is Code.QUEUE_FULL
            else:
                assert e.code is (Code.QUEUE_SHARE if owners > 1 else Code.QUEUE_FULL)
        for item, _ in queue.pushed:
            assert item not in queue.items
        waiting = Counter(item[0] for item in queue.items)
        for other, count in before.items():
            if other != owner and waiting[other] < count:
                assert count > share, "only one above its share makes room for another"
    assert taken + refused == len(comes)
    assert len(queue.items) == taken - len(queue.pushed)
    assert len({item for item, _ in queue.pushed}) == len(queue.pushed)
    assert sum(queue.shares.lengths()) == len(queue.items)
    assert len(queue.shares) == len({item[0] for item in queue.items})
