"""Deficit round robin between tenants that wait for the same engines in one class, and between the users of each;
and the order of one user's items."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final, Generic, Protocol, TypeVar

from proxy.flights.queue.summary import MOST_TENANTS, MOST_TOKENS, Waiting, name_of
from proxy.flights.spec import as_user

T = TypeVar("T", bound=Hashable)

QUANTUM: Final = 64
"""Tokens of a turn, a tenant's or a user's: fewer than most requests cost, so that turns alternate. With 1,024 a
caller of 130 tokens a request had seven in succession, and a light caller beside it waited for them."""

DEBT: Final = 16_384
"""Tokens that a tenant may be charged ahead for what it was served elsewhere: about a second of an engine's."""

RUN: Final = 16
"""At least one in so many places of a user goes to its oldest item, whatever that begins with: 15 of 16 prompts
find their beginning in the engine's cache, and no item waits for more than 16 places for each one before it. Items
with a deadline go first and are not counted."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What decides an item's turn."""

    owner: Hashable = b""  # in whose turn it waits: a User, or a tenant with one user
    priority: int = 1  # its class, an index of PRIORITIES
    cost: int = 1  # tokens
    deadline: float = math.inf  # by the clock of `now`
    pool: str | None = None  # items of one pool wait for the same engines
    latest: float = math.inf  # the latest deadline of its readers; `deadline` is the earliest
    prefixes: tuple[int, ...] = ()  # hashes of its beginning, of growing lengths


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    item: T
    ticket: Ticket
    number: int  # of arrival
    arrived: float
    priority: int
    deadline: float
    at: tuple[float, int, Entry[T]] | None = None  # its entry in its user's heap; None: it has left

    def promote(self, priority: int, deadline: float, owner: Hashable | None) -> None:
        """Move to the higher class and the earlier deadline, and to this owner's turn unless it is None. Only for
        one that is in no ring."""
        self.priority = min(self.priority, priority)
        self.deadline = min(self.deadline, deadline)
        if owner is not None:
            self.ticket = replace(self.ticket, owner=owner)


class _Taker(Protocol):
    """A user or a tenant that takes turns."""

    deficit: int  # tokens left of its turn
    turn: bool  # the quantum of this turn has been added

    def head(self) -> Entry[Any]: ...


A = TypeVar("A", bound=_Taker)


@dataclass(slots=True, eq=False)
class _Owner(Generic[T]):
    """One user's items of one class and pool: earliest deadline first, then in the order of arrival, but for runs
    of items with the same beginning."""

    heap: list[tuple[float, int, Entry[T]]] = field(default_factory=list)
    live: int = 0
    deficit: int = 0
    turn: bool = False
    alike: dict[int, dict[Entry[T], None]] = field(default_factory=dict)  # by beginning, in the order of arrival
    last: tuple[int, ...] = ()  # the beginning of its last item
    overtakes: int = 0  # times that its oldest item without a deadline was passed over

    def push(self, entry: Entry[T]) -> None:
        at = (entry.deadline, entry.number, entry)
        heapq.heappush(self.heap, at)
        self.live += 1
        entry.at = at
        if entry.deadline == math.inf:
            for prefix in entry.ticket.prefixes:
                self.alike.setdefault(prefix, {})[entry] = None

    def drop(self, entry: Entry[T]) -> None:
        entry.at = None
        self.live -= 1
        if len(self.heap) > 2 * self.live + 16:  # items that left must not stay in memory until their turn
            self.heap = [at for at in self.heap if at[2].at is at]
            heapq.heapify(self.heap)
        if entry.deadline == math.inf:
            for prefix in entry.ticket.prefixes:
                alike = self.alike[prefix]
                del alike[entry]
                if not alike:
                    del self.alike[prefix]

    def head(self) -> Entry[T]:
        while self.heap[0][2].at is not self.heap[0]:
            heapq.heappop(self.heap)
        oldest = self.heap[0][2]
        if self.overtakes < RUN - 1 and oldest.deadline == math.inf:
            for prefix in reversed(self.last):  # the longest beginning first
                if prefix in self.alike:
                    return next(iter(self.alike[prefix]))
        return oldest

    def served(self, entry: Entry[T]) -> None:
        """It was dispatched; the next item should begin like it."""
        if entry.deadline == math.inf:
            self.overtakes = 0 if entry.at is self.heap[0] else self.overtakes + 1
        self.last = entry.ticket.prefixes


