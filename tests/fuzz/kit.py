"""Owns what targets share: how an input says where it is cut, and a loop that never runs anything.
Must not know any target.
Called by the targets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast

MOST_CUTS: Final = 8


class Target(NamedTuple):
    """One reader under test."""

    run: Callable[[bytes], None]  # raises on whatever is wrong
    oracle: str
    words: tuple[bytes, ...] = ()  # what inputs are made of, for the mutations
    most: int = 4096  # bytes of an input


def parted(data: bytes) -> tuple[list[bytes], bytes]:
    """An input as its pieces and as the stream they make: a count, so many places, the stream."""
    count = data[0] % (MOST_CUTS + 1) if data else 0
    places, stream = data[1 : 1 + count], data[1 + count :]
    edges = [0, *sorted(place * len(stream) // 255 for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges) if a < b], stream


def in_pieces(stream: bytes, *places: int) -> bytes:
    """The input that `parted` takes apart so."""
    assert len(places) <= MOST_CUTS
    return bytes([len(places), *places]) + stream


def flagged(data: bytes) -> tuple[int, bytes]:
    """The first byte, and the rest."""
    return (data[0], data[1:]) if data else (0, b"")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a member is given twice")
    return dict(pairs)


def _none(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _whole(digits: str) -> Any:
    return int(digits) if len(digits) < 4000 else digits


def strict_json(data: bytes, *, once: bool = True) -> Any:
    """JSON as RFC 8259 has it, in UTF-8; no member twice where `once` is set. Raises ValueError."""
    hook = _once if once else None
    return json.loads(data.decode("utf-8"), parse_constant=_none, parse_int=_whole, object_pairs_hook=hook)


def levels(value: Any) -> int:
    """The depth of arrays and objects."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def lenient_json(data: bytes | None) -> Any:
    """As json.loads has it, what is not UTF-8 replaced: engines' texts pass as they came. None: no JSON."""
    try:
        return json.loads((data or b"{}").decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


class StillLoop:
    """As much of a loop as readers need. Its time stands still: what is scheduled on it never runs."""

    def __init__(self) -> None:
        self.told: list[BaseException] = []  # what was contained

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return cast("asyncio.AbstractEventLoop", self)

    def time(self) -> float:
        return 1.0

    def call_soon(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return asyncio.Handle(callback, args, self.loop)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return asyncio.TimerHandle(when, callback, args, self.loop)

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> asyncio.TimerHandle:
        return self.call_at(1.0 + delay, callback, *args)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self.loop)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.told.append(context["exception"])

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass
