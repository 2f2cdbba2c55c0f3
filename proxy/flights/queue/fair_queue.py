"""The order in which queued items are dispatched: classes, fairness between tenants and users, deadlines, age.

Reads no clock: `now` is passed in. Items are opaque, each with its ticket."""

from __future__ import annotations

import math
from collections.abc import Container, Hashable, Iterator
from dataclasses import replace
from itertools import takewhile
from typing import Final, Generic, TypeVar

from proxy.config import PRIORITIES
from proxy.flights.queue.deficit_round_robin import QUANTUM, DeficitRoundRobin, Entry, Ticket
from proxy.flights.queue.shares import Shares
from proxy.flights.queue.summary import PoolQueue, tenant_of_name
from proxy.flights.spec import as_user, tenant_of

T = TypeVar("T", bound=Hashable)

AGED_TURN: Final = 4
"""One of so many dispatches goes to the oldest item, once that has waited longer than `patience`. More often, and
a flood of old requests would undo fairness; one in four costs the others a quarter at most."""


class FairQueue(Generic[T]):
    """Items that wait for an engine. Within a class tenants take turns by tokens, and so do the users of each; one
    user's items go by deadline, then in the order of arrival, items with the same beginning in runs. A higher
    class goes first, except that one dispatch in four goes to the oldest item, once that has waited for more than
    `patience` seconds: it is served after at most four dispatches for each item before it. Engines without
    capacity block their own pool only."""

    def __init__(self, *, patience: float = math.inf, quantum: int = QUANTUM) -> None:
        self.patience = patience
        self._quantum = quantum
        self.entries: dict[T, Entry[T]] = {}  # queued items, in the order of arrival; written here only
        self._rings: list[dict[str | None, DeficitRoundRobin[T]]] = [{} for _ in PRIORITIES]
        self._ages: dict[str | None, dict[T, None]] = {}  # of each pool, in the order of arrival
        self.shares: Shares[T] = Shares()  # the items by owner and class
        self._number = 0
        self._grants = 0

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, item: T) -> bool:
        return item in self.entries

    def __iter__(self) -> Iterator[T]:
        """In the order of arrival."""
        return iter(self.entries)

    def __repr__(self) -> str:
        return f"<FairQueue {'/'.join(map(str, self.lengths()))} owners={len(self.shares)}>"

    def lengths(self) -> tuple[int, int, int]:
        """Items of each class."""
        high, normal, low = self.shares.lengths()
        return high, normal, low

    def offer(self, item: T, ticket: Ticket, now: float) -> None:
        self._number += 1
        entry = Entry(item, ticket, self._number, now, ticket.priority, ticket.deadline)
        self.entries[item] = entry
        self._ages.setdefault(ticket.pool, {})[item] = None
        try:
            self._enter(entry)
        except Exception:
            self.discard(item)  # an item in only some of the orders would never be served
            raise

    def rebuilt(self) -> FairQueue[T]:
        """A new queue with the same items, in the order of arrival."""
        line: FairQueue[T] = FairQueue(patience=self.patience, quantum=self._quantum)
        for item, entry in self.entries.items():
            ticket = replace(entry.ticket, priority=entry.priority, deadline=entry.deadline)
            line.offer(item, ticket, entry.arrived)
        return line

    def discard(self, item: T) -> bool:
        """Remove an item. True if it was queued."""
        entry = self.entries.pop(item, None)
        if entry is None:
            return False
        try:
            self._exit(entry)
        finally:
            ages = self._ages[entry.ticket.pool]
            del ages[item]
            if not ages:
                del self._ages[entry.ticket.pool]
        return True

    def next(self, now: float, blocked: Container[str | None] = ()) -> T | None:
        """The next item of a pool that is not blocked; it stays queued until it is `granted`."""
        if self._grants % AGED_TURN == AGED_TURN - 1:
            oldest = self._oldest(blocked)
            if oldest is not None and now - oldest.arrived >= self.patience:
                return oldest.item
        for rings in self._rings:
            for pool, ring in rings.items():
                if pool not in blocked:
                    return ring.head().item
        return None

    def granted(self, item: T) -> None:
        """Dequeue a dispatched item, and charge its owner's turn."""
        entry = self.entries.get(item)
        if entry is None:
            return  # it left while it was dispatched
        self._grants += 1
        rings, pool = self._rings[entry.priority], entry.ticket.pool
        rings[pool].served(entry)
        self.discard(item)
        if len(rings) > 1 and pool in rings:
            rings[pool] = rings.pop(pool)  # pools of the same engines take turns

    def promote(self, item: T, priority: int, deadline: float, owner: Hashable = None) -> bool:
        """Another caller wants it too: it moves to the higher class, the earlier deadline, and the turn of the
        owner with fewer items queued: see `Shares.lighter`. True if it moves."""
        entry = self.entries.get(item)
        if entry is None:
            return False
        lighter = owner is not None and self.shares.lighter(owner, entry.ticket.owner)
        if not lighter and priority >= entry.priority and deadline >= entry.deadline:
            return False
        self._exit(entry)
        entry.promote(priority, deadline, owner if lighter else None)
        self._enter(entry)
        return True

    def pool_of(self, item: T) -> str | None:
        return self.entries[item].ticket.pool

    @property
    def oldest(self) -> float:
        """When the oldest item arrived; inf if none is queued."""
        return next((entry.arrived for entry in self.entries.values()), math.inf)

    def waited(self, seconds: float, now: float) -> list[T]:
        """Items that have waited for so many seconds, the oldest first."""
        entries = takewhile(lambda entry: entry.arrived + seconds <= now, self.entries.values())
        return [entry.item for entry in entries]

    def summary(self) -> list[PoolQueue]:
        """The queued items, by pool."""
        return [
            PoolQueue(
                pool,
                self.entries[next(iter(ages))].arrived,
                [
                    each
                    for priority, rings in enumerate(self._rings)
                    if pool in rings
                    for each in rings[pool].summary(priority)
                ],
            )
            for pool, ages in self._ages.items()
        ]

    def charge(self, pool: str | None, priority: int, name: str, tokens: int) -> None:
        """Another process has dispatched so many tokens of a tenant that waits here too. `name`: see `name_of`."""
        ring = self._rings[priority].get(pool)
        if ring is not None:
            ring.charge(tenant_of_name(name), tokens)

    # -- whose it is ------------------------------------------------------------------------------

    @property
    def owners(self) -> int:
        """Tenants with items."""
        return len(self.shares)

    def owned(self, owner: Hashable) -> int:
        """Items of an owner's tenant."""
        return self.shares.owned(tenant_of(owner))

    def ahead(self, ticket: Ticket) -> int:
        """How many items of its pool would be dispatched before it: those of its user that go first, as many of
        each other user and then of each other tenant of its class less what a quantum buys, and all of higher
        classes. Age and runs are left out, and others' items are assumed to cost what its own do."""
        count = 0
        for rings in self._rings[: ticket.priority]:
            ring = rings.get(ticket.pool)
            count += ring.live if ring is not None else 0
        ring = self._rings[ticket.priority].get(ticket.pool)
        if ring is None:
            return count
        name, key = as_user(ticket.owner)
        bought = self._quantum // ticket.cost
        tenant = ring.tenants.get(name)
        before = 0
        if tenant is not None:
            mine = tenant.owners.get(key)
            if mine is not None:
                before = mine.live
                if ticket.deadline < math.inf:
                    before = sum(at[2].at is at and at[0] <= ticket.deadline for at in mine.heap)
            alike = max(0, before - bought)
            before += sum(min(user.live, alike) for user in tenant.owners.values() if user is not mine)
        alike = max(0, before - bought)
        others = sum(min(other.live, alike) for other in ring.tenants.values() if other is not tenant)
        return count + before + others

    # -- inside -----------------------------------------------------------------------------------

    def _oldest(self, blocked: Container[str | None]) -> Entry[T] | None:
        heads = [self.entries[next(iter(ages))] for pool, ages in self._ages.items() if pool not in blocked]
        return min(heads, key=lambda entry: entry.number, default=None)

    def _enter(self, entry: Entry[T]) -> None:
        rings, pool = self._rings[entry.priority], entry.ticket.pool
        ring = rings.get(pool)
        if ring is None:
            ring = rings[pool] = DeficitRoundRobin(self._quantum)
        ring.push(entry)
        self.shares.add(entry.item, entry.ticket.owner, entry.priority)

    def _exit(self, entry: Entry[T]) -> None:
        rings, pool = self._rings[entry.priority], entry.ticket.pool
        self.shares.drop(entry.item, entry.ticket.owner, entry.priority)
        ring = rings.get(pool)
        if ring is not None:
            try:
                ring.drop(entry)
            finally:
                if not ring.tenants:
                    rings.pop(pool, None)
