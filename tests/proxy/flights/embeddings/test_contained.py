"""What any function of the embedder raises, once, ends at most the requests that it was about: the others have
their vectors, and nothing is left behind. The functions are those that a run of mixed load calls."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import CodeType, FrameType
from typing import Any, Final, cast

import pytest

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Subscriber
from proxy.flights.memory import Memory
from proxy.redis.cache import Cache, Stored
from tests.kit.embed_stage import POISON, Stage, vector, vectors

FILES: Final = (
    "proxy/flights/embeddings/delivery.py",
    "proxy/flights/embeddings/items.py",
    "proxy/flights/embeddings/queue.py",
    "proxy/flights/embeddings/store.py",
    "proxy/flights/embeddings/embedder.py",
    "proxy/flights/embeddings/batches.py",
    "proxy/flights/queue/lookups.py",
    "proxy/flights/queue/shares.py",
    "proxy/wire/embeddings.py",
)
EXEMPT: Final = {
    "Embedder.take": "the gateway's: nothing has been taken yet",
    "Embedder.joined": "the gateway's: nothing has been changed yet",
    "Embedder._soon": "asks for the turn",
    "ItemStore._found": "the border of a look-up's reply",
    "Embedder._finish": "the give-back of a request",
    "Embedder._fail": "the end of a request that failed",
    "Embedder._forget": "the give-back of an item",
    "EmbeddingRequest.clear": "the give-back of a request's memory",
    "EmbeddingRequest.ends": "the end of a request",
}


class Boom(Exception):
    """What is injected."""


class Redis:
    """Keeps what it is given, and answers when the loop turns."""

    available = True

    def __init__(self) -> None:
        self.soon: Callable[[Callable[[], None]], None] = lambda call: None
        self.values: dict[bytes, Stored] = {}

    def lookup(self, keys: Sequence[bytes], done: Callable[[list[Stored | None]], None]) -> None:
        found = [self.values.get(key) for key in keys]
        self.soon(lambda: done(found))

    def store(
        self, key: bytes, stored: Stored, settled: Callable[[], None], *, replace: bool, asked: float
    ) -> None:
        self.values[key] = stored
        self.soon(settled)


def name_of(code: CodeType) -> str:
    return code.co_qualname


def here(code: CodeType) -> bool:
    return (
        code.co_filename.endswith(FILES)
        and not code.co_name.startswith("<")
        and "<locals>" not in code.co_qualname
    )


@contextmanager
def injected(at: str, number: int) -> Iterator[list[str]]:
    """Make the function raise at its `number`th call. With no name the functions that were called are told."""
    called: list[str] = []

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and here(frame.f_code):
            name = name_of(frame.f_code)
            if not at or name == at:
                called.append(name)
                if at and len(called) == number:
                    sys.setprofile(None)
                    raise Boom(at)

    sys.setprofile(profile)
    try:
        yield called
    finally:
        sys.setprofile(None)


def load(stage: Stage, seed: int) -> list[tuple[Subscriber, list[str]]]:
    """Requests that share items, come, leave, find what is stored, and are refused; all of it is answered."""
    chance = random.Random(seed)
    readers: list[tuple[Subscriber, list[str]]] = []
    for step in range(40):
        texts = [chance.choice("abcdefghij") + str(chance.randrange(4)) for _ in range(chance.randrange(1, 7))]
        if step % 13 == 5:
            texts.append(POISON)
        with suppress(Boom, GatewayError):
            readers.append((stage.ask(texts, caller=f"caller{step % 3}", fresh=step % 7 == 3), texts))
        if step % 6 == 1:
            reader, wanted = readers[chance.randrange(len(readers))]
            if reader in reader.flight.subscribers and not reader.flight.ended:
                group = stage.group
                follower = group.attach(reader.flight, usage=True, whole=True, attached=True, owner="late")
                readers.append((follower, wanted))
                with suppress(Boom):
                    stage.embedder.joined(follower)
        if step % 5 == 4:
            readers[chance.randrange(len(readers))][0].leave()
        if step % 3 == 2:
            stage.loop.turn()
        if step % 4 == 3 and stage.sent:
            stage.answer(500 if step % 16 == 15 else None)
    settle(stage)
    return readers


def settle(stage: Stage) -> None:
    for _ in range(400):
        stage.loop.turn()
        if stage.sent:
            stage.answer()


def made() -> Stage:
    redis = Redis()
    stage = Stage(items=4, calls=lambda model: 2, limit=9, memory=Memory(1 << 30), cache=cast("Cache", redis))
    redis.soon = stage.loop.call_soon
    return stage


def traced() -> list[str]:
    with injected("", 0) as called:
        load(made(), 1)
    return sorted(set(called))


FUNCTIONS: Final = traced()


def test_the_functions_are_many_and_what_is_exempt_is_among_them() -> None:
    assert len(FUNCTIONS) > 60
    assert EXEMPT.keys() <= set(FUNCTIONS)


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("at", [name for name in FUNCTIONS if name not in EXEMPT])
def test_what_one_function_raises_ends_what_it_was_about_and_nothing_is_left(
    at: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.flights.embeddings.queue.SLICE", 3)  # more inputs are a large request
    monkeypatch.setattr("proxy.flights.embeddings.delivery.SLICE", 16)
    stage = made()
    with injected(at, number):
        readers = load(stage, number)
    failed = 0
    for reader, texts in readers:
        if reader not in reader.flight.subscribers:
            continue  # it left
        assert reader.flight.ended, at
        head = reader.flight.head
        if reader.flight.error is None and head is not None and head.status == 200:
            assert POISON not in texts
            assert vectors(reader) == [vector(text) for text in texts]
        elif reader.flight.error is not None:
            assert reader.flight.error.code in (Code.INTERNAL, Code.UPSTREAM_PROTOCOL, Code.QUEUE_SHARE)
            failed += reader.flight.error.code is not Code.QUEUE_SHARE
    assert failed <= 8, "the requests of two arrays at most"
    assert left(stage) == (0, 0, 0, 0, 0)
    after = [stage.ask([f"after{n}"], caller="another") for n in range(5)]
    settle(stage)
    assert [vectors(reader) for reader in after] == [[vector(f"after{n}")] for n in range(5)]
    for reader in [*after, *(reader for reader, _ in readers)]:
        reader.leave()
    assert stage.memory.held == 0


def left(stage: Stage) -> tuple[int, ...]:
    assert repr(stage.embedder.arrays) == "<Arrays waiting=0 under_way=0 groups=0>"
    embedder = stage.embedder
    return len(embedder), len(embedder.arrays), len(embedder.queue), len(embedder.store), len(stage.group)
