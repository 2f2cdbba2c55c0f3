"""An embedding item, the requests that want it, and the composition of a request's answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import msgspec

from proxy.errors import Code, GatewayError
from proxy.flights.cost import was_dispatched
from proxy.flights.embeddings.batches import halves
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.key import PADDING
from proxy.flights.memory import Held, Memory
from proxy.flights.phase import Phase
from proxy.flights.queue.ticket import callers_of
from proxy.flights.spec import FlightSpec, Head, Items, QueueState, headers_in_common, tenant_of
from proxy.redis import Stored
from proxy.wire import (
    LARGE,
    SLICE,
    Inputs,
    Usage,
    Vector,
    array_body,
    envelope_of,
    put_together,
    shares_of,
    take_apart,
)

_JSON: Final = Head(200, (("content-type", "application/json"),))
ITEM_BYTES: Final = 400
"""Memory of a queued input beside its text: 344 bytes measured with tracemalloc for 2,048 short texts, 246 where
another request wants the same."""
RESULT_BYTES: Final = 320  # memory of a vector beside its bytes
STEP: Final = 1 << 18  # bytes by which the charge of a request grows


class Origin(NamedTuple):
    """Which engine answered an array, and when."""

    backend: str | None
    created: float  # when its Flight was created, by the clock of flights
    sent: float | None  # when it was sent to the engine


class Result(NamedTuple):
    """One item's vector."""

    envelope: bytes  # the answer that it came in, without vectors
    vector: Vector
    tokens: int | None
    stored_at: float | None = None  # wall-clock seconds; None: not from the store
    head: Head = _JSON
    origin: Origin | None = None  # None: from the store

    @classmethod
    def of(cls, stored: Stored) -> Result:
        """Raises Unsplittable."""
        parts = take_apart(stored.body if stored.kind == "whole" else b"", 1)
        return cls(envelope_of(parts), Vector.of(parts.data[0]), parts.tokens, stored.created)

    def alone(self) -> bytes:
        """The answer to a request for this item alone, as it is stored."""
        return b"".join(b"".join(pieces) for pieces in put_together(self.envelope, [self.vector], self.tokens))


class BatchKey(NamedTuple):
    """What requests of one array have in common."""

    model: str | None
    options: bytes  # a digest of every other field, and of the tenant
    inputs: Literal["text", "ids"]
    headers: tuple[tuple[str, str], ...]
    apart: int = 0  # a number of the request, where requests may not share arrays


@dataclass(eq=False, slots=True)
class Divided:
    """An array that an engine refused, so that its items are requested in parts."""

    backend: str | None
    left: int  # items that have not come

    def came(self) -> bool:
        """One more has come. True: all have, so no item was the reason for the refusal."""
        self.left -= 1
        return self.left == 0


class EmbeddingItem(msgspec.Struct, eq=False, gc=False):
    """One text or list of ids, requested once for all that want it. The garbage collector does not track it, which
    would take half a second for a million of them: `EmbeddingRequest.clear` leaves no reference cycle."""

    key: bytes
    kind: BatchKey
    text: bytes  # as JSON
    weight: int  # tokens: ids are counted, texts estimated
    fresh: bool  # not to be looked up
    storable: bool = True  # a request that wants it allows its vector to be stored
    owner: EmbeddingRequest | None = None  # the request in whose turn it is queued
    payer: EmbeddingRequest | None = None  # the request that pays its tokens
    replace: bool = False  # its entry in the store does not serve
    sent: bool = False
    result: Result | None = None
    call: ArrayCall | None = None  # the array that it is in
    divided: Divided | None = None  # the largest refused array that it was in
    waiting: EmbeddingRequest | dict[EmbeddingRequest, None] | None = None  # the requests for it, mostly one

    @property
    def requests(self) -> Iterable[EmbeddingRequest]:
        """The requests that want it, in the order of arrival."""
        requests = self.waiting
        return () if not requests else tuple(requests) if isinstance(requests, dict) else (requests,)

    def first(self) -> EmbeddingRequest | None:
        """The request that has wanted it for longest."""
        return next(iter(self.waiting), None) if isinstance(self.waiting, dict) else self.waiting

    def joinable(self, kind: BatchKey, *, fresh: bool) -> bool:
        """Whether a request for this kind may join it. `fresh`: the request refuses a stored vector."""
        if self.kind != kind or (self.call is not None and self.call.failed):
            return False
        return not fresh or self.fresh or self.sent

    def begin(self, request: EmbeddingRequest) -> None:
        """It is new: the request that brings it owns it and pays for it."""
        self.owner = self.payer = request
        self.add(request)

    def move_to(self, owner: EmbeddingRequest | None) -> None:
        """Queue it in this request's turn from now on."""
        self.owner = owner

    def charge_to(self, payer: EmbeddingRequest) -> None:
        """Let this request pay its tokens from now on."""
        self.payer = payer

    def mark_sent(self) -> bool:
        """It is not queued any more. True the first time."""
        first, self.sent = not self.sent, True
        return first

    def put_in(self, call: ArrayCall | None) -> None:
        """Set the array that it is in."""
        self.call = call

    def divide(self, divided: Divided) -> None:
        """An engine refused an array that it was in. The first array, which is the largest, counts."""
        self.divided = self.divided or divided

    def arrive(self, result: Result) -> None:
        """Its vector has come."""
        self.result = result

    def disown(self) -> bool:
        """All requests that wanted it have it. True the first time: a request that joins it later has it at
        once."""
        first = self.owner is not None
        self.owner = self.payer = None
        return first

    def allow_storing(self) -> None:
        """A request that wants it allows its vector to be stored."""
        self.storable = True

    def replace_stored(self) -> None:
        """The store's entry does not serve: overwrite it."""
        self.replace = True

    def add(self, request: EmbeddingRequest) -> None:
        if isinstance(self.waiting, dict):
            self.waiting[request] = None
        else:
            self.waiting = request if self.waiting is None else {self.waiting: None, request: None}

    def drop(self, request: EmbeddingRequest) -> None:
        """This request does not want it any more."""
        if isinstance(self.waiting, dict):
            self.waiting.pop(request, None)
        if self.waiting is request or not self.waiting:
            self.waiting = None

    def request_set(self) -> frozenset[Hashable]:
        return frozenset(self.requests)


