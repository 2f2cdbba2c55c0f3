"""A bounded summary of the requests that are queued for an engine: by pool, class and tenant."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, NamedTuple

MOST_TENANTS: Final = 32  # of a pool and class that are told apart
MOST_TOKENS: Final = 2**53
"""A request may ask for any number of tokens; a message between processes holds 64 bits."""


def name_of(tenant: Hashable) -> str | None:
    """A tenant's name for other processes: an address, or bytes in hexadecimal digits after a `#`."""
    if isinstance(tenant, bytes):
        return "#" + tenant.hex()
    return tenant if isinstance(tenant, str) and tenant.isascii() and not tenant.startswith("#") else None


def tenant_of_name(name: str) -> Hashable:
    """The tenant of this name."""
    return bytes.fromhex(name[1:]) if name.startswith("#") else name


class Waiting(NamedTuple):
    """Requests of one class that wait for one pool: of one tenant, or of all tenants that have no entry."""

    priority: int  # the class, an index of PRIORITIES
    tenant: str | None  # see `name_of`; None: of several, or of one that has no name
    tenants: int
    users: int
    queued: int  # requests
    served: int  # tokens dispatched since the tenant has requests here


class PoolQueue(NamedTuple):
    """The queued requests of one pool of engines; the tenants of each class in the order of their turns."""

    pool: str | None
    oldest: float  # arrival of the oldest request, by the monotonic clock
    waiting: list[Waiting]

    @property
    def queued(self) -> int:
        return sum(each.queued for each in self.waiting)
