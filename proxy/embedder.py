"""Owns embeddings across clients: each request taken apart into items, looked up, asked in arrays, put together.
Must not know HTTP, clients or engines: it is given Flights, ends each, and asks by Flights of its own.
Called by the gateway (take) and the app (lifecycle)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Final

from proxy.arrays import Arrays, halves
from proxy.batcher import queue_full
from proxy.cache import Cache
from proxy.embed_item import Call, Item, Kind, Result, Want, items_of, results_of, wants_of
from proxy.embed_metrics import EmbedMetrics
from proxy.embed_store import ItemStore
from proxy.errors import Code, GatewayError
from proxy.flight import Flight
from proxy.group import FlightGroup
from proxy.key import PADDING, Keyer
from proxy.metrics import Metrics
from proxy.phase import Phase
from proxy.plan import Head, headers_in_common
from proxy.wire.vectors import Unsplittable, array_body, inputs_of

_ABOUT_CONTENT: Final = frozenset({400, 413, 422, 500})
"""Refusals that one item may have brought on all: an engine says 500 to an input that it cannot compute. What else
it says is about all of them."""


class Embedder:
    """Nothing waits longer for company than `window` seconds, 0 by default: an array is what came in one turn of
    the loop, or while as many calls of its kind as may be were under way."""

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
        limit: int,
        max_batch: int,
    ) -> None:
        """`calls`: how many arrays of one kind may be under way for a model; `mixes`: whether its engines may be
        given several clients' inputs in one; `limit`: requests that may wait."""
        self._group = group
        self._submit = submit
        self._keyer = keyer
        self._metrics = metrics
        self._store = ItemStore(
            cache, max_batch=max_batch, on_batch=metrics.batch, found=self._found, looked=self._soon
        )  # `looked` asks for a turn: with the store away each look-up would else end inside the one before it
        self._counts = counts
        self._loop = loop
        self._calls_for = calls
        self._mixes = mixes
        self._numbers = count(1)
        self._limit = limit
        self.arrays: Arrays[Kind, Item] = Arrays(items=items, tokens=tokens, window=window)
        self._items: dict[bytes, Item] = {}  # that a request may join
        self._wants: dict[Flight, Want] = {}
        self._waiting: set[Want] = set()
        self._calls: set[Call] = set()
        self._turn_due = False
        self._window: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Embedder {len(self._wants)} requests, {self.arrays!r}>"

    def __len__(self) -> int:
        return len(self._wants) + len(self._items) + len(self._calls)

    def take(self, flight: Flight, scope: bytes) -> bool:
        """Take charge of a request. False where its items cannot be told apart: it is the scheduler's.

        Raises GatewayError 503 (and forgets it) when too many wait, or when all is ending.
        """
        ask = flight.plan.ask
        inputs = None if ask is None else inputs_of(ask)
        if inputs is None or ask is None:
            return False
        try:
            if self._closed:
                raise _ending()
            if len(self._waiting) >= self._limit:
                raise queue_full(self._limit)
            headers = headers_in_common(flight.plan.headers)
            options, keys = self._keyer.items(ask, inputs.items, tenant=scope, headers=headers)
        except GatewayError:
            self._group.remove(flight)
            raise
        apart = 0 if self._mixes(ask.model) else next(self._numbers)
        kind = Kind(ask.model, options, inputs.kind, tuple(headers), apart)
        mine = items_of(kind, inputs, keys, {} if flight.plan.fresh else self._items, fresh=flight.plan.fresh)
        want = self._wants[flight] = Want(flight, [mine[key] for key in keys])
        flight.on_empty = self._left
        self._join(want, mine)
        return True

    def asked_for(self, flight: Flight) -> set[Flight]:
        """The arrays that wait at the scheduler, or are at an engine, for a request."""
        want = self._wants.get(flight)
        missing = want.missing if want is not None else ()
        return {item.call.reader.flight for item in missing if item.call is not None}

    def close(self) -> None:
        """Fail every request, and have every engine stop."""
        self._closed = True
        if self._window is not None:
            self._window.cancel()
        for want in tuple(self._wants.values()):
            self._fail(want, _ending())

    # -- waiting ----------------------------------------------------------------------------------

    def _join(self, want: Want, mine: dict[bytes, Item]) -> None:
        """Its items: those under way are joined, the others begin."""
        joined = 0
        for key, item in mine.items():
            if item.owner is None and item.result is None:
                item.wants[want] = None
                item.owner = item.payer = want
                self._items[key] = item
                want.unsent += 1
                if not self._store.add(item):
                    self._offer(item)
                continue
            joined += 1
            if item.result is None:
                item.wants[want] = None
                if item.call is not None:
                    asked = item.call.reader.flight
                    asked.plan.latest = max(asked.plan.latest, want.flight.plan.latest)
                    want.was_sent(asked)
            elif want.gets(item, item.result):
                self._land(want)
        self._counts.joined(joined)
        if want.unsent:
            self._waiting.add(want)
        self._soon()

    def _offer(self, item: Item) -> None:
        self.arrays.offer(item.kind, item.owner, item, item.weight, self._loop.time())

    def _soon(self) -> None:
        """All that arrives in one turn of the loop is looked at together, at its end."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self._closed:
            return
        self._store.look()
        for kind, items in self.arrays.due(self._loop.time(), self._room):
            self._send(kind, items)
        if self.arrays.window > 0:
            deadline = self.arrays.next_deadline(self._room)
            if deadline is not None and self._window is None:
                self._window = self._loop.call_at(deadline, self._window_closed)

    def _window_closed(self) -> None:
        self._window = None
        self._turn()

    def _room(self, kind: Kind) -> int:
        return self._calls_for(kind.model)

    def _found(self, item: Item, result: Result | None) -> None:
        """Its look-up is over."""
        if result is None:
            self._offer(item)
            return
        self._counts.cached(1)
        self._deliver(item, result)
        self._forget(item)

    def _forget(self, item: Item) -> None:
        if self._items.get(item.key) is item:
            del self._items[item.key]

    # -- at the engine ----------------------------------------------------------------------------

    def _send(self, kind: Kind, items: list[Item]) -> None:
        items = [item for item in items if item.wants]
        wants = wants_of(items)
        if not wants:  # an array before this one failed, and with it all that these are for
            self.arrays.ended(kind)
            return
        whole = next((want for want in wants if want.is_all(items)), None)
        plan = (whole or wants[0]).flight.plan
        body = plan.body
        padded = len(body) > 4 * sum(len(item.text) for item in items) + PADDING  # others may want these too
        if (whole is None or padded) and plan.ask is not None:
            body = array_body(plan.ask, [item.text for item in items])
        plans = [want.flight.plan for want in wants]
        urgent, last = min(one.priority for one in plans), max(one.latest for one in plans)
        flight = self._group.launch(
            replace(
                plan,
                key=None,
                many=True,
                fresh=False,
                body=body,
                priority=urgent,
                deadline=last,
                latest=last,
                parts=len(items),
            )
        )  # one client's deadline ends nobody else's request
        call = Call(kind, items, self._group.attach(flight, usage=True, whole=True, verdict="miss"), whole)
        self._calls.add(call)
        self._counts.array(len(items))
        for item in items:
            self._no_longer_waits(item)
            item.call = call
        flight.on_end = lambda _: self._ended(call)
        try:
            self._submit(flight)
        except GatewayError as e:
            flight.on_end = None
            flight.fail(e)
            self._over(call)
            for want in wants:
                self._fail(want, e)

    def _no_longer_waits(self, item: Item) -> None:
        owner = item.owner
        if owner is not None and not item.sent:
            item.sent = True
            owner.unsent -= 1
            if owner.unsent <= 0:
                self._waiting.discard(owner)

    def _over(self, call: Call, again: Iterable[list[Item]] = ()) -> None:
        self._calls.discard(call)
        call.reader.flight.on_end = None
        call.reader.leave()
        for item in call.items:
            item.call = None
        self.arrays.ended(call.kind, again)
        self._soon()

    def _ended(self, call: Call) -> None:
        """A call is over, however."""
        flight = call.reader.flight
        items = [item for item in call.items if item.wants]
        wants = wants_of(items)
        for want in wants:
            want.was_sent(flight)
        head, body = flight.head or Head(), b"".join(flight.log)
        if flight.error is not None or flight.phase is Phase.CANCELLED:
            again = halves(items, Item.wanted_by) if _incomplete(flight) else []
            self._over(call, again)
            if again:
                self._counts.split()  # one item's vector is missing: the others' need not be
                return
            for want in wants:
                self._fail(want, flight.error or _ending())
        elif head.status == 200:
            self._over(call)
            self._answered(call, wants, head, body)
        else:
            again = halves(items, Item.wanted_by) if head.status in _ABOUT_CONTENT else []
            if head.status in _ABOUT_CONTENT and not again and 0 < len(items) < len(call.items):
                again = [items]  # whoever spoiled it may have left
            self._over(call, again)
            if again:
                self._counts.split()
                return
            if head.status in _ABOUT_CONTENT:
                self._counts.poison(len(items))
            for want in wants:
                self._refuse(want, head, body)

    def _answered(self, call: Call, wants: Iterable[Want], head: Head, body: bytes) -> None:
        whole = call.whole
        if whole is not None:
            whole.body = body
        try:
            results = results_of(call, head, body)
        except Unsplittable as e:
            for want in wants:
                if want is whole:
                    self._refuse(want, head, body)  # its own request, and what the engine says to that
                else:
                    error = GatewayError(Code.UPSTREAM_PROTOCOL, f"The engine sent what has no parts: {e}.")
                    self._fail(want, error)
            return
        self._counts.asked(len(results))
        for item, result in zip(call.items, results, strict=True):
            self._deliver(item, result)
            self._store.keep(item, result, partial(self._forget, item))  # joinable until that is settled

    # -- ends -------------------------------------------------------------------------------------

    def _deliver(self, item: Item, result: Result) -> None:
        item.result = result
        self._no_longer_waits(item)
        wants, item.wants = item.wants, {}
        for want in wants:
            if want.gets(item, result):
                self._land(want)
        item.owner = item.payer = None

    def _land(self, want: Want) -> None:
        flight = want.flight
        self._finish(want)
        if want.land() == "hit":
            self._metrics.flight_landed("hit", flight.plan.model, None)
        want.clear()

    def _refuse(self, want: Want, head: Head, body: bytes) -> None:
        self._finish(want)
        want.refused(head, body)
        want.clear()

    def _fail(self, want: Want, error: GatewayError) -> None:
        if self._finish(want) and not want.flight.ended:
            want.flight.fail(error)
        want.clear()

    def _left(self, flight: Flight) -> None:
        """The last reader of a request left."""
        want = self._wants[flight]
        for item in want.missing:
            if item.call is not None:
                want.was_sent(item.call.reader.flight)
        self._finish(want)
        flight.cancel()
        want.clear()

    def _finish(self, want: Want) -> bool:
        """It wants nothing any more: what nobody else wants is dropped, at the engine too. False: it was over."""
        flight = want.flight
        self._group.remove(flight)
        flight.on_empty = None
        self._waiting.discard(want)
        calls = set()
        for item in want.missing:
            item.wants.pop(want, None)
            if item.wants:
                if item.payer is want and item.call is None:
                    item.payer = next(iter(item.wants))
                continue
            self._forget(item)
            if item.call is not None:
                calls.add(item.call)
            elif not self._store.discard(item):
                self.arrays.discard(item.kind, item.owner, item)
        for call in calls:
            if call in self._calls and not any(item.wants for item in call.items):
                call.reader.leave()  # nobody wants any of it: the engine stops
        return self._wants.pop(flight, None) is not None


def _incomplete(flight: Flight) -> bool:
    return flight.error is not None and flight.error.code is Code.UPSTREAM_INCOMPLETE


def _ending() -> GatewayError:
    return GatewayError(Code.SHUTTING_DOWN, "The gateway is shutting down.", retry_after=1)
