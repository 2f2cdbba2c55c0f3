"""What Redis knows of embedding items: look-ups in batches, one at a time, and what becomes of those who leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from proxy.cache import Cache, Stored
from proxy.embed_item import Item, Kind, Result
from proxy.embed_store import ItemStore
from proxy.wire.vectors import Vector, envelope_of, take_apart

BODY = b'{"object":"list","data":[{"index":0,"embedding":[1]}],"usage":{"prompt_tokens":3,"total_tokens":3}}'


class Redis:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.available = True
        self.asked: list[tuple[list[bytes], Callable[[list[Stored | None]], None]]] = []
        self.stored: list[tuple[bytes, Stored, bool]] = []

    def lookup(self, keys: Sequence[bytes], done: Callable[[list[Stored | None]], None]) -> None:
        self.asked.append((list(keys), done))

    def store(
        self, key: bytes, stored: Stored, settled: Callable[[], None], *, replace: bool, asked: float
    ) -> None:
        self.stored.append((key, stored, replace))
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

    def add(self, name: str, *, fresh: bool = False) -> Item:
        made = Item(name.encode(), Kind("m", b"", "text", ()), b'"a"', 1, fresh)
        self.store.add(made)
        return made


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
    desk.add("a", fresh=True)
    desk.redis.available = False
    desk.add("b")
    desk.store.look()
    assert desk.redis.asked == []


def test_what_is_stored_and_is_no_vector_is_a_miss_and_is_replaced() -> None:
    for stored in (kept(b"{}"), Stored(kind="stream", created=5.0, body=b"x")):
        desk = Desk()
        item = desk.add("a")
        desk.store.look()
        desk.redis.asked[0][1]([stored])
        assert (desk.found, item.replace) == ([(b"a", None)], True)


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


def test_without_redis_nothing_is_kept() -> None:
    settled: list[int] = []
    store = ItemStore(
        None, max_batch=1, on_batch=print, found=lambda *_: None, looked=lambda: None, lost=print, on_fault=print
    )
    parts = take_apart(BODY, 1)
    item = Item(b"a", Kind("m", b"", "text", ()), b'"a"', 1, False)
    assert not store.add(item)
    store.keep(item, Result(envelope_of(parts), Vector.of(parts.data[0]), 3), lambda: settled.append(1))
    assert settled == [1]
