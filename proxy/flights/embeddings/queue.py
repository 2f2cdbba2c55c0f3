"""The queue of embeddings: the turn in which each item is queued, and which request makes room in a full queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import Final

from proxy.errors import Code, GatewayError
from proxy.flights.embeddings.batches import ArrayBatcher
from proxy.flights.embeddings.items import ArrayCall, BatchKey, EmbeddingItem, EmbeddingRequest
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.queue.shares import Shares
from proxy.flights.spec import tenant_of
from proxy.wire import SLICE

ARRAYS_A_TURN: Final = 16  # of the event loop
_ABOUT_CALLER: Final = frozenset(
    {Code.QUEUE_FULL, Code.QUEUE_SHARE, Code.QUEUE_TIMEOUT, Code.DEADLINE_UNMEETABLE, Code.MEMORY_FULL}
)
"""Refusals that concern the caller in whose turn an array was to be queued."""


class EmbedQueue:
    """At most `limit` requests are queued; a request is, until all items in its turn have been sent."""

    def __init__(
        self,
        *,
        items: int,
        tokens: int,
        window: float,
        limit: int,
        clock: Callable[[], float],
        promote: Callable[[Flight, int, float, Subscriber | None, Hashable], None],
    ) -> None:
        """`promote` is called with an array that a more urgent request wants too."""
        self.arrays: ArrayBatcher[BatchKey, EmbeddingItem] = ArrayBatcher(
            items=items, tokens=tokens, window=window
        )
        self._waiting: Shares[EmbeddingRequest] = Shares()
        self._limit = limit
        self._clock = clock
        self._promote = promote
        self._arriving: deque[tuple[EmbeddingRequest, Callable[[], None]]] = deque()
        self._begun = False  # a large request has, in this turn of the loop

    def __repr__(self) -> str:
        return f"<EmbedQueue {sum(self._waiting.lengths())} requests, {self.arrays!r}>"

    def __len__(self) -> int:
        return sum(self._waiting.lengths())

    def room(self, caller: Hashable, priority: int) -> tuple[EmbeddingRequest, GatewayError] | None:
        """The request that makes room for a new one of this caller, and its error; None if there is room. Raises
        GatewayError 429 or 503 if none makes room."""
        if len(self) < self._limit:
            return None
        return self._waiting.make_room(caller, priority, self._limit, EmbeddingRequest.callers)

    def begins(self, request: EmbeddingRequest, inputs: int, begin: Callable[[], None]) -> bool:
        """Whether a request begins at once. One large request does in a turn, the next ones in later turns: see
        `arrived`."""
        if inputs <= SLICE:
            return True
        if self._begun:
            request.set_unsent(1)  # so that it counts as queued
            self.adds(request)
            self._arriving.append((request, partial(self._begin, request, begin)))
            return False
        self._begun = True
        return True

    @property
    def crowded(self) -> bool:
        """Whether large requests have not begun yet."""
        return bool(self._arriving)

    def arrived(self) -> Iterator[tuple[EmbeddingRequest, Callable[[], None]]]:
        """A new turn: the large request that begins in it, if there is one."""
        self._begun = False
        while self._arriving and not self._begun:
            request, begin = self._arriving.popleft()
            if not request.over:
                self._begun = True
                yield request, begin

    def _begin(self, request: EmbeddingRequest, begin: Callable[[], None]) -> None:
        request.set_unsent(0)
        self.ends(request)
        begin()

    def adds(self, request: EmbeddingRequest) -> None:
        """Count a request as queued, if any of its items is."""
        if request.unsent:
            self._waiting.add(request, request.caller, request.flight.queue_state.priority)

    def ends(self, request: EmbeddingRequest) -> None:
        """No item of a request is queued any more."""
        self._waiting.drop(request, request.caller, request.flight.queue_state.priority)

    def sooner(self, caller: Hashable, than: Hashable) -> bool:
        """Whether a caller has fewer requests queued than another, even with one more."""
        return self._waiting.lighter(caller, than)

    def offer(self, item: EmbeddingItem) -> None:
        """Enqueue an item for an array."""
        owner = item.owner
        if owner is not None:
            self.arrays.offer(item.kind, owner, item, item.weight, self._clock(), tenant_of(owner.caller))

    def discard(self, item: EmbeddingItem) -> None:
        """Remove an item."""
        owner = item.owner
        if owner is not None:
            self.arrays.discard(item.kind, owner, item, tenant_of(owner.caller))

    def waits(self, item: EmbeddingItem) -> bool:
        owner = item.owner
        return owner is not None and self.arrays.waits(item.kind, owner, item, tenant_of(owner.caller))

    def recount(self, requests: Iterable[EmbeddingRequest], items: Iterable[EmbeddingItem]) -> None:
        """Count anew which requests are queued, and for how many items."""
        for item in items:
            for request in item.requests:
                if request.over:
                    item.drop(request)
        self._waiting = Shares()
        for request in requests:
            request.set_unsent(sum(item.owner is request and not item.sent for item in request.missing()))
            self.adds(request)

    def offer_again(self, item: EmbeddingItem) -> None:
        """Enqueue an item that was lost, in the turn of a request that wants it."""
        item.put_in(None)
        if item.owner is None or item.owner.over:
            item.move_to(item.first())
        self.offer(item)

    def due(self, calls: Callable[[BatchKey], int]) -> list[tuple[BatchKey, list[EmbeddingItem]]]:
        """See `ArrayBatcher.due`: a few at a time."""
        return self.arrays.due(self._clock(), calls, ARRAYS_A_TURN)

    def sent(self, item: EmbeddingItem) -> None:
        """It is not queued for an array or a look-up any more."""
        owner = item.owner
        if owner is not None and item.mark_sent() and owner.dequeue():
            self.ends(owner)

    def take_over(self, item: EmbeddingItem, request: EmbeddingRequest) -> None:
        """Move an item to another request's turn."""
        owner = item.owner
        if owner is None or item.sent:
            item.move_to(request)
            return
        queued = self.arrays.leave(item.kind, owner, item, tenant_of(owner.caller))
        request.enqueue()
        if owner.dequeue():
            self.ends(owner)
        self.adds(request)
        item.move_to(request)
        if queued:
            self.offer(item)

    def change_turn(self, request: EmbeddingRequest, caller: Hashable) -> None:
        """Move a request's queued items to another caller's turn."""
        mine, leave = [item for item in request.missing() if item.owner is request], self.arrays.leave
        queued = [item for item in mine if leave(item.kind, request, item, tenant_of(request.caller))]
        self.ends(request)
        request.changes_to(caller)
        self.adds(request)
        for item in queued:
            self.offer(item)

    def joined(self, request: EmbeddingRequest, caller: Hashable) -> None:
        """Another caller reads a request."""
        if self.sooner(caller, request.caller):
            self.change_turn(request, caller)
        self.hurry({item.call for item in request.missing()}, request, caller)

    def hurry(self, calls: Iterable[ArrayCall | None], request: EmbeddingRequest, caller: Hashable) -> None:
        """Make arrays as urgent as a request, and move them to a caller's turn where that comes earlier."""
        state = request.flight.queue_state
        for call in calls:
            if call is not None:
                self._promote(call.flight, state.priority, state.latest, None, caller)

    def turned_away(
        self, call: ArrayCall, requests: list[EmbeddingRequest], error: GatewayError
    ) -> list[EmbeddingRequest]:
        """The requests that fail with an array that the request queue rejected. If the rejection concerns one
        caller: its requests, but for those that have readers of other callers."""
        mine = [request for request in requests if request.caller == call.caller]
        if error.code not in _ABOUT_CALLER or not mine:
            return requests
        return [request for request in mine if not self._goes_on(request, error)]

    def given_up(
        self, call: ArrayCall, requests: list[EmbeddingRequest], error: GatewayError
    ) -> list[EmbeddingRequest]:
        """The requests that fail with an array. A queue timeout does not concern requests that came later."""
        if error.code is not Code.QUEUE_TIMEOUT:
            return requests
        since = call.since
        return [
            request
            for request in requests
            if request.since <= since and not request.flight.refuse(error, lambda reader: reader.since <= since)
        ]

    def _goes_on(self, request: EmbeddingRequest, error: GatewayError) -> bool:
        mine = request.caller
        others = {*request.callers()} - {mine}
        if not others or not request.flight.refuse(error, lambda reader: reader.caller == mine):
            return False
        self.change_turn(request, others.pop())
        return True