class _Ring(Generic[T]):
    """One tenant's users, by deficit round robin (Shreedhar & Varghese 1996)."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self.owners: dict[Hashable, _Owner[T]] = {}  # in the order of their turns
        self.deficit = 0
        self.turn = False
        self.live = 0
        self.spent = 0  # tokens of all its items that were dispatched

    def push(self, entry: Entry[T]) -> None:
        name = as_user(entry.ticket.owner).key
        owner = self.owners.get(name)
        if owner is None:
            owner = self.owners[name] = _Owner()
        owner.push(entry)
        self.live += 1

    def drop(self, entry: Entry[T]) -> None:
        name = as_user(entry.ticket.owner).key
        owner = self.owners.get(name)
        if owner is None or entry.at is None:
            return  # it has not come that far
        owner.drop(entry)
        self.live -= 1
        if not owner.live:
            del self.owners[name]  # and its deficit: one without items saves nothing up

    def head(self) -> Entry[T]:
        """The next item of the tenant."""
        return _next(self.owners, self._quantum)

    def served(self, entry: Entry[T]) -> None:
        """Charge its user for a dispatched item, if another user waits."""
        owner = self.owners[as_user(entry.ticket.owner).key]
        owner.served(entry)
        self.spent += entry.ticket.cost
        if len(self.owners) > 1:
            owner.deficit -= entry.ticket.cost


class DeficitRoundRobin(Generic[T]):
    """The tenants of one class and pool, by deficit round robin, each with its users."""

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self.tenants: dict[Hashable, _Ring[T]] = {}  # in the order of their turns
        self.live = 0

    def push(self, entry: Entry[T]) -> None:
        name = as_user(entry.ticket.owner).tenant
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self.tenants[name] = _Ring(self._quantum)
        tenant.push(entry)
        self.live += 1

    def drop(self, entry: Entry[T]) -> None:
        name = as_user(entry.ticket.owner).tenant
        tenant = self.tenants.get(name)
        if tenant is None:
            return  # it has not come that far
        before = tenant.live
        tenant.drop(entry)
        self.live -= before - tenant.live
        if not tenant.owners:
            del self.tenants[name]

    def head(self) -> Entry[T]:
        """The next item. Turns pass on only as far as deficits require."""
        return _next(self.tenants, self._quantum)

    def served(self, entry: Entry[T]) -> None:
        """Charge its tenant and its user for a dispatched item, where others wait: alone there are no turns."""
        tenant = self.tenants[as_user(entry.ticket.owner).tenant]
        tenant.served(entry)
        if len(self.tenants) > 1:
            tenant.deficit -= entry.ticket.cost

    def charge(self, name: Hashable, tokens: int) -> None:
        """A tenant was served so many tokens elsewhere: they count as this ring's, if another tenant waits."""
        tenant = self.tenants.get(name)
        if tenant is not None and len(self.tenants) > 1:
            tenant.deficit = max(tenant.deficit - tokens, min(tenant.deficit, -DEBT))

    def summary(self, priority: int) -> Iterator[Waiting]:
        """Its tenants with items, in the order of their turns; those after MOST_TENANTS together."""
        queued = tenants = 0
        for name, tenant in islice(self.tenants.items(), MOST_TENANTS):
            yield Waiting(
                priority, name_of(name), 1, len(tenant.owners), tenant.live, min(tenant.spent, MOST_TOKENS)
            )
            tenants += 1
            queued += tenant.live
        rest = len(self.tenants) - tenants
        if rest:
            yield Waiting(priority, None, rest, rest, self.live - queued, 0)


def _next(owners: dict[Hashable, A], quantum: int) -> Entry[Any]:
    """The next item of all owners, which are in the order of their turns."""
    if len(owners) == 1:
        (owner,) = owners.values()
        return owner.head()
    while True:
        short = math.inf
        for _ in range(len(owners) + 1):  # the first may be at the end of its turn
            name, owner = next(iter(owners.items()))
            entry = owner.head()
            if not owner.turn:
                owner.turn = True
                owner.deficit += quantum
            if owner.deficit >= entry.ticket.cost:
                return entry
            short = min(short, entry.ticket.cost - owner.deficit)
            owner.turn = False
            owners[name] = owners.pop(name)
        for owner in owners.values():  # all rounds in which no owner could take anything, at once
            owner.deficit += (math.ceil(short / quantum) - 1) * quantum
