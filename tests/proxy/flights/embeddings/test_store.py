"""What Redis knows of embedding items: look-ups in batches, one at a time, and what becomes of those who leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from proxy.flights.embeddings.items import BatchKey, EmbeddingItem, EmbeddingRequest, Origin, Result
from proxy.flights.embeddings.store import ItemStore
from proxy.redis.cache import Cache, Stored
from proxy.wire.embeddings import Vector, envelope_of, take_apart

BODY = b'{"object":"list","data":[{"index":0,"embedding":[1]}],"usage":{"prompt_tokens":3,"total_tokens":3}}'


class Redis:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.available = True
        self.asked: list[tuple[list[bytes], Callable[[list[Stored | None]], None]]] = []
        self.stored: list[tuple[bytes, Stored, bool]] = []
        self.times: list[float] = []

    def lookup(self, keys: Sequence[bytes], done: Callable[[list[Stored | None]], None]) -> None:
        self.asked.append((list(keys), done))

    def store(
        self, key: bytes, stored: Stored, settled: Callable[[], None], *, replace: bool, asked: float
    ) -> None:
        self.stored.append((key, stored, replace))
        self.times.append(asked)
        settled()


class Desk:
    def __init__(self, max_batch: int = 64) -> None:
        self.redis = Redis()
        self.found: list[tuple[bytes, int | None]] = []
        self.batches: list[int] = []
        self.turns = 0
        self.faults: list[str] = []
        self.store = ItemStore(
            cast("Cache", self.redis),
            max_batch=max_batch,
            on_batch=self.batches.append,
            found=lambda item, result: self.found.append((item.key, result and result.tokens)),
            looked=self._looked,
            lost=lambda item, e: self.faults.append(repr(e)),
            on_fault=lambda where, error: self.faults.append(where),
        )

    def _looked(self) -> None:
        self.turns += 1

    def add(self, name: str, *, fresh: bool = False, caller: str = "") -> EmbeddingItem:
        made = EmbeddingItem(name.encode(), BatchKey("m", b"", "text", ()), b'"a"', 1, fresh)
        made.move_to(owner(caller) if caller else None)
        self.store.add(made)
        return made


def owner(caller: str) -> EmbeddingRequest:
    return cast("EmbeddingRequest", SimpleNamespace(caller=caller))


def kept(body: bytes = BODY) -> Stored:
    return Stored(kind="whole", created=5.0, body=body, prompt_tokens=3)


def test_all_that_wait_are_one_round_trip_and_the_next_waits_for_its_end() -> None:
    desk = Desk(max_batch=2)
    for name in "abc":
        desk.add(name)
    desk.store.look()
    desk.store.look()
    assert [keys for keys, _ in desk.redis.asked] == [[b"a", b"b"]]
    desk.redis.asked[0][1]([kept(), None])
    assert (desk.found, desk.turns) == ([(b"a", 3), (b"b", None)], 1)
    desk.store.look()
    assert desk.redis.asked[1][0] == [b"c"]
    assert desk.batches == [2, 1]


def test_many_items_of_one_caller_do_not_delay_the_look_up_of_another_s() -> None:
    desk = Desk(max_batch=3)
    heavy = [desk.add(f"h{n}", caller="heavy") for n in range(9)]
    desk.add("l0", caller="light")
    heavy[8].move_to(owner("other"))  # it is wanted by a caller who has fewer
    desk.store.change_turn(heavy[8])
    desk.store.look()
    assert desk.redis.asked[0][0] == [b"h0", b"l0", b"h8"]
    desk.redis.asked[0][1]([None] * 3)
    desk.store.look()
    assert desk.redis.asked[1][0] == [b"h1", b"h2", b"h3"]


def test_a_batch_that_everyone_left_is_in_nobody_s_way_and_its_answer_is_nobody_s() -> None:
    desk = Desk()
    gone = desk.add("a")
    desk.store.look()
    assert desk.store.discard(gone)
    assert not desk.store.discard(gone)
    desk.add("b")
    desk.store.look()
    desk.redis.asked[0][1]([kept()])
    assert repr(desk.store) == "<ItemStore arrived=0 looking=1>"
    desk.redis.asked[1][1]([kept()])
    assert desk.found == [(b"b", 3)]


def test_what_is_wanted_anew_or_has_nowhere_to_look_is_not_looked_up() -> None:
    desk = Desk()
    items = [EmbeddingItem(b"a", BatchKey("m", b"", "text", ()), b'"a"', 1, fresh) for fresh in (False, True)]
    assert [desk.store.add(item) for item in items] == [True, False]
    assert [desk.store.waits(item) for item in items] == [True, False]
    assert desk.store.discard(items[0])
    desk.redis.available = False
    assert not desk.store.add(items[0])
    desk.store.look()
    assert desk.redis.asked == []


def test_what_is_stored_and_is_no_vector_is_a_miss_and_is_replaced() -> None:
    for stored in (kept(b"{}"), Stored(kind="stream", created=5.0, body=b"x")):
        desk = Desk()
        item = desk.add("a")
        desk.store.look()
        desk.redis.asked[0][1]([stored])
        assert (desk.found, item.replace, desk.faults) == ([(b"a", None)], True, [])


def test_a_vector_is_stored_as_the_answer_to_its_input_alone_and_read_back() -> None:
    desk = Desk()
    item, settled = desk.add("a"), list[int]()
    parts = take_apart(BODY, 1)
    desk.store.keep(
        item, Result(envelope_of(parts), Vector.of(parts.data[0]), parts.tokens), lambda: settled.append(1)
    )
    ((key, stored, replace),) = desk.redis.stored
    assert (key, replace, stored.body, settled) == (b"a", False, BODY, [1])
    back: Any = Result.of(stored)
    assert (back.tokens, back.stored_at, back.vector) == (3, stored.created, Vector.of(parts.data[0]))


def test_an_entry_whose_reading_raises_is_a_miss_and_the_fault_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(stored: Stored) -> Result:
        raise ZeroDivisionError

    desk = Desk()
    item = desk.add("a")
    monkeypatch.setattr(Result, "of", fails)
    desk.store.look()
    desk.redis.asked[0][1]([kept()])
    assert (desk.found, item.replace, desk.faults) == ([(b"a", None)], True, ["a stored embedding"])


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("replace", [False, True])
def test_an_entry_is_replaced_where_it_did_not_serve_or_was_not_to(fresh: bool, replace: bool) -> None:
    desk = Desk()
    item = desk.add("a", fresh=fresh)
    if replace:
        item.replace_stored()
    desk.store.keep(item, Result.of(kept()), lambda: None)
    assert [replaced for _, _, replaced in desk.redis.stored] == [fresh or replace]


def test_a_vector_is_stored_under_the_build_and_the_time_of_the_array_that_it_was_in() -> None:
    desk = Desk()
    asked: list[object] = []

    def build_of(*of: object) -> bytes | None:
        asked.append(of)
        return b"B" if of[0] == "http://a" else None

    desk.store = ItemStore(
        cast("Cache", desk.redis), build_of=build_of, max_batch=1, on_batch=print, found=print, looked=print,
        lost=print, on_fault=print,
    )  # fmt: skip
    parts, settled = take_apart(BODY, 1), list[int]()
    for name in ("http://a", "http://gone"):
        result = Result(envelope_of(parts), Vector.of(parts.data[0]), 3, origin=Origin(name, 1.0, 2.0))
        desk.store.keep(desk.add(name), result, lambda: settled.append(1))
    ((key, stored, _),) = desk.redis.stored
    assert (key, stored.build, desk.redis.times, settled) == (b"http://a", b"B", [1.0], [1, 1])
    assert asked == [("http://a", "m", 2.0), ("http://gone", "m", 2.0)]


def test_a_stored_vector_of_another_build_is_not_found_and_is_replaced() -> None:
    desk = Desk()
    desk.store = ItemStore(
        cast("Cache", desk.redis), makes=lambda model, build: (model, build) == ("m", b"B"), max_batch=64,
        on_batch=print, found=lambda item, result: desk.found.append((item.key, result and result.tokens)),
        looked=lambda: None, lost=print, on_fault=print,
    )  # fmt: skip
    items = [desk.add("a"), desk.add("b")]
    desk.store.look()
    ((_, done),) = desk.redis.asked
    done([kept(), msgspec.structs.replace(kept(), build=b"B")])
    assert desk.found == [(b"a", None), (b"b", 3)]
    assert [item.replace for item in items] == [True, False]


def test_without_redis_nothing_is_kept() -> None:
    settled: list[int] = []
    store = ItemStore(
        None, max_batch=1, on_batch=print, found=lambda *_: None, looked=lambda: None, lost=print, on_fault=print
    )
    parts = take_apart(BODY, 1)
    item = EmbeddingItem(b"a", BatchKey("m", b"", "text", ()), b'"a"', 1, False)
    assert not store.add(item)
    store.keep(item, Result(envelope_of(parts), Vector.of(parts.data[0]), 3), lambda: settled.append(1))
    assert settled == [1]


def test_of_a_look_up_s_reply_what_one_item_raises_costs_that_one() -> None:
    desk, told = Desk(), list[bytes]()

    def found(item: EmbeddingItem, result: object) -> None:
        told.append(item.key)
        if item.key == b"a":
            raise ZeroDivisionError

    desk.store._on_found = found
    for name in "abc":
        desk.add(name)
    desk.store.look()
    desk.redis.asked[0][1]([None])
    assert (told, desk.faults, desk.turns) == ([b"a", b"b", b"c"], ["ZeroDivisionError()"], 1)
    assert len(desk.store) == 0


def test_a_look_up_that_cannot_be_sent_has_found_nothing() -> None:
    desk = Desk()

    def fails(*given: object) -> None:
        raise ZeroDivisionError

    desk.redis.lookup = fails  # type: ignore[method-assign, assignment]
    item = desk.add("a")
    assert (desk.store.waits(item), len(desk.store)) == (True, 1)
    desk.store.look()
    assert (desk.found, desk.faults, desk.turns) == ([(b"a", None)], ["the look-up of embeddings"], 1)
    assert (desk.store.waits(item), desk.store.discard(item)) == (False, False)


def test_a_vector_that_cannot_be_stored_is_let_go_all_the_same() -> None:
    desk, settled = Desk(), list[int]()

    def fails(*given: object, **more: object) -> None:
        raise ZeroDivisionError

    desk.redis.store = fails  # type: ignore[method-assign]
    desk.store.keep(desk.add("a"), Result.of(kept()), lambda: settled.append(1))
    assert (settled, desk.faults) == ([1], ["the store of an embedding"])