def items_of(
    request: EmbeddingRequest,
    inputs: Inputs,
    options: bytes,
    keys: Sequence[bytes],
    apart: int,
    known: Mapping[bytes, EmbeddingItem],
) -> dict[bytes, EmbeddingItem]:
    """Begin a request: its items by key, each once; those in `known` that it may join, and new ones."""
    spec = request.flight.spec
    kind = BatchKey(spec.model, options, inputs.kind, tuple(headers_in_common(spec.headers)), apart)
    mine: dict[bytes, EmbeddingItem] = {}
    items = []
    for key, text, weight in zip(keys, inputs.items, inputs.tokens, strict=True):
        item = mine.get(key)
        if item is None:
            item = known.get(key)
            if item is None or not item.joinable(kind, fresh=spec.fresh):
                item = EmbeddingItem(key, kind, text, weight, spec.fresh, spec.storable)
            elif spec.storable:
                item.allow_storing()
            mine[item.key] = item
        items.append(item)
    request.begins(items)
    return mine


@dataclass(eq=False, slots=True)
class ArrayCall:
    """One array at an engine."""

    kind: BatchKey
    items: list[EmbeddingItem]
    reader: Subscriber  # the embedder's, of its Flight
    whole: EmbeddingRequest | None  # the request whose body is sent, as the client wrote it
    caller: Hashable  # in whose turn it is queued
    since: float  # by the loop's clock, when it was made

    @property
    def flight(self) -> Flight:
        return self.reader.flight

    def callers(self) -> Collection[Hashable]:
        """The callers that want its items now."""
        return {caller for request in requests_of(self.items) for caller in request.callers()}

    def begin(self) -> None:
        """Its items are in it from now on, and its Flight knows the callers that want them."""
        for item in self.items:
            item.put_in(self)
        self.flight.queue_state.read_by(self.callers)

    @property
    def failed(self) -> bool:
        """Whether its Flight has ended without an answer of vectors. It is settled an event loop iteration later;
        until then no request may join its items."""
        flight = self.flight
        return flight.ended and (flight.error is not None or flight.head is None or flight.head.status != 200)

    async def ended(self) -> None:
        """Wait until its Flight has ended, whatever the outcome."""
        if not self.flight.ended:
            end: asyncio.Future[Flight] = asyncio.get_running_loop().create_future()
            self.flight.when_ended(end.set_result)
            await end

    def release(self) -> None:
        """Its items are in it no more, and it leaves no reference cycle."""
        self.flight.when_ended(None)
        self.flight.queue_state.read_by(None)
        for item in self.items:
            item.put_in(None)

    def parts(self) -> list[list[EmbeddingItem]]:
        """The parts in which it is requested again, after a refusal for its content."""
        items = [item for item in self.items if item.waiting is not None]
        again = halves(items, EmbeddingItem.request_set)
        if not again and 0 < len(items) < len(self.items):
            return [items]  # the bad input may be one that was given up meanwhile
        return again


