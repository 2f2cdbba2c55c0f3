"""Owns what a Flight is for and what is known of it: its plan, its head, its times, its mode.
Must not know how it is fed or read: plain data.
Called by flight and by everyone who makes, feeds or renders one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from proxy.wire import ApiRequest


class Mode(Enum):
    STREAM = "stream"  # SSE: the log holds frames, each in its HTTP chunk
    WHOLE = "whole"  # one JSON body
    RAW = "raw"  # passed through as it comes, never shared


@dataclass(slots=True, frozen=True)
class Head:
    """An answer's status and end-to-end headers, as the engine gave them."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    length: int | None = None  # Content-Length in bytes, where the engine gave one


RATE_LIMITS: Final = frozenset(
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
)
"""Headers that tell a client what it has left. The gateway's, where it limits the request, else the engine's."""

REQUEST_ID: Final = "X-Request-Id"
OF_ONE_REQUEST: Final = frozenset({"x-request-id", "content-type", "traceparent", "tracestate"})
"""Headers in which requests that go up together may differ."""


def new_id() -> str:
    """The id of a request, of our own making: it names nobody, and nobody can guess the next one."""
    return os.urandom(16).hex()


def headers_in_common(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those that requests which share an answer, or go up together, must have alike, in one order."""
    return sorted((name, value) for name, value in headers if name.lower() not in OF_ONE_REQUEST)


@dataclass(slots=True)
class Plan:
    """What a Flight is for, fixed at its making."""

    method: str
    path: str  # with its query, as sent to the engine
    body: bytes
    mode: Mode
    request_id: str  # by which the engine knows it; a client's own only where nobody else sees the answer
    headers: Sequence[tuple[str, str]] = ()
    ask: ApiRequest | None = None
    model: str | None = None
    key: bytes | None = None  # None: shares nothing
    fresh: bool = False  # do not look in the store, but write to it
    storable: bool = True  # its answer may be stored, as far as its first reader is concerned
    usage_added: bool = False  # usage was asked for by us, not by every reader
    merge: bool = False  # it samples: it may go up together with its twins
    many: bool = False  # its answer is taken apart for several clients
    tenant: bytes = b""  # whose it is: twins of others are none
    affinity: int = 0  # what belongs at the same engine has the same; 0: anywhere
    owner: Hashable | Callable[[], Hashable] = b""  # whose turn it takes where it has to wait
    callers: Callable[[], Collection[Hashable]] | None = None  # of a request made for several: who they are now
    priority: int = 1  # its class, see `line.PRIORITIES`; the highest of its readers'
    deadline: float = math.inf  # by the loop's clock; the earliest of its readers'
    latest: float = math.inf  # the same, the latest
    parts: int = 0  # choices or vectors that its body asks for; 0: as many as `ask` does
    carried_as: str = ""  # the id of the request that went up for it and for others
    refused_by: str = ""  # an engine that refused it together with others
    cost: tuple[int, int] | None = None  # its tokens, prompt and completion, where they are known
    fold: bool = True  # a stored stream may serve it, where it wants one body
    assumed: int = 0  # tokens that its answer was taken for where it had to wait; 0: nobody asked


class Items(NamedTuple):
    """What an answer of several inputs, each with its own vector, is made of."""

    total: int
    cached: int  # of them from the store
    unpaid: int  # tokens of its usage that the store had, or that others pay for

    def __str__(self) -> str:
        return f"{self.cached}/{self.total}"


@dataclass(slots=True)
class Times:
    """Times by the flight's clock, in seconds, of what happened to a Flight; None for what did not."""

    created: float = 0.0
    dispatched: float | None = None  # left the queue for an engine
    first: float | None = None  # first frame with content (role chunks do not count)
    last: float | None = None
    ended: float | None = None
