"""Embeddings across clients: each request is taken apart into items, which are looked up, sent in arrays and put
together again.

It is given Flights and ends every one of them. Its arrays are separate Flights; `_run` is the life of one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import chain, count
from typing import Final

from proxy.errors import Code, GatewayError, shutting_down
from proxy.flights.embeddings.batches import halves
from proxy.flights.embeddings.delivery import Delivery
from proxy.flights.embeddings.faults import EmbedFaults
from proxy.flights.embeddings.items import (
    ArrayCall,
    BatchKey,
    Divided,
    EmbeddingItem,
    EmbeddingRequest,
    Result,
    array_of,
    items_of,
    no_parts,
    requests_of,
    results_of,
)  # fmt: skip
from proxy.flights.embeddings.metrics import EmbedMetrics
from proxy.flights.embeddings.queue import ARRAYS_A_TURN, EmbedQueue
from proxy.flights.embeddings.store import ItemStore
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.key import Keyer
from proxy.flights.memory import Memory
from proxy.flights.phase import Phase
from proxy.flights.queue.metrics import REASONS
from proxy.flights.spec import Head, headers_in_common
from proxy.redis import Cache
from proxy.telemetry import Metrics, internal
from proxy.wire import ApiRequest, Inputs, Unsplittable, inputs_of

Parts = list[list[EmbeddingItem]]
"""The parts of an array that are requested again, each by itself."""

_ABOUT_CONTENT: Final = frozenset({400, 413, 422, 500})
"""Refusals that a single item may have caused: an engine answers 500 to an input that it cannot compute. Any other
status concerns the whole array."""

DROPS: Final = 4096
"""Items of requests that are over, given up in one turn of the loop: 9 ms. 300 clients with 2,048 inputs each that
left at once held it for 1.3 s."""

_A_TURN: Final = "a turn of the embeddings"
_ARRAY: Final = "an array of embeddings"


class Embedder:
    """Serves requests for embeddings by arrays. No item is delayed to fill an array beyond `window` seconds, 0 by
    default: an array holds the items that arrived in one event loop iteration, or while as many arrays of its kind
    were under way as may be. An exception in one request's part of the work ends that request alone."""

    def __init__(
        self,
        *,
        group: FlightGroup,
        submit: Callable[[Flight], None],
        cache: Cache | None,
        keyer: Keyer,
        metrics: Metrics,
        counts: EmbedMetrics,
        loop: asyncio.AbstractEventLoop,
        items: int,
        tokens: int,
        window: float,
        calls: Callable[[str | None], int],
        mixes: Callable[[str | None], bool],
        makes: Callable[[str | None, bytes], bool] = lambda model, build: True,
        build_of: Callable[[str | None, str | None, float | None], bytes | None] = lambda *asked: b"",
        apart: Callable[[str | None], None] = lambda backend: None,
        limit: int,
        max_batch: int,
        largest: int = 1 << 62,
        memory: Memory | None = None,
        promote: Callable[[Flight, int, float, Subscriber | None, Hashable], None] = lambda *given: None,
        refused: Callable[[str], None] = lambda why: None,
        on_fault: Callable[[str, BaseException], None] = lambda where, error: None,
    ) -> None:
        """`calls`: how many arrays of one kind may be under way for a model; `mixes`: whether its engines take
        several clients' inputs in one array; `apart`: called with an engine that refused that and took them in
        parts; `limit`: requests that may be queued; `largest`: bytes of an answer; `promote`: called with an array
        that a more urgent request wants too; `refused`: called with the code of a rejection."""
        self._group = group
        self._submit = submit
        self._keyer = keyer
        self._metrics = metrics
        self._faults = EmbedFaults(on_fault, loop.call_later, self._heal)
        self.store = ItemStore(
            cache,
            makes=makes,
            build_of=build_of,
            max_batch=max_batch,
            on_batch=metrics.batch,
            found=self._found,
            looked=self._soon,  # the next look-up is in a later turn: without a store it would end inside this one
            lost=self._lost,
            on_fault=self._faults.tell,
        )
        self._counts = counts
        self._loop = loop
        self._room: Callable[[BatchKey], int] = lambda kind: calls(kind.model)
        self._mixes = mixes
        self._apart = apart
        self._numbers = count(1)
        self._largest = largest
        self._memory = memory
        self._refused = refused
        self.queue = EmbedQueue(
            items=items, tokens=tokens, window=window, limit=limit, clock=loop.time, promote=promote
        )
        self.arrays = self.queue.arrays
        self._items: dict[bytes, EmbeddingItem] = {}  # items that a request may join
        self._requests: dict[Flight, EmbeddingRequest] = {}
        self._tasks: dict[asyncio.Task[Parts], tuple[BatchKey, list[EmbeddingItem]]] = {}  # one for each array
        self._delivery = Delivery(
            soon=self._soon,
            landed=self._landed,
            failed=lambda request, e: self._fail(request, self._faults.error(e, "an answer of embeddings")),
            lost=self._lost,
            handed_out=self._handed_out,
        )
        self._turn_due = False
        self._drops = DROPS  # left in this turn
        self._dropping: deque[tuple[EmbeddingRequest, list[EmbeddingItem]]] = deque()
        self._window: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Embedder {len(self._requests)} requests, {self.arrays!r}>"

    def __len__(self) -> int:
        held = len(self._requests) + len(self._items) + len(self._dropping)
        return held + len(self._tasks) + len(self._delivery)

    def __contains__(self, flight: Flight) -> bool:
        """Whether it is a request that the embedder serves."""
        return flight in self._requests

    def take(self, flight: Flight, scope: bytes) -> bool:
        """Take a request. False if its items cannot be told apart: the scheduler takes it.

        Raises GatewayError 429 or 503, and has forgotten it then: the queue is full, there is no memory for it, or
        the gateway is shutting down.
        """
        spec = flight.spec
        api_request = spec.api_request
        request = None
        try:
            inputs = None if api_request is None else inputs_of(api_request)
            if inputs is None or api_request is None:
                return False
            if self._closed:
                raise shutting_down(retry_after=1)
            owner = flight.queue_state.resolve_owner()
            makes_room = self.queue.room(owner, flight.queue_state.priority)
            if makes_room is not None:
                self._refused("pushed_out")
                self._fail(*makes_room)
            request = EmbeddingRequest(flight, caller=owner, limit=self._largest, since=self._loop.time())
            self._requests[flight] = request
            request.charge(self._memory, inputs)
            flight.when_abandoned(
                partial(self._faults.safely, "a request for embeddings that was left", self._left)
            )
            begin = partial(self._begin, request, api_request, inputs, scope)
            if self.queue.begins(request, len(inputs.items), begin):
                begin()
            self._soon()
        except BaseException as e:
            self._group.remove(flight)
            if request is not None:
                self._finish(request)
                request.clear()
            if not isinstance(e, GatewayError):
                self._faults.tell("a request for embeddings", e)
            elif e.code.code in REASONS:
                self._refused(e.code.code)
            raise
        return True

    def _begin(self, request: EmbeddingRequest, api_request: ApiRequest, inputs: Inputs, scope: bytes) -> None:
        apart = 0 if self._mixes(api_request.model) else next(self._numbers)
        headers = headers_in_common(request.flight.spec.headers)
        options, keys = self._keyer.items(api_request, inputs.items, tenant=scope, headers=headers)
        self._join(request, items_of(request, inputs, options, keys, apart, self._items))
        self._delivery.work()

    def joined(self, reader: Subscriber) -> None:
        """A reader joins a request: its items become as urgent as the reader, and are queued in the reader's turn
        where that comes earlier."""
        request = self._requests.get(reader.flight)
        if request is not None and reader.flight.phase is Phase.QUEUED:
            self._faults.safely("a request for embeddings that is joined", self._reads, request, reader.caller)

    def _reads(self, request: EmbeddingRequest, caller: Hashable) -> None:
        before = request.caller
        self.queue.joined(request, caller)
        if request.caller != before:
            for item in request.missing():
                self.store.change_turn(item)

    def close(self) -> None:
        """Fail every request, so that every array is cancelled at its engine."""
        self._closed = True
        if self._window is not None:
            self._window.cancel()
        for request in tuple(self._requests.values()):
            self._fail(request, shutting_down(retry_after=1))
        self._drop_waiting(len(self._dropping))
        self._delivery.clear()

    async def wait_closed(self) -> None:
        """Wait for the end of every array. Each ends with its Flight."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks))

    def _join(self, request: EmbeddingRequest, mine: dict[bytes, EmbeddingItem]) -> None:
        """Join the items that are under way, and begin the others."""
        joined = 0
        calls: set[ArrayCall | None] = set()
        for key, item in mine.items():
            if item.owner is None and item.result is None:
                item.begin(request)
                self._items[key] = item
                request.enqueue()
                if not self.store.add(item):
                    self.queue.offer(item)
                continue
            joined += 1
            item.add(request)
            if item.result is not None:
                self._delivery.add(item)
            elif item.call is not None:
                request.was_sent(item.call.flight)
                calls.add(item.call)
            elif item.owner is not None and self.queue.sooner(request.caller, item.owner.caller):
                self.queue.take_over(item, request)
                self.store.change_turn(item)
        self._counts.joined(joined)
        self.queue.adds(request)
        self.queue.hurry(calls, request, request.caller)

    def _soon(self) -> None:
        """Schedule a turn at the end of this event loop iteration: all that arrives in it is one batch."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(partial(self._faults.safely, _A_TURN, self._turn))

    def _turn(self) -> None:
        self._turn_due = False
        self._drops = DROPS
        try:
            self._drop_waiting()
            self._delivery.turn()
            for request, begin in self.queue.arrived():
                try:
                    begin()
                except Exception as e:  # noqa: BLE001 - the requests after it begin
                    self._fail(request, self._faults.error(e, "a request for embeddings"))
            self.store.look()
            due = self.queue.due(self._room)
            for kind, items in due:
                task = self._loop.create_task(self._run(kind, items))
                self._tasks[task] = kind, items
                task.add_done_callback(partial(self._faults.safely, _ARRAY, self._ended))
            if len(due) == ARRAYS_A_TURN or self.queue.crowded:
                self._soon()
            if self.arrays.window > 0:
                deadline = self.arrays.next_deadline(self._room)
                if deadline is not None and self._window is None:
                    self._window = self._loop.call_at(
                        deadline, partial(self._faults.safely, _A_TURN, self._window_closed)
                    )
        except Exception as e:  # noqa: BLE001 - `_heal` checks the queued items, and another turn follows
            self._faults.tell(_A_TURN, e)

    def _window_closed(self) -> None:
        self._window = None
        self._turn()

    def _found(self, item: EmbeddingItem, result: Result | None) -> None:
        """The look-up of an item has ended."""
        if result is None:
            self.queue.offer(item)
            return
        self._counts.cached(1)
        self._comes(item, result)
        self._forget(item)

    def _forget(self, item: EmbeddingItem) -> None:
        if self._items.get(item.key) is item:
            del self._items[item.key]

    # -- an array ---------------------------------------------------------------------------------

    async def _run(self, kind: BatchKey, items: list[EmbeddingItem]) -> Parts:
        """The life of one array, from its items to their vectors. Returns the parts to be requested again.

        When no request wants its items any more, its reader leaves, which cancels it at the engine at once: see
        `_drop_items`."""
        items = [item for item in items if item.waiting is not None]
        if not items:
            return []  # all requests for them have ended
        try:
            spec, queue_state, whole = array_of(items)
        except Exception as e:  # noqa: BLE001 - isolated by bisection, like a refusal of an engine
            return self._isolate(items, e)
        flight = self._group.launch(spec, queue_state)
        reader = self._group.attach(flight, usage=True, whole=True, client=False)
        call = ArrayCall(kind, items, reader, whole, queue_state.owner, self._loop.time())
        refusal = None
        try:
            call.begin()
            for item in items:
                self.queue.sent(item)
            self._counts.array(len(items))
            try:
                self._submit(flight)
            except GatewayError as e:
                refusal = e
                if not flight.ended:
                    self._faults.safely(_ARRAY, flight.fail, e)
            else:
                await call.ended()
        finally:
            self._group.remove(flight)
            self._faults.safely(_ARRAY, reader.leave)
            call.release()
        if refusal is not None:
            return self._blame(items, self.queue.turned_away(call, requests_of(items), refusal), refusal)
        return self._settle(call)

    def _ended(self, task: asyncio.Task[Parts]) -> None:
        """An array is over: its place is free. An exception of it ends its requests, and nothing else."""
        if task not in self._tasks:
            return  # `_heal` has done it
        kind, items = self._tasks[task]
        parts: Parts = []
        try:
            parts = task.result()
        except (Exception, asyncio.CancelledError) as e:  # noqa: BLE001 - the other arrays go on
            error = (
                shutting_down(retry_after=1)
                if isinstance(e, asyncio.CancelledError)
                else self._faults.error(e, _ARRAY)
            )
            for request in requests_of(item for item in items if item.result is None):
                self._fail(request, error)
        again = [[item for item in part if item.waiting is not None] for part in parts]
        for item in chain.from_iterable(again):
            self._items.setdefault(item.key, item)  # it may be joined again
        self.arrays.ended(kind, again)
        del self._tasks[task]
        self._soon()

    def _isolate(self, items: list[EmbeddingItem], e: Exception) -> Parts:
        """Bisect an array that cannot be built. One request's part, once isolated, fails."""
        self._faults.tell(_ARRAY, e)
        parts = halves(items, EmbeddingItem.request_set)
        return parts or self._blame(items, requests_of(items), internal())

    def _blame(self, items: Iterable[EmbeddingItem], blamed: list[EmbeddingRequest], error: GatewayError) -> Parts:
        """Fail the blamed requests of an array. Returns the items of the others, to be requested again."""
        failed = set(blamed)
        rest = [item for item in items if not failed.issuperset(item.requests)]
        for request in blamed:
            self._fail(request, error)
        return [rest]

    def _settle(self, call: ArrayCall) -> Parts:
        """An array's Flight has ended, with any outcome: hand out its answer, or return the parts to be requested
        again."""
        flight = call.flight
        items = [item for item in call.items if item.waiting is not None]
        requests = requests_of(items)
        for request in requests:
            self._faults.safely(_ARRAY, request.was_sent, flight)
        error = shutting_down(retry_after=1) if flight.phase is Phase.CANCELLED else flight.error
        head, body = flight.head or Head(), b"".join(flight.log)
        if error is not None:
            parts = halves(items, EmbeddingItem.request_set) if error.code is Code.UPSTREAM_INCOMPLETE else []
            if not parts:
                return self._blame(items, self.queue.given_up(call, requests, error), error)
            self._counts.split()  # the vector of one item is missing, perhaps not those of the others
            return parts
        if head.status == 200:
            self._answered(call, requests, head, body)
            return []
        parts = call.parts() if head.status in _ABOUT_CONTENT else []
        if parts:
            self._counts.split()
            # The items that were given up count too: one of them may have been the reason.
            divided = Divided(flight.backend, len(call.items))
            for item in items:
                item.divide(divided)
            return parts
        if head.status in _ABOUT_CONTENT:
            self._counts.refused(len(items))
        for request in requests:
            self._refuse(request, head, body)
        return []

    def _answered(self, call: ArrayCall, requests: Iterable[EmbeddingRequest], head: Head, body: bytes) -> None:
        whole = call.whole
        if whole is not None:
            whole.answered_by(body)
        try:
            results = results_of(call, head, body, self._faults.tell)
        except Unsplittable as e:
            for request in requests:
                if request is whole:
                    self._refuse(request, head, body)  # this is the engine's answer to its own body
                else:
                    self._fail(request, no_parts(str(e)))
            return
        self._counts.asked(len(results))
        for item, result in zip(call.items, results, strict=True):
            try:
                if result is None:
                    raise no_parts("a vector cannot be read")
                self._comes(item, result)
            except Exception as e:  # noqa: BLE001 - the other items come
                self._lost(item, e)
        self._delivery.work()

    def _comes(self, item: EmbeddingItem, result: Result) -> None:
        item.arrive(result)
        if item.divided is not None and item.divided.came():
            self._apart(item.divided.backend)
        self.queue.sent(item)
        self._delivery.add(item)

    def _handed_out(self, item: EmbeddingItem, result: Result) -> None:
        """Store an item. It can be joined until that is settled."""
        self.store.keep(item, result, partial(self._forget, item))

    def _landed(self, request: EmbeddingRequest) -> None:
        self._finish(request)
        if request.flight.stored_at is not None:
            self._metrics.flight_landed("hit", request.flight.spec.model, None)
        request.clear()

    # -- ends -------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Queue wanted items that are in no queue, forget items without a request, and end arrays whose task is
        done."""
        for task in [task for task in self._tasks if task.done()]:
            self._ended(task)
        under_way = {item for _, items in self._tasks.values() for item in items}
        self.queue.recount(self._requests.values(), self._items.values())
        for item in [item for request in self._requests.values() for item in request.missing()]:
            if item.result is not None:
                self._delivery.add(item)
            elif item not in under_way and not self.store.waits(item) and not self.queue.waits(item):
                self.queue.offer_again(item)
        for item in [item for item in self._items.values() if item.waiting is None and item.result is None]:
            self._forget(item)
        if self._window is not None:
            self._window.cancel()
            self._window = None  # the next turn sets it again
        self._turn_due = False  # a turn that raised at its start has left it set
        self._soon()

    def _lost(self, item: EmbeddingItem, e: Exception) -> None:
        """An item failed: the requests that want it fail."""
        error = self._faults.error(e, "an embedding")
        for request in item.requests:
            self._fail(request, error)
        self._forget(item)

    def _refuse(self, request: EmbeddingRequest, head: Head, body: bytes) -> None:
        if request.over:
            return
        self._finish(request)
        self._faults.safely("a refusal of embeddings", request.refused, head, body)
        self._fail(request, internal())  # if that did not end it

    def _fail(self, request: EmbeddingRequest, error: GatewayError) -> None:
        self._finish(request)
        if not request.flight.ended:
            self._faults.safely("the failure of embeddings", request.flight.fail, error)
        request.clear()

    def _left(self, flight: Flight) -> None:
        """The last reader of a request left."""
        request = self._requests[flight]
        try:
            for call in {item.call for item in request.missing()}:
                if call is not None:
                    request.was_sent(call.flight)
        finally:
            self._finish(request)
            flight.cancel()
            request.clear()

    def _finish(self, request: EmbeddingRequest) -> None:
        """It is over: drop the items that no other request wants, also those that are at an engine."""
        request.ends()
        self._requests.pop(request.flight, None)
        self._group.remove(request.flight)
        request.flight.when_abandoned(None)
        where = "a request for embeddings that is over"
        self._faults.safely(where, self.queue.ends, request)
        items = list(request.missing())
        if not items:
            return
        self._soon()
        if self._dropping or self._drops <= 0:
            self._dropping.append((request, items))
            return
        self._drops -= len(items)
        self._faults.safely(where, self._drop_items, request, items)

    def _drop_waiting(self, least: int = 0) -> None:
        """Drop the items of requests that were over when this turn had dropped enough, of `least` at any rate."""
        while self._dropping and (self._drops > 0 or least > 0):
            request, items = self._dropping.popleft()
            least -= 1
            self._drops -= len(items)
            self._faults.safely("a request for embeddings that is over", self._drop_items, request, items)
        if self._dropping:
            self._soon()

    def _drop_items(self, request: EmbeddingRequest, items: Sequence[EmbeddingItem]) -> None:
        calls: set[ArrayCall] = set()
        for item in items:
            try:
                call = self._drop_item(item, request)
            except Exception as e:  # noqa: BLE001 - the other items are given up too
                self._faults.tell("an embedding that is given up", e)
                continue
            if call is not None:
                calls.add(call)
        for call in calls:
            if not any(item.waiting is not None for item in call.items):
                self._faults.safely("an abandoned array", call.reader.leave)  # the engine stops

    def _drop_item(self, item: EmbeddingItem, request: EmbeddingRequest) -> ArrayCall | None:
        """A request does not want an item any more. Returns its call, if no other request wants the item. The
        oldest request that does is its heir: it pays for the item, unless that has been sent."""
        item.drop(request)
        heir = item.first()
        if item.result is not None:
            return None
        if heir is not None:
            if item.call is None:
                item.charge_to(heir)
                if item.owner is request:
                    self.queue.take_over(item, heir)
            return None
        self._forget(item)
        if not self.store.discard(item):
            self.queue.discard(item)
        return item.call
