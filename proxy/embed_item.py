"""Owns an embedding item under way, the request that wants some of them, and what a request gets at its end.
Must not know the queue, engines or Redis: it is told of results.
Called by the embedder only."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from msgspec import Raw

from proxy.cache import Stored
from proxy.estimate import reached
from proxy.flight import Flight, Subscriber
from proxy.phase import Phase
from proxy.plan import Head, Items
from proxy.wire.frames import Usage
from proxy.wire.vectors import Inputs, put_together, shares, take_apart

_JSON: Final = Head(200, (("content-type", "application/json"),))


class Result(NamedTuple):
    """One item's vector."""

    envelope: dict[str, Raw]  # of the answer it came in
    datum: dict[str, Raw]
    tokens: int | None
    stored_at: float | None = None  # wall-clock seconds, where it is from the store
    head: Head = _JSON

    @classmethod
    def of(cls, stored: Stored) -> Result:
        """Raises Unsplittable."""
        parts = take_apart(stored.body if stored.kind == "whole" else b"", 1)
        return cls(parts.envelope, parts.data[0], parts.tokens, stored.created)

    def alone(self) -> bytes:
        """The answer to a request for this item alone: what is stored."""
        return put_together(self.envelope, [self.datum], self.tokens)


class Kind(NamedTuple):
    """What requests of one array have in common."""

    model: str | None
    options: bytes  # a digest of every other field, and of whose it is
    inputs: Literal["text", "ids"]
    headers: tuple[tuple[str, str], ...]
    apart: int = 0  # a number of the request's own, where no two of them may be one array


@dataclass(eq=False, slots=True)
class Item:
    """One text or list of ids, asked once however many requests want it."""

    key: bytes
    kind: Kind
    text: bytes  # as JSON
    weight: int  # tokens, as far as they can be told beforehand
    exact: bool  # whether they can: ids are counted, texts guessed
    fresh: bool  # not to be looked up
    owner: Want | None = None  # who brought it, and in whose turn it waits, though that one may have left
    payer: Want | None = None  # whose tokens it costs
    replace: bool = False  # what is stored of it is of no use
    sent: bool = False
    result: Result | None = None
    call: Call | None = None  # the array that it is in
    wants: dict[Want, None] = field(default_factory=dict)

    def wanted_by(self) -> frozenset[Hashable]:
        return frozenset(self.wants)


def items_of(
    kind: Kind, inputs: Inputs, keys: Sequence[bytes], known: Mapping[bytes, Item], *, fresh: bool
) -> dict[bytes, Item]:
    """A request's items by key, each once: those of its kind that are `known`, and new ones."""
    mine: dict[bytes, Item] = {}
    for key, text, weight in zip(keys, inputs.items, inputs.tokens, strict=True):
        if key not in mine:
            item = known.get(key)
            if item is None or item.kind != kind:
                item = Item(key, kind, text, weight, inputs.kind == "ids", fresh)
            mine[key] = item
    return mine


@dataclass(eq=False, slots=True)
class Call:
    """One array at an engine."""

    kind: Kind
    items: list[Item]
    reader: Subscriber  # ours, of the Flight that carries it
    whole: Want | None  # whose own body it is, as the client wrote it


def results_of(call: Call, head: Head, body: bytes) -> list[Result]:
    """What an engine's answer to an array says of each item. Raises Unsplittable.

    Tokens are told of the array only: ids have as many as they are, a text alone has all, of several texts each
    has its share of the rest.
    """
    items = call.items
    parts = take_apart(body, len(items))
    counts: list[int | None] = [None] * len(items)
    if parts.tokens is not None:
        known = [item.weight if item.exact else None for item in items]
        counts = [*shares(parts.tokens, [item.weight for item in items], known)]
    return [
        Result(parts.envelope, datum, tokens, head=head) for datum, tokens in zip(parts.data, counts, strict=True)
    ]


def wants_of(items: Iterable[Item]) -> list[Want]:
    """Whose these are, in order, each once."""
    return list(dict.fromkeys(want for item in items for want in item.wants))


class Want:
    """One client's request, as its items: it lands when the last one is there."""

    __slots__ = ("_asked", "_items", "_results", "body", "flight", "missing", "unsent")

    def __init__(self, flight: Flight, items: list[Item]) -> None:
        self.flight = flight
        self._items = items  # by place: the same one at several places is asked once
        self._results: dict[Item, Result] = {}
        self._asked: set[Item] = set()  # for this request and paid by it
        self.missing: dict[Item, None] = dict.fromkeys(items)
        self.unsent = 0  # items that wait to be looked up or sent
        self.body: bytes | None = None  # an engine's answer to this very request

    def __repr__(self) -> str:
        return f"<Want {len(self._items) - len(self.missing)}/{len(self._items)}>"

    def is_all(self, items: list[Item]) -> bool:
        """Whether these items, in this order, are the request: then it can go up as the client wrote it."""
        return self._items == items

    def gets(self, item: Item, result: Result) -> bool:
        """True: it was the last one."""
        self.missing.pop(item, None)
        self._results[item] = result
        if result.stored_at is None and item.payer is self:
            self._asked.add(item)
        return not self.missing

    def land(self) -> str:
        """Put the answer together, and end the Flight with it. What it was, as `x-gateway-cache` says it."""
        flight, items = self.flight, self._items
        found = [self._results[item] for item in items]
        made = [one for one in found if one.stored_at is None]
        stored = [one.stored_at for one in found if one.stored_at is not None]
        counts = [one.tokens for one in found]
        tokens = sum(count or 0 for count in counts) if None not in counts else None
        paid = sum(self._results[item].tokens or 0 for item in self._asked)
        from_ = (made or found)[0]
        body = self.body or put_together(from_.envelope, [one.datum for one in found], tokens)
        if tokens is not None:
            flight.usage = Usage(prompt_tokens=tokens, completion_tokens=0)
        flight.items = Items(len(items), len(stored), unpaid=(tokens or 0) - paid)
        verdict = "miss" if self._asked else "attached" if made else "hit"
        if verdict == "hit":
            flight.stored_at = min(stored)
        flight.times.first = flight.times.last = flight.clock()
        self._end(Head(200, from_.head.headers, len(body)), body, verdict)
        return verdict

    def refused(self, head: Head, body: bytes) -> None:
        """The engine's own refusal is the answer."""
        self._end(Head(head.status, head.headers, len(body)), body, "miss")

    def _end(self, head: Head, body: bytes, verdict: str) -> None:
        for reader in self.flight.subscribers:
            if reader.verdict == "miss":
                reader.verdict = verdict
        self.flight.piece(body)
        self.flight.land(head)

    def was_sent(self, call: Flight) -> None:
        """An engine has seen some of it, or may have: times and phase are the call's."""
        flight = self.flight
        flight.backend, flight.attempts = call.backend, max(flight.attempts, call.attempts)
        flight.plan.carried_as = call.plan.request_id
        if flight.times.dispatched is None:
            flight.times.dispatched = call.times.dispatched
        if flight.phase is Phase.QUEUED and reached(call):
            flight.enter(Phase.CONNECTING)
            flight.enter(Phase.PREFILL)

    def clear(self) -> None:
        """It is over: nothing is kept in a circle."""
        self._items, self._results, self._asked, self.missing = [], {}, set(), {}