def array_of(items: list[EmbeddingItem]) -> tuple[FlightSpec, QueueState, EmbeddingRequest | None]:
    """The request to an engine for these items, its queue state, and the client's request that it is a copy of, if
    any. It is queued in the turn of the first item's caller, with the latest deadline of all."""
    requests = requests_of(items)
    whole = next((request for request in requests if request.is_all(items)), None)
    spec = (whole or requests[0]).flight.spec
    body = spec.body
    padded = len(body) > 4 * sum(len(item.text) for item in items) + PADDING  # others may want these too
    if (whole is None or padded) and spec.api_request is not None:
        body = array_body(spec.api_request, [item.text for item in items])
    states = [request.flight.queue_state for request in requests]
    last = max(state.latest for state in states)
    queue_state = QueueState(
        owner=(items[0].owner or requests[0]).caller,
        priority=min(state.priority for state in states),
        deadline=last,
        latest=last,
    )
    spec = msgspec.structs.replace(
        spec,
        key=None,
        many=True,
        fresh=False,
        body=body,
        parts=len(items),
    )
    return spec, queue_state, whole


def results_of(
    call: ArrayCall, head: Head, body: bytes, on_fault: Callable[[str, BaseException], None]
) -> list[Result | None]:
    """Each item's result from an engine's answer to an array; None where it cannot be read. Raises Unsplittable.

    Engines count tokens for the array only. Each item has its share of them by its weight, which for a list of ids
    is exact.
    """
    items = call.items
    parts = take_apart(body, len(items))
    counts: Sequence[int | None] = [None] * len(items)
    if parts.tokens is not None:
        try:
            counts = shares_of(parts.tokens, [item.weight for item in items])
        except Exception as e:  # noqa: BLE001 - their vectors are known without their tokens
            on_fault("the tokens of an array", e)
    envelope = envelope_of(parts)
    flight = call.flight
    origin = Origin(flight.backend, flight.times.created, flight.times.dispatched)
    results: list[Result | None] = []
    for datum, tokens in zip(parts.data, counts, strict=True):
        try:
            results.append(Result(envelope, Vector.of(datum), tokens, head=head, origin=origin))
        except Exception as e:  # noqa: BLE001 - one input's vector must not end the others' requests
            on_fault("a vector of an engine's", e)
            results.append(None)
    return results


def requests_of(items: Iterable[EmbeddingItem]) -> list[EmbeddingRequest]:
    """The requests that want these items, in order, each once."""
    return list(dict.fromkeys(request for item in items for request in item.requests))


