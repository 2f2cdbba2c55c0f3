"""Equal shares of a full queue by caller, and which queued item makes room for a new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Final, Generic, TypeVar

from proxy.errors import Code, GatewayError

T = TypeVar("T", bound=Hashable)

CLASSES: Final = 3


class Shares(Generic[T]):
    """Queued items by caller and class, each in the order of arrival."""

    def __init__(self) -> None:
        self._owned: dict[Hashable, list[dict[T, None]]] = {}

    def __repr__(self) -> str:
        return f"<Shares of {len(self._owned)} owners>"

    def __len__(self) -> int:
        """How many callers have items queued."""
        return len(self._owned)

    def add(self, item: T, owner: Hashable, priority: int = 1) -> None:
        owned = self._owned.get(owner)
        if owned is None:
            owned = self._owned[owner] = [{} for _ in range(CLASSES)]
        owned[priority][item] = None

    def drop(self, item: T, owner: Hashable, priority: int = 1) -> None:
        """Remove an item, if it is here."""
        owned = self._owned.get(owner)
        if owned is not None:
            owned[priority].pop(item, None)
            if not any(owned):
                del self._owned[owner]

    def lengths(self) -> list[int]:
        """Items of each class."""
        return [sum(len(of[n]) for of in self._owned.values()) for n in range(CLASSES)]

    def owned(self, owner: Hashable) -> int:
        return sum(map(len, self._owned.get(owner, ())))

    def make_room(
        self, owner: Hashable, priority: int, limit: int, callers: Callable[[T], Collection[Hashable]]
    ) -> tuple[T, GatewayError]:
        """The item that leaves a full queue for a new one of `owner`, and its error: an owner below its share
        pushes out the newest item of the heaviest owner, an owner at its share an item of its own of a lower
        class. `callers`: of an item's readers. Raises GatewayError 429 or 503 if no item makes room."""
        mine = self.owned(owner)
        owners = len(self._owned) + (mine == 0)
        share = limit // owners
        victim = None
        error = share_exceeded(limit, owners)
        if mine >= share:
            victim = self._victim(owner, priority, limit, callers)
            error = queue_full(limit)
        elif self._owned:
            heaviest = max(self._owned, key=self.owned)
            if self.owned(heaviest) > share:
                victim = self._victim(heaviest, -1, limit, callers)
        if victim is None:
            raise share_exceeded(limit, owners) if owners > 1 and mine >= share else queue_full(limit)
        return victim, error

    # -- inside -----------------------------------------------------------------------------------

    def _victim(
        self, owner: Hashable, below: int, limit: int, callers: Callable[[T], Collection[Hashable]]
    ) -> T | None:
        """The newest item of the lowest class under `below` (-1: any) that no other caller reads. If all have
        other readers: one whose readers each have more than a share, so that joining does not protect a flood."""
        joined: list[tuple[T, set[Hashable]]] = []
        for item in self._newest_first(owner, below):
            others = {caller for caller in callers(item) if caller != owner}
            if not others:
                return item
            joined.append((item, others))
        reads = Counter(caller for _, others in joined for caller in others)
        share = limit // (len(self._owned.keys() | reads.keys()) or 1)
        for item, others in joined:
            if all(reads[caller] + self.owned(caller) > share for caller in others):
                return item
        return None

    def _newest_first(self, owner: Hashable, below: int) -> Iterator[T]:
        for priority in reversed(range(below + 1, CLASSES)):
            yield from reversed(self._owned.get(owner, ({},) * CLASSES)[priority])


def share_exceeded(limit: int, owners: int) -> GatewayError:
    """The error of a request whose caller has its share of the queue, or that makes room for another caller."""
    return GatewayError(
        Code.QUEUE_SHARE,
        f"Your share of the queue is full ({limit // owners} of {limit} requests; {owners} callers have "
        "requests queued); retry when some of your requests have finished.",
        retry_after=1,
    )


def queue_full(limit: int) -> GatewayError:
    """The error of a request of any caller in a full queue."""
    return GatewayError(
        Code.QUEUE_FULL,
        f"The gateway's queue is full ({limit} requests); retry shortly.",
        retry_after=1,
    )
