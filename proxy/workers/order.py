"""Whose turn it is over all workers: their parts of an engine's limit, and what tenants were served. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from proxy.config import NORMAL, PRIORITIES
from proxy.flights.queue import MOST_TOKENS, PoolQueue, Waiting

MOST: Final = 10**6
OLDEST_TURN: Final = 4  # where workers outnumber places, one of so many goes to the oldest request

K = TypeVar("K", bound=Hashable)
Tenant = tuple[int, str]
"""A class, and a tenant that waits in it."""
Key = tuple[str | None, int, str]
"""A pool, a class, and a tenant that waits in them."""


@dataclass(slots=True)
class WorkerLoad:
    """One worker's allotment, requests in flight and queue at one engine."""

    allotted: int = 0  # as it was told last
    held: int = 0  # what it may have: until it confirms a smaller allotment, still the old one
    inflight: int = 0
    queued: int = 0
    most: int = MOST  # the limit that its own controller of this engine would have
    waiting: Sequence[Waiting] = ()  # the queued requests by class and tenant; empty: not known
    oldest: float = math.inf  # arrival of the oldest queued request

    @property
    def short(self) -> bool:
        return self.queued > 0 and self.inflight >= self.allotted

    def report(self, inflight: int, queued: int, most: int, queues: Sequence[PoolQueue]) -> None:
        """A worker's permits, and the requests that are queued there for this engine."""
        self.inflight, self.queued, self.most = inflight, queued, most
        self.waiting = [each for queue in queues for each in queue.waiting]
        self.oldest = min((queue.oldest for queue in queues), default=math.inf)

    def confirm(self) -> None:
        """It has applied the last allotment."""
        self.held = max(self.allotted, self.inflight)

    def lower(self, allotted: int) -> None:
        """Allot fewer: the others are free once it has confirmed that."""
        self.allotted = allotted

    def add(self, more: int) -> int:
        """Allot so many more. Returns how many of them were free: the others it still held."""
        before = max(self.held, self.allotted)
        self.allotted += more
        self.held = max(self.held, self.allotted)
        return self.held - before

    def queue(self) -> Sequence[Waiting]:
        """The queued requests. Those of tenants that are not known are of one."""
        return self.waiting or [Waiting(NORMAL, None, 1, 1, self.queued, 0)]

    def wants(self) -> list[tuple[Waiting, float]]:
        """How many places each tenant could use. Those in use count for the tenants that wait, by their requests:
        whose they are is not reported."""
        queue = self.queue()
        queued = sum(each.queued for each in queue)
        if not queued:
            return [(queue[0], self.inflight)] if self.inflight else []
        return [(each, each.queued * (1 + self.inflight / queued)) for each in queue]


class Ledger:
    """Tokens that tenants were served while they waited, by the reports of all workers."""

    def __init__(self) -> None:
        self._last: dict[int, dict[Key, int]] = {}
        self._spent: dict[Tenant, int] = {}
        self._due: dict[int, dict[Key, int]] = {}

    def __repr__(self) -> str:
        return f"<Ledger of {len(self._spent)} tenants>"

    def report(self, worker: int, queues: Iterable[PoolQueue]) -> None:
        """The requests that are queued at a worker now."""
        before = self._last.get(worker, {})
        now = {
            (queue.pool, each.priority, each.tenant): each.served
            for queue in queues
            for each in queue.waiting
            if each.tenant is not None
        }
        self._last[worker] = now
        if not now and not before:
            return
        self._settle()
        for key, served in now.items():
            more = served - before.get(key, 0)
            if more < 0:  # it had nothing to wait for meanwhile, and began again
                more = served
            if more:
                self._spent[key[1:]] += more
                for other, keys in self._last.items():
                    if other != worker and key in keys:
                        due = self._due.setdefault(other, {})
                        due[key] = min(due.get(key, 0) + more, MOST_TOKENS)

    def leave(self, worker: int) -> None:
        self._last.pop(worker, None)
        self._due.pop(worker, None)
        self._settle()

    def spent(self, priority: int, tenant: str | None) -> int:
        """Tokens that a tenant was served since it waits anywhere, and as many as the least served had before."""
        return 0 if tenant is None else self._spent.get((priority, tenant), 0)

    def charges(self) -> dict[int, list[tuple[Key, int]]]:
        """What to tell now: by worker, what tenants that wait there were served elsewhere."""
        due, self._due = self._due, {}
        return {worker: list(keys.items()) for worker, keys in due.items() if worker in self._last}

    def _settle(self) -> None:
        """Forget tenants that wait nowhere, and begin with those that are new."""
        waiting = {key[1:] for keys in self._last.values() for key in keys}
        self._spent = {tenant: tokens for tenant, tokens in self._spent.items() if tenant in waiting}
        least: dict[int, int] = {}
        for (priority, _), tokens in self._spent.items():
            least[priority] = min(tokens, least.get(priority, tokens))
        for tenant in waiting:
            self._spent.setdefault(tenant, least.get(tenant[0], 0))