class EmbeddingRequest:
    """One client's request, as its items: it lands when the last one has come."""

    __slots__ = (
        "_charge", "_items", "_limit", "_places", "asked", "body", "caller", "flight", "held", "lacks",
        "over",
        "paid", "since", "size", "unsent",
    )  # fmt: skip

    def __init__(
        self,
        flight: Flight,
        *,
        caller: Hashable = None,
        limit: int = 1 << 62,
        since: float = 0.0,
    ) -> None:
        """`limit`: bytes that the answer may have."""
        self.flight = flight
        self.caller = caller  # in whose turn its items are queued
        self.held: Held | None = None  # its charge to the memory budget
        self.since = since  # by the loop's clock, when it arrived
        self._limit = limit
        self._items: list[EmbeddingItem] = []  # by position; an item may be at several
        self._places: Counter[EmbeddingItem] | None = None  # where an item is at several positions
        self.lacks = 0  # items that have not come
        self.unsent = 0  # items in its turn that are not looked up or sent yet
        self.over = False  # answered or failed
        self.asked = self.paid = 0  # items requested from an engine for this request, and their tokens
        self.size = 0  # bytes of the answer, as far as it has come
        self._charge = 0  # bytes that are held of it
        self.body: bytes | None = None  # of an engine's answer to exactly this request

    def __repr__(self) -> str:
        return f"<EmbeddingRequest {len(self._items)} places, lacks {self.lacks}>"

    def charge(self, memory: Memory | None, inputs: Inputs) -> None:
        """Charge the memory that it takes while it is queued. Raises GatewayError 503."""
        if memory is not None:
            items, body = inputs.items, self.flight.spec.body
            size = len(body) + sum(map(len, items)) + len(items) * ITEM_BYTES
            self.held = memory.hold(tenant_of(self.caller), "embeddings", size)

    def begins(self, items: list[EmbeddingItem]) -> None:
        """Set its items."""
        places = Counter(items)
        self._items, self.lacks = items, len(places)
        self._places = places if len(places) < len(items) else None

    def is_all(self, items: list[EmbeddingItem]) -> bool:
        """Whether these items, in this order, are the whole request: it can be sent as the client wrote it."""
        return self._items == items

    def callers(self) -> Collection[Hashable]:
        """The callers that read it."""
        return callers_of(self.flight)

    def missing(self) -> Iterator[EmbeddingItem]:
        """The items that have not come, each once."""
        return iter(dict.fromkeys(item for item in self._items if item.result is None or item.waiting is not None))

    @property
    def step(self) -> int:
        """The work of one slice of its answer, in items."""
        return min(len(self._items), SLICE)

    def changes_to(self, caller: Hashable) -> None:
        """Queue its items in another caller's turn from now on."""
        self.caller = caller

    def set_unsent(self, count: int) -> None:
        """Set the number of items that are queued in its turn."""
        self.unsent = count

    def enqueue(self) -> None:
        """One more item is queued in its turn."""
        self.unsent += 1

    def dequeue(self) -> bool:
        """One item less is queued in its turn. True: none is left."""
        self.unsent -= 1
        return self.unsent <= 0

    def answered_by(self, body: bytes) -> None:
        """An engine has answered exactly this request: the body is passed on as it is."""
        self.body = body

    def ends(self) -> None:
        """It is over: answered or failed."""
        self.over = True

    def gets(self, item: EmbeddingItem, result: Result) -> bool:
        """One of its items has come. True: it was the last one. Raises GatewayError where the answer is
        larger than may be, or there is no memory for it."""
        self.lacks -= 1
        if result.stored_at is None and item.payer is self:
            self.asked += 1
            self.paid += result.tokens or 0
        size, places = result.vector.size, 1 if self._places is None else self._places[item]
        self.size += size * places
        self._charge += size + RESULT_BYTES + (size * places if size < LARGE else 0)
        if self.body is None and self.size > self._limit:
            raise _too_large(len(self._items), self._limit)
        if self.held is not None and self._charge > self.held.size:
            self.held.need(self._charge + STEP)
        return not self.lacks

    def land(self) -> Iterator[None]:
        """Put the answer together, a slice at a time, and end the Flight with it."""
        flight, items = self.flight, self._items
        results = [item.result for item in items if item.result is not None]
        made = [result for result in results if result.stored_at is None]
        stored = [result.stored_at for result in results if result.stored_at is not None]
        counts = [result.tokens for result in results]
        tokens = sum(count or 0 for count in counts) if None not in counts else None
        sample = (made or results)[0]
        slices: Iterable[list[bytes]] = ([self.body],) if self.body is not None else ()
        for pieces in slices or put_together(sample.envelope, [result.vector for result in results], tokens):
            for piece in pieces:
                flight.append_body(piece)
            yield
        self._keep_charge()
        flight.land_composed(
            Head(200, sample.head.headers, flight.size),
            Items(len(items), len(stored), unpaid=(tokens or 0) - self.paid),
            None if tokens is None else Usage(prompt_tokens=tokens, completion_tokens=0),
            origin="miss" if self.asked else "attached" if made else "hit",
            stored_at=None if made else min(stored),
        )

    def refused(self, head: Head, body: bytes) -> None:
        """The engine's own refusal is the answer."""
        self.flight.append_body(body)
        self._keep_charge()
        self.flight.land(Head(head.status, head.headers, len(body)))

    def _keep_charge(self) -> None:
        """Charge the answer alone from now on, until its readers have it. Raises GatewayError 503."""
        if self.held is not None:
            self.held.need(sum({id(piece): len(piece) for piece in self.flight.log}.values()))
            self.flight.holds(self.held)
            self.held = None

    def was_sent(self, call: Flight) -> None:
        """A call has been sent with some of its items: it takes over times and phase."""
        flight = self.flight
        flight.follows(call)
        if flight.phase is Phase.QUEUED and was_dispatched(call):
            flight.enter(Phase.CONNECTING)
            flight.enter(Phase.PREFILL)

    def clear(self) -> None:
        """Release its items and its charge, so that no reference cycle is left."""
        self._items, self._places = [], None
        if self.held is not None:
            self.held.release()
            self.held = None


def _too_large(inputs: int, limit: int) -> GatewayError:
    return GatewayError(
        Code.PROMPT_TOO_LARGE,
        f"The answer to these {inputs} inputs would exceed {limit} bytes (max_flight_bytes); "
        "send fewer inputs in one request, or set encoding_format to base64.",
        param="input",
    )


def no_parts(why: str) -> GatewayError:
    return GatewayError(Code.UPSTREAM_PROTOCOL, f"The answer cannot be split into its vectors: {why}.")
