"""What a Flight is for (`FlightSpec`), what decides its turn (`QueueState`), and plain data about its answer."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from enum import Enum
from typing import Final, NamedTuple

import msgspec

from proxy.config import NORMAL
from proxy.wire import ApiRequest
from proxy.wire.event_apis import EventApi


class Mode(Enum):
    STREAM = "stream"  # SSE: the log holds frames, each in its HTTP chunk
    WHOLE = "whole"  # one JSON body
    RAW = "raw"  # passed through unchanged, never shared


class Head(msgspec.Struct, frozen=True, gc=False):
    """An answer's status and end-to-end headers, as the engine sent them."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None  # Content-Length in bytes, where the engine sent one


RATE_LIMITS: Final = frozenset(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)
"""Rate-limit headers: the gateway's where it limits the request, else the engine's."""

REQUEST_ID: Final = "X-Request-Id"
OF_ONE_REQUEST: Final = frozenset({"x-request-id", "content-type", "traceparent", "tracestate"})
"""Headers that may differ between requests that are merged or share an answer."""


def new_id() -> str:
    """A new request id: random, so it names no client and cannot be guessed."""
    return os.urandom(16).hex()


def headers_in_common(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers, sorted, that must be equal for requests that are merged or share an answer."""
    return sorted((name, value) for name, value in headers if name.lower() not in OF_ONE_REQUEST)


class FlightSpec(msgspec.Struct, frozen=True, gc=False):
    """What a Flight is for; never changed. A Struct, as it is made once a request: a frozen dataclass takes a call
    of Python for each field."""

    method: str
    path: str  # with its query, as sent to the engine
    body: bytes
    mode: Mode
    request_id: str  # the engine's name for it; a client's own id only where nobody else sees the answer
    headers: Sequence[tuple[str, str]] = ()
    api_request: ApiRequest | None = None
    model: str | None = None
    key: bytes | None = None  # None: shares nothing
    fresh: bool = False  # no look-up in the store, but the answer is written to it
    storable: bool = True  # its first reader allows its answer to be stored
    usage_added: bool = False  # the gateway asks for usage, though not every reader does
    tenant: bytes = b""  # requests of different tenants are never merged
    affinity: int = 0  # requests with the same number go to the same engine; 0: to any
    fold: bool = True  # a stored stream may answer it, where it wants one body
    salt: str = ""  # the `cache_salt` that it is sent with
    falls_back: bool = False  # another model answers where none of this one's engines is up: none is tried then
    many: bool = False  # its answer is divided among several clients
    parts: int = 0  # choices or vectors that its body asks for; 0: as many as `api_request` does
    cost: tuple[int, int] | None = None  # its tokens, prompt and completion, where they are known
    event_api: EventApi | None = None  # its answer is a stream of this API's events, or a body of it
    engine: str | None = None  # the name of the only engine that may answer it: it has what the request refers to


class User(NamedTuple):
    """One user of a tenant, for example an API key: tenants take turns, and each tenant's users do within its
    turns."""

    tenant: Hashable
    key: Hashable


def as_user(owner: Hashable) -> User:
    """The user of an owner; any other owner than a User is a tenant with one user."""
    return owner if isinstance(owner, User) else User(owner, None)


def tenant_of(owner: Hashable) -> Hashable:
    """The tenant of an owner; any other owner than a User is a tenant."""
    return owner.tenant if isinstance(owner, User) else owner


class QueueState(msgspec.Struct, eq=False):
    """What decides a Flight's turn in the queue: it changes as readers join and leave."""

    owner: Hashable | Callable[[], Hashable] = b""  # in whose turn it waits; see `resolve_owner`
    priority: int = NORMAL  # its class, an index of PRIORITIES; the highest of its readers'
    deadline: float = math.inf  # by the loop's clock; the earliest of its readers'
    latest: float = math.inf  # the same, the latest
    merge: bool = False  # it samples, and may go to an engine together with its twins
    assumed: int = 0  # completion tokens assumed for its ticket; 0: it has had no ticket
    callers: Callable[[], Collection[Hashable]] | None = None  # of a request for several: its callers now

    def resolve_owner(self) -> Hashable:
        """The owner, computed on first use: most Flights never wait, and finding the caller costs."""
        if callable(self.owner):
            self.owner = self.owner()
        return self.owner

    def resolve_tenant(self) -> Hashable:
        """The owner's tenant: whom its memory and failures count for."""
        owner = self.owner
        if callable(owner):
            owner = self.owner = owner()
        return owner.tenant if isinstance(owner, User) else owner

    def promote(self, priority: int, deadline: float) -> None:
        """One more reader waits for it."""
        self.latest = max(self.latest, deadline)
        self.priority = min(self.priority, priority)
        self.deadline = min(self.deadline, deadline)

    def assume(self, completion: int) -> None:
        """Record the completion tokens that its ticket was made with."""
        self.assumed = completion

    def read_by(self, callers: Callable[[], Collection[Hashable]] | None) -> None:
        """Its callers are not its subscribers' but these, until None is given."""
        self.callers = callers

    def stay_alone(self) -> None:
        """It is not merged again: an engine refused it together with others."""
        self.merge = False


class Items(NamedTuple):
    """Sources of the vectors of an answer to an embeddings request."""

    total: int
    cached: int  # vectors from the store
    unpaid: int  # tokens of its usage that cost it nothing: stored, or paid for by others

    def __str__(self) -> str:
        return f"{self.cached}/{self.total}"
