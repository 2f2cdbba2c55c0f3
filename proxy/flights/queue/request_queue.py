"""The request queue: items that wait for a look-up, twins or an engine, and when a batch is due.

Reads no clock: `now` is passed in. Items are opaque."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import replace
from typing import Final, Generic, TypeVar

from proxy.errors import Code, GatewayError
from proxy.flights.queue.deficit_round_robin import Ticket
from proxy.flights.queue.estimates import WaitEstimator
from proxy.flights.queue.fair_queue import FairQueue
from proxy.flights.queue.lookups import LookupBatcher
from proxy.flights.queue.summary import PoolQueue, Waiting
from proxy.telemetry import internal, raised

T = TypeVar("T", bound=Hashable)

PLAIN: Final = Ticket()
FAST: Final = 0.1
"""Quantile of answer times by which a request is rejected on arrival: it would be in time only by luck."""
USUAL: Final = 0.75
"""Quantile by which a queued request is rejected at its turn: with less time left it would mostly be abandoned."""


class RequestQueue(Generic[T]):
    """Three queues within one limit: for a store look-up (a batch a round trip), for sampled twins (`held`), and
    for capacity at an engine (`line`).

    By default (`window` 0) requests are never delayed to form a batch: a batch is what arrived in the same event
    loop iteration, or during the round trip before it. A full queue leaves each owner its share: see `offer`."""

    def __init__(
        self,
        *,
        limit: int,
        max_batch: int,
        window: float = 0.0,
        patience: float = math.inf,
        timeout: float = math.inf,
        ticket: Callable[[T], Ticket] = lambda item: PLAIN,
        twin: Callable[[T], Hashable] = lambda item: None,
        callers: Callable[[T], Collection[Hashable]] = lambda item: (),
    ) -> None:
        self.limit = limit  # items in all queues and in the look-up under way
        self.window = window  # seconds
        self.timeout = timeout  # seconds that an item may wait for a place
        self.line: FairQueue[T] = FairQueue(patience=patience)
        self._ticket = ticket
        self._twin = twin  # a key that twins have in common; None: it has no twins
        self._callers = callers  # of an item's readers
        self._lookups: LookupBatcher[T] = LookupBatcher(max_batch=max_batch, window=window)
        self._held: dict[T, None] = {}
        self._back: dict[T, tuple[float, str | None]] = {}
        """Dispatched items that need another engine: when each came back, and its pool."""
        self.twin_index: dict[Hashable, dict[T, None]] = {}  # twins that are held or in the line, by their key
        self.estimates = WaitEstimator()

    def __len__(self) -> int:
        return len(self._lookups) + len(self._held) + len(self.line) + len(self._back)

    def __repr__(self) -> str:
        arrived, looking = len(self._lookups.arrived), len(self._lookups.looking)
        return f"<RequestQueue arrived={arrived} looking={looking} missed={len(self.line)}>"

    @property
    def waits(self) -> bool:
        """Whether an item waits for an engine: a later one must not overtake it."""
        return bool(self.line.entries or self._back)

    def offer(
        self,
        item: T,
        now: float,
        *,
        lookup: bool,
        hold: bool = False,
        on_pushed: Callable[[T, GatewayError], None] = lambda item, error: None,
    ) -> None:
        """Enqueue an item for a look-up, for an engine, or held until `release`. `on_pushed` is called with the
        item that leaves the queue to make room, and its error.

        Where the queue is full: see `Shares.make_room`.
        Raises GatewayError: that 429, or 503 where there is nobody to make room; both with Retry-After.
        """
        queued = self._lookups  # as `len` counts them, without its three calls
        if (
            len(queued.arrived) + len(queued.looking) + len(self._held) + len(self._back) + len(self.line.entries)
            >= self.limit
        ):
            on_pushed(*self._make_room(self._ticket_of(item)))
        if lookup:
            queued.add(item, now)
        elif hold:
            self._held[item] = None
            self._index(item)
        else:
            self.enqueue(item, now)

    def enqueue(self, item: T, now: float) -> None:
        """Enqueue an item for an engine, in the turn of the caller that has fewest items queued. The limit is not
        checked. Raises GatewayError 503 where it cannot be in time."""
        ticket = self._ticket_of(item)
        self._in_time(ticket, now)
        self._index(item)
        self.line.offer(item, ticket, now)

    def requeue(self, item: T, now: float) -> None:
        """It was dispatched, and its engine failed: it goes to the head of the queue. The limit is not checked."""
        self._back[item] = now, self._ticket(item).pool

    def release(self, item: T, now: float) -> bool:
        """Stop holding an item for twins: it waits for an engine. True if it was held."""
        if item not in self._held:
            return False
        del self._held[item]
        self.line.offer(item, self._ticket(item), now)
        return True

    def due(self, now: float) -> list[T]:
        """The next batch of look-ups, see `LookupBatcher.due`."""
        return self._lookups.due(now)

    def next_deadline(self) -> float | None:
        """When the window of the oldest look-up closes; None if there is none."""
        return self._lookups.next_deadline()

    def lookups_done(self, batch: Iterable[T], misses: Iterable[T], now: float) -> list[tuple[T, GatewayError]]:
        """The look-up of this batch has ended: its misses wait for an engine, unless they were discarded
        meanwhile. Returns those that cannot be in time or cannot be queued, each with its error."""
        refused = []
        for item in misses:
            if item in self._lookups.looking and item not in self.line.entries:  # in them where this raised once
                try:
                    self.enqueue(item, now)
                except GatewayError as e:
                    refused.append((item, e))
                except Exception as e:  # noqa: BLE001 - the rest of the batch still waits for its place
                    raised("an item that is queued", e)
                    refused.append((item, internal()))
        self._lookups.over(batch)
        return refused

    @property
    def looking(self) -> Collection[T]:
        """The items of the look-up under way that were not discarded."""
        return self._lookups.looking

    def dispatch(self, take: Callable[[T], bool], now: float) -> None:
        """Offer items to `take`, in the line's order. True: the item leaves the queue. False: its pool has no
        capacity, and no more items of that pool are offered."""
        blocked: set[str | None] = set()
        for first, (_, pool) in tuple(self._back.items()):
            if pool not in blocked and first in self._back:
                if take(first):
                    self._back.pop(first, None)
                else:
                    blocked.add(pool)
        line = self.line
        while (item := line.next(now, blocked)) is not None:
            pool = line.pool_of(item)
            if take(item):
                if item in line:
                    line.granted(item)
                    self._unindex(item)
                    self.estimates.record_dispatch(pool, now)
            elif item in line:
                blocked.add(pool)
        if not line:
            self.estimates.forget_dispatches()

    def summary(self) -> list[PoolQueue]:
        """The queued items, by pool; dispatched items that need another one are of the highest class."""
        queues = self.line.summary() if self.line.entries else []
        if self._back:
            pools: dict[str | None, list[float]] = {}
            for came, pool in self._back.values():
                pools.setdefault(pool, []).append(came)
            queues += [
                PoolQueue(pool, times[0], [Waiting(0, None, 1, 1, len(times), 0)]) for pool, times in pools.items()
            ]
        return queues

    def charge(self, pool: str | None, priority: int, name: str, tokens: int) -> None:
        """See `FairQueue.charge`."""
        self.line.charge(pool, priority, name, tokens)

    def grant(self, item: T) -> None:
        """Dequeue an item that is dispatched together with a twin, and charge its owner."""
        if item in self.line:
            self.line.granted(item)
        self._held.pop(item, None)
        self._unindex(item)

    def twins(self, item: T) -> Iterator[T]:
        """The twins of an item, itself included, that are held or wait for an engine. In the order of arrival."""
        return iter(tuple(self.twin_index.get(self._twin(item), ())))

    def promote(self, item: T, priority: int, deadline: float, owner: Hashable = None) -> bool:
        """Another caller wants it too: see `FairQueue.promote`. True if it moves."""
        return self.line.promote(item, priority, deadline, owner)

    def discard(self, item: T) -> bool:
        """Remove an item. True if it was queued."""
        if self._lookups.discard(item) or self._back.pop(item, None) is not None:
            return True
        if item in self._held:
            del self._held[item]
        elif not self.line.discard(item):
            return False
        self._unindex(item)
        return True

    def __contains__(self, item: T) -> bool:
        return item in self.line or item in self._held or item in self._back or item in self._lookups

    def in_lookup(self) -> list[T]:
        """The items of the look-up under way, in their order."""
        return list(self._lookups.looking)

    def rebuild(self) -> None:
        """Rebuild the line, whose orders may be inconsistent after an exception in one of them."""
        self.line = self.line.rebuilt()
        self.twin_index.clear()
        for item in (*self._held, *self.line):
            self._index(item)

    def clear(self) -> list[T]:
        """Remove and return all items, when a queue is broken beyond `rebuild`."""
        waiting = [*self._lookups.arrived, *self._lookups.looking, *self._held, *self._back, *self.line]
        self._lookups.clear()
        self._back.clear()
        self._held.clear()
        self.twin_index.clear()
        self.line = FairQueue(patience=self.line.patience)
        return waiting

    def too_late(self, pool: str | None, left: float) -> GatewayError | None:
        """The error of an item that has its turn, but not the time left in which it would be answered. Stricter
        than on arrival: with the earliest deadline first, items that wait long often have too little time left."""
        takes = self.estimates.answer_time(pool, USUAL)
        return _too_late(0.0, takes, left) if takes > left else None

    def wait(self, ticket: Ticket, now: float) -> float:
        """Seconds that an item would wait for an engine, by the pace of the last dispatches; 0: not known."""
        interval = self.estimates.interval(ticket.pool, now)
        return self.line.ahead(ticket) * interval if interval else 0.0

    def overdue(self, now: float) -> list[tuple[T, GatewayError]]:
        """Remove the items that have waited for `timeout` seconds; each with its error."""
        late = [item for item, (came, _) in self._back.items() if came + self.timeout <= now]
        late += self.line.waited(self.timeout, now)
        for item in late:
            self.discard(item)
        return [(item, _waited(self.timeout)) for item in late]

    def next_overdue(self) -> float:
        """When the oldest item will have waited for `timeout` seconds; inf: never."""
        back = next((came for came, _ in self._back.values()), math.inf)
        return min(self.line.oldest, back) + self.timeout

    # -- inside -----------------------------------------------------------------------------------

    def _ticket_of(self, item: T) -> Ticket:
        """Its ticket, in the turn of the caller who has fewest items queued."""
        ticket = self._ticket(item)
        callers = self._callers(item)
        if len(callers) > 1:
            line = self.line

            def items(one: Hashable) -> tuple[int, int, bool]:
                return line.owned(one), line.shares.used(one), one != ticket.owner

            ticket = replace(ticket, owner=min(callers, key=items))
        return ticket

    def _make_room(self, ticket: Ticket) -> tuple[T, GatewayError]:
        victim, error = self.line.shares.make_room(ticket.owner, ticket.priority, self.limit, self._callers)
        self.discard(victim)
        return victim, error

    def _in_time(self, ticket: Ticket, now: float) -> None:
        """Raises GatewayError 503 if its estimated wait exceeds `timeout`, or if wait and answer time exceed the
        time left to its deadline."""
        hurried = ticket.latest < math.inf
        if not hurried and len(self.line) * self.estimates.interval(ticket.pool, now) <= self.timeout:
            return  # even behind everyone else
        wait = self.wait(ticket, now)
        if wait > self.timeout:
            raise self._too_long(wait)
        if hurried:
            takes = self.estimates.answer_time(ticket.pool, FAST)
            if now + wait + takes > ticket.latest:
                raise _too_late(wait, takes, ticket.latest - now)

    def _too_long(self, wait: float) -> GatewayError:
        return GatewayError(
            Code.QUEUE_TIMEOUT,
            f"The estimated wait for an engine is {wait:.1f} s; the limit is {self.timeout:g} s (queue_timeout).",
            retry_after=max(1, math.ceil(wait - self.timeout)),
        )

    def _index(self, item: T) -> None:
        twin = self._twin(item)
        if twin is not None:
            self.twin_index.setdefault(twin, {})[item] = None

    def _unindex(self, item: T) -> None:
        twin = self._twin(item)
        if twin is not None and twin in self.twin_index:
            self.twin_index[twin].pop(item, None)
            if not self.twin_index[twin]:
                del self.twin_index[twin]


def _too_late(wait: float, takes: float, left: float) -> GatewayError:
    """The error of a request that cannot be answered before its deadline."""
    return GatewayError(
        Code.DEADLINE_UNMEETABLE,
        f"The estimated wait for an engine of {wait:.1f} s and answer time of {takes:.1f} s exceed the "
        f"{max(0.0, left):.1f} s that are left of x-request-timeout.",
        retry_after=max(1, math.ceil(wait)),
    )


def _waited(timeout: float) -> GatewayError:
    return GatewayError(
        Code.QUEUE_TIMEOUT,
        f"No engine had capacity within {timeout:g} s (queue_timeout); retry shortly.",
        retry_after=1,
    )
