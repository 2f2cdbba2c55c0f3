"""Vectors on their way, as objects: so much work a turn, each request once, and what raises costs its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from proxy.flights.embeddings import delivery as embed_delivery
from proxy.flights.embeddings.delivery import BYTES_A_UNIT, Delivery
from proxy.flights.embeddings.items import BatchKey, EmbeddingItem, EmbeddingRequest, Result
from proxy.wire.embeddings import Vector


class Wanted:
    """A request as a delivery sees it."""

    def __init__(self, name: str, lacks: int = 1, slices: int = 1) -> None:
        self.name, self.lacks, self.slices, self.over, self.step = name, lacks, slices, False, 1
        self.raises = False

    def gets(self, item: EmbeddingItem, result: Result) -> bool:
        if self.raises:
            raise ZeroDivisionError
        self.lacks -= 1
        return not self.lacks

    def land(self) -> Iterator[None]:
        for _ in range(self.slices):
            yield
        if self.raises:
            raise ZeroDivisionError


class Desk:
    def __init__(self) -> None:
        self.turns = 0
        self.log: list[tuple[str, Any]] = []
        self.delivery = Delivery(
            soon=self._soon,
            landed=lambda want: self.log.append(("landed", cast(Any, want).name)),
            failed=lambda want, e: self.log.append(("failed", cast(Any, want).name)),
            lost=lambda item, e: self.log.append(("lost", item.key)),
            handed_out=lambda item, result: self.log.append(("out", item.key)),
        )

    def _soon(self) -> None:
        self.turns += 1

    def item(
        self, key: bytes, *wants: Wanted, owner: bool = True, size: int = 1, stored: Any = None
    ) -> EmbeddingItem:
        made = EmbeddingItem(key, BatchKey("m", b"", "text", ()), b'"a"', 1, False)
        made.owner = made.payer = cast(EmbeddingRequest, wants[0]) if owner and wants else None
        made.result = Result(b"", Vector(b"x" * size, b""), 1, stored)
        for one in wants:
            made.add(cast(EmbeddingRequest, one))
        return made


def test_who_wants_it_has_it_and_it_is_handed_out_once() -> None:
    desk, wants = Desk(), [Wanted("one"), Wanted("two", lacks=2)]
    item = desk.item(b"a", *wants)
    desk.delivery.add(item)
    assert (len(desk.delivery), repr(desk.delivery)) == (1, "<Delivery items=1 answers=0>")
    desk.delivery.work()
    assert desk.log == [("landed", "one"), ("out", b"a")]
    assert (item.owner, item.payer, item.waiting, len(desk.delivery), desk.turns) == (None, None, None, 0, 0)
    again = desk.item(b"a", wants[1], owner=False)
    desk.delivery.add(again)
    desk.delivery.work()
    assert desk.log[2:] == [("landed", "two")], "it is stored already"


def test_what_is_from_the_store_is_not_stored_again() -> None:
    desk = Desk()
    desk.delivery.add(desk.item(b"a", Wanted("one"), stored=5.0))
    desk.delivery.work()
    assert desk.log == [("landed", "one")]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_so_much_is_done_in_a_turn_and_the_rest_in_the_next(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_delivery, "SLICE", 3)
    desk = Desk()
    for n in range(count):
        desk.delivery.add(desk.item(b"%d" % n, Wanted("w", lacks=9)))
    desk.delivery.turn()
    assert (len(desk.log), desk.turns, len(desk.delivery)) == (min(3, count), int(count > 3), max(0, count - 3))
    desk.delivery.work()
    assert len(desk.log) == min(3, count), "this turn has done what it may"
    desk.delivery.turn()
    assert len(desk.log) == count


def test_a_large_vector_and_a_slice_of_an_answer_are_work_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_delivery, "SLICE", 4)
    desk = Desk()
    for key in (b"a", b"b"):
        desk.delivery.add(desk.item(key, Wanted("w", lacks=9), size=3 * BYTES_A_UNIT))
    desk.delivery.turn()
    assert desk.log == [("out", b"a")]
    desk.delivery.turn()
    assert desk.log == [("out", b"a"), ("out", b"b")]
    long = Wanted("long", slices=4)
    desk.delivery.add(desk.item(b"c", long))
    desk.delivery.turn()
    assert (desk.log[2:], repr(desk.delivery)) == ([("out", b"c")], "<Delivery items=0 answers=1>")
    desk.delivery.add(desk.item(b"d", Wanted("w", lacks=9)))
    assert len(desk.delivery) == 2
    desk.delivery.turn()
    assert desk.log[3:] == []
    desk.delivery.turn()
    assert desk.log[3:] == [("landed", "long"), ("out", b"d")]


def test_who_is_over_meanwhile_gets_no_answer_and_what_raises_costs_its_own() -> None:
    desk = Desk()
    over, broken, fine, late = Wanted("over"), Wanted("broken"), Wanted("fine"), Wanted("late", slices=2)
    over.over, broken.raises = True, True
    desk.delivery.add(desk.item(b"a", over, broken, fine, late))
    desk.delivery.work()
    assert sorted(desk.log) == [("failed", "broken"), ("landed", "fine"), ("landed", "late"), ("out", b"a")]
    desk.log.clear()
    broken.lacks, broken.raises, slow = 1, False, Wanted("slow")
    slow.raises = True
    slow.gets = lambda item, result: True  # type: ignore[method-assign]
    desk.delivery.add(desk.item(b"b", slow, broken))
    desk.delivery.work()
    assert sorted(desk.log) == [("failed", "slow"), ("landed", "broken"), ("out", b"b")]
    assert len(desk.delivery) == 0


def test_a_request_whose_hand_over_raises_is_not_served_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, drop, calls = Desk(), EmbeddingItem.drop, list[int]()

    def fails_once(item: EmbeddingItem, request: EmbeddingRequest) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError
        drop(item, request)

    monkeypatch.setattr(EmbeddingItem, "drop", fails_once)
    desk.delivery.add(desk.item(b"a", Wanted("one"), Wanted("two")))
    desk.delivery.work()
    assert desk.log == [("failed", "one"), ("out", b"a"), ("landed", "two")]


def test_an_item_that_cannot_be_looked_at_or_stored_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()

    def fails(*given: Any) -> Any:
        raise ZeroDivisionError

    desk.delivery._handed_out = fails
    desk.delivery.add(desk.item(b"a", Wanted("one")))
    desk.delivery.work()
    assert desk.log == [("lost", b"a"), ("landed", "one")]
    item = desk.item(b"b")
    monkeypatch.setattr(EmbeddingItem, "first", fails)
    desk.delivery.add(item)
    desk.delivery.work()
    assert desk.log[2] == ("lost", b"b")


def test_it_is_not_entered_twice_and_may_be_cleared() -> None:
    desk = Desk()
    one = Wanted("one")

    def landed(want: EmbeddingRequest) -> None:
        desk.log.append(("landed", "one"))
        desk.delivery.work()

    desk.delivery._landed = landed
    for key in (b"a", b"b"):
        desk.delivery.add(desk.item(key, Wanted("x") if key == b"b" else one))
    desk.delivery.work()
    assert len(desk.delivery) == 0
    desk.delivery.add(desk.item(b"c", one))
    desk.delivery._landing = cast(EmbeddingRequest, one), iter(())
    desk.delivery.clear()
    assert (len(desk.delivery), repr(desk.delivery)) == (0, "<Delivery items=0 answers=0>")