def parts(limit: int, places: Mapping[int, WorkerLoad], ledger: Ledger, turn: int = 0) -> dict[int, int]:
    """The places of each worker, all of the limit in sum. Classes go in their order; the tenants of one get alike,
    each at the workers at which its users wait; what nobody wants is spread evenly. One place stays at each
    worker, so that the first request of an idle one does not wait; where workers outnumber the places, these go to
    the workers whose turn is next. `turn`: the number of such turns so far."""
    if not places:
        return {}
    if limit < len(places):
        return _few(limit, places, ledger, turn)
    shares = dict.fromkeys(places, 0.0)
    left = float(limit)
    for tenants in _classes(places):
        wants = {
            tenant: (weight, sum(most for _, most in by_worker.values()))
            for tenant, (weight, by_worker) in tenants.items()
        }
        for tenant, amount in filled(left, wants).items():
            left -= amount
            for worker, part in filled(amount, tenants[tenant][1]).items():
                shares[worker] += part
    least = {at: max(1.0, share) for at, share in shares.items()}
    spare = max(0.0, limit - sum(least.values())) / len(places)
    return _whole(limit, {at: share + spare for at, share in least.items()}, places)


def filled(total: float, wants: Mapping[K, tuple[int, float]]) -> dict[K, float]:
    """Weighted max-min fair parts of a total. `wants`: each one's weight, and the most that it can use."""
    weights = sum(weight for weight, _ in wants.values())
    amounts = {}
    for key, (weight, most) in sorted(wants.items(), key=lambda each: each[1][1] / each[1][0]):
        amounts[key] = amount = max(0.0, min(most, total * weight / weights))
        total -= amount
        weights -= weight
    return amounts


def _classes(
    places: Mapping[int, WorkerLoad],
) -> list[dict[Hashable, tuple[int, dict[int, tuple[int, float]]]]]:
    """By class and tenant: its weight, and by worker its users and how many places it could use there."""
    classes: list[dict[Hashable, tuple[int, dict[int, tuple[int, float]]]]] = [{} for _ in PRIORITIES]
    for at, place in places.items():
        for each, most in place.wants():
            _, by_worker = classes[each.priority].setdefault(_name(at, each), (each.tenants, {}))
            users, before = by_worker.get(at, (0, 0.0))
            by_worker[at] = users + each.users, before + most
    return classes


def _whole(limit: int, shares: dict[int, float], places: Mapping[int, WorkerLoad]) -> dict[int, int]:
    """The shares, of one place at least, in whole places; one place each goes before what is over. Of the two next
    numbers one that is allotted already is kept, so that places do not move to and fro."""
    over = sum(shares.values()) - len(shares)
    scale = (limit - len(shares)) / over if over else 0.0
    exact = {at: round(1 + (share - 1) * scale, 6) for at, share in shares.items()}
    counts = {at: min(max(places[at].allotted, math.floor(of)), math.ceil(of)) for at, of in exact.items()}
    while (lacks := limit - sum(counts.values())) != 0:
        step = 1 if lacks > 0 else -1
        at = max(counts, key=lambda at: (step * (exact[at] - counts[at]), at))
        counts[at] += step
    return counts


def _few(limit: int, places: Mapping[int, WorkerLoad], ledger: Ledger, turn: int) -> dict[int, int]:
    """Fewer places than workers: one for each next request, in the order of all queued requests. Places that none
    of them takes stay where requests are in flight."""
    lines = [(at, each, _name(at, each)) for at, place in places.items() for each in place.queue()]
    queued = [each.queued for _, each, _ in lines]
    counts = dict.fromkeys(places, 0)
    taken: Counter[Hashable] = Counter()
    oldest = turn % OLDEST_TURN == OLDEST_TURN - 1

    def order(line: int) -> tuple[float, ...]:
        at, each, name = lines[line]
        age = places[at].oldest
        if oldest and not taken:
            return (age,)
        return each.priority, taken[name], ledger.spent(each.priority, each.tenant), age

    for _ in range(min(limit, sum(queued))):
        line = min((line for line, count in enumerate(queued) if count), key=order)
        at, _, name = lines[line]
        counts[at] += 1
        queued[line] -= 1
        taken[name] += 1
    left = limit - sum(counts.values())
    for at in sorted(places, key=lambda at: (-places[at].inflight, -places[at].allotted)):
        more = min(left, max(0, places[at].inflight - counts[at]))
        counts[at] += more
        left -= more
    for at in sorted(places, key=lambda at: -places[at].allotted)[:left]:
        counts[at] += 1
    return counts


def _name(at: int, each: Waiting) -> Hashable:
    """What an entry's tenant is told apart by: one without a name is of this worker and class alone."""
    return (each.priority, at if each.tenant is None else each.tenant)
