"""The limit of client connections: over it, the connection that has been idle for longest is closed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Final, Protocol

from proxy.telemetry import raised

GRACE_SECONDS: Final = 0.005  # for the first bytes of a new connection to be read
SEARCH_SECONDS: Final = 0.02  # between two searches for idle connections, where there were none
UNDECIDED: Final = 128  # connections over the limit at one time that may wait for the grace to pass


class Evictable(Protocol):
    """A client connection."""

    @property
    def closing(self) -> bool:
        """Whether it is closed or being evicted."""

    @property
    def asks(self) -> bool:
        """Whether a request is under way, or has come."""

    @property
    def asked(self) -> bool:
        """Whether it ever had a request."""

    @property
    def idle_since(self) -> float:
        """Seconds of the loop's clock."""

    def make_way(self) -> None:
        """Evict it: a new connection replaces it."""

    def refuse_full(self) -> None:
        """Answer that the limit is reached, and close."""


class ConnectionLimit:
    """Over the limit, a new connection replaces the one that has been idle for longest, first of those that never
    had a request. It is refused where all others have one.

    Connections of the same event-loop iteration have not been idle for different times: up to `UNDECIDED` of them
    stay over the limit until the grace of each has passed."""

    def __init__(self, most: int, connections: Collection[Evictable], loop: asyncio.AbstractEventLoop) -> None:
        self.most = most
        self._connections = connections
        self._loop = loop
        self._idle: deque[tuple[float, Evictable]] = deque()  # results of the latest search
        self._search_from = 0.0
        self._young = False  # the latest search found connections without a request yet, all within their grace
        self._undecided: deque[tuple[float, Evictable]] = deque()  # since when
        self._timer: asyncio.TimerHandle | None = None

    def admit(self, newest: Evictable) -> bool:
        """Whether this new connection may stay, at least until the grace has passed."""
        if len(self._connections) <= self.most or self._make_room(newest):
            return True
        if not self._young or len(self._undecided) >= UNDECIDED:
            return False
        self._undecided.append((self._loop.time(), newest))
        if self._timer is None:
            self._timer = self._loop.call_later(GRACE_SECONDS, self._decide)
        return True

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _decide(self) -> None:
        self._timer = None
        self._search_from = 0.0
        while self._undecided:
            since, connection = self._undecided[0]
            left = since + GRACE_SECONDS - self._loop.time()
            if left > 0:
                self._timer = self._loop.call_later(left, self._decide)
                return
            self._undecided.popleft()
            try:
                if not (connection.closing or self._make_room(connection) or connection.asks):
                    connection.refuse_full()
            except Exception as e:  # noqa: BLE001 - the others must still be decided on
                raised("a connection over the limit", e)

    def _make_room(self, newest: Evictable) -> bool:
        now = self._loop.time()
        while True:
            while self._idle:
                since, connection = self._idle.popleft()
                if connection is newest or connection.closing or connection.asks or connection.idle_since != since:
                    continue
                connection.make_way()
                return True
            if now < self._search_from:
                return False
            idle = [one for one in self._connections if not (one is newest or one.asks or one.closing)]
            silent = [one for one in idle if not one.asked]
            old = [one for one in silent or idle if now - one.idle_since >= GRACE_SECONDS]
            if not old:
                self._young = bool(silent)
                self._search_from = now + (GRACE_SECONDS if self._young else SEARCH_SECONDS)
                return False
            self._idle.extend(sorted(((one.idle_since, one) for one in old), key=lambda pair: pair[0]))
