"""Equal shares of a full queue by tenant, within it by user, and which queued item makes room for a new one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Final, Generic, TypeVar

from proxy.errors import Code, GatewayError
from proxy.flights.spec import User, as_user

T = TypeVar("T", bound=Hashable)

CLASSES: Final = 3


class Shares(Generic[T]):
    """Queued items by tenant, user and class, each in the order of arrival."""

    def __init__(self) -> None:
        self._tenants: dict[Hashable, dict[Hashable, list[dict[T, None]]]] = {}

    def __repr__(self) -> str:
        return f"<Shares of {len(self._tenants)} owners>"

    def __len__(self) -> int:
        """How many tenants have items queued."""
        return len(self._tenants)

    def add(self, item: T, owner: Hashable, priority: int = 1) -> None:
        tenant, key = as_user(owner)
        users = self._tenants.setdefault(tenant, {})
        owned = users.get(key)
        if owned is None:
            owned = users[key] = [{} for _ in range(CLASSES)]
        owned[priority][item] = None

    def drop(self, item: T, owner: Hashable, priority: int = 1) -> None:
        """Remove an item, if it is here."""
        tenant, key = as_user(owner)
        users = self._tenants.get(tenant, {})
        owned = users.get(key)
        if owned is not None:
            owned[priority].pop(item, None)
            if not any(owned):
                del users[key]
                if not users:
                    del self._tenants[tenant]

    def lengths(self) -> list[int]:
        """Items of each class."""
        users = [owned for users in self._tenants.values() for owned in users.values()]
        return [sum(len(owned[n]) for owned in users) for n in range(CLASSES)]

    def owned(self, tenant: Hashable) -> int:
        """Items of a tenant."""
        return sum(sum(map(len, owned)) for owned in self._tenants.get(tenant, {}).values())

    def used(self, owner: Hashable) -> int:
        """Items of an owner's user."""
        tenant, key = as_user(owner)
        return sum(map(len, self._tenants.get(tenant, {}).get(key, ())))

    def lighter(self, owner: Hashable, than: Hashable) -> bool:
        """Whether an owner has fewer items than another, even with one more: its tenant or, within one tenant, its
        user."""
        mine, others = as_user(owner).tenant, as_user(than).tenant
        if mine == others:
            return self.used(owner) + 1 < self.used(than)
        return self.owned(mine) + 1 < self.owned(others)

    def make_room(
        self, owner: Hashable, priority: int, limit: int, callers: Callable[[T], Collection[Hashable]]
    ) -> tuple[T, GatewayError]:
        """The item that leaves a full queue for a new one of `owner`, and its error. A tenant below its share
        pushes out the newest item of the heaviest tenant. In a tenant at its share, a user below its part pushes
        out the newest item of the heaviest user, any other user an item of the tenant of a lower class. `callers`:
        of an item's readers. Raises GatewayError 429 or 503 if no item makes room."""
        tenant, _ = as_user(owner)
        mine = self.owned(tenant)
        owners = len(self._tenants) + (mine == 0)
        share = limit // owners
        victim = None
        error = share_exceeded(limit, owners)
        if mine >= share:
            error, victim = self._within(owner, priority, limit, callers)
        elif self._tenants:
            heaviest = max(self._tenants, key=self.owned)
            if self.owned(heaviest) > share:
                victim = self._victim(self._users(heaviest), -1, limit, callers)
        if victim is None:
            raise share_exceeded(limit, owners) if owners > 1 and mine >= share else queue_full(limit)
        return victim, error

    # -- inside -----------------------------------------------------------------------------------

    def _within(
        self, owner: Hashable, priority: int, limit: int, callers: Callable[[T], Collection[Hashable]]
    ) -> tuple[GatewayError, T | None]:
        """The item of a tenant at its share that makes room for one of its users; None if none does."""
        tenant, _ = as_user(owner)
        users = self._users(tenant)
        own = self.used(owner)
        count = len(users) + (own == 0)
        part = self.owned(tenant) // count
        if users and own < part < self.used(users[0]):
            victim = self._victim(users[:1], -1, limit, callers)
            if victim is not None:
                return share_exceeded(limit, len(self._tenants), count), victim
        return queue_full(limit), self._victim(users, priority, limit, callers)

    def _users(self, tenant: Hashable) -> list[User]:
        """A tenant's users with items, the heaviest first."""
        users = [User(tenant, key) for key in self._tenants.get(tenant, ())]
        return sorted(users, key=self.used, reverse=True)

    def _victim(
        self, users: list[User], below: int, limit: int, callers: Callable[[T], Collection[Hashable]]
    ) -> T | None:
        """The newest item of the lowest class under `below` (-1: any) that no other caller reads. If all have
        other readers: one whose readers each have more than a share, so that joining does not protect a flood."""
        joined: list[tuple[T, set[User]]] = []
        for user, item in self._newest_first(users, below):
            others = {as_user(caller) for caller in callers(item)} - {user}
            if not others:
                return item
            joined.append((item, others))
        reads = Counter(user for _, others in joined for user in others)
        share = limit // (len(self._tenants.keys() | {user.tenant for user in reads}) or 1)
        for item, others in joined:
            if all(
                reads[user] + self.used(user) > share // max(1, len(self._tenants.get(user.tenant, ())))
                for user in others
            ):
                return item
        return None

    def _newest_first(self, users: list[User], below: int) -> Iterator[tuple[User, T]]:
        for priority in reversed(range(below + 1, CLASSES)):
            for user in users:
                for item in reversed(self._tenants[user.tenant][user.key][priority]):
                    yield user, item


def share_exceeded(limit: int, owners: int, users: int = 1) -> GatewayError:
    """The error of a request whose caller has its share of the queue, or that makes room for another caller.
    `users`: of the tenant, where the share is one user's."""
    more = f", and {users} of your tenant's keys have" if users > 1 else ""
    return GatewayError(
        Code.QUEUE_SHARE,
        f"Your share of the queue is full ({limit // owners // users} of {limit} requests; {owners} callers have "
        f"requests queued{more}); retry when some of your requests have finished.",
        retry_after=1,
    )


def queue_full(limit: int) -> GatewayError:
    """The error of a request of any caller in a full queue."""
    return GatewayError(
        Code.QUEUE_FULL,
        f"The gateway's queue is full ({limit} requests); retry shortly.",
        retry_after=1,
    )
