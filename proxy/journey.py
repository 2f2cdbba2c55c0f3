"""Owns one Flight's way to an engine and back: its lease, its attempts, which errors lead to another one.
Must not know the queue, the store or readers. No task: it moves as its connection calls it.
Called by the scheduler, once a Flight that has been given a place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.backends import Backend, Backends, Lease
from proxy.connection import Connection
from proxy.errors import Code, GatewayError
from proxy.feeder import Feeder, Limits, Watch
from proxy.flight import Flight, Phase
from proxy.metrics import Metrics
from proxy.wire.openai import with_usage

_ELSEWHERE: Final = frozenset({Code.UPSTREAM_UNREACHABLE.code, Code.UPSTREAM_CONNECT_TIMEOUT.code})
"""What another engine may do better."""


MakeFeeder = Callable[[Flight, Limits, Watch, Callable[[GatewayError | None], None]], Feeder]


@dataclass(slots=True)
class Road:
    """What every journey needs."""

    backends: Backends
    limits: Limits
    watch: Watch
    metrics: Metrics
    own: Callable[[asyncio.Task[None]], None]  # takes a task and awaits it at the end
    arrived: Callable[[Journey, GatewayError | None], None]
    """Called once a journey: with None the Flight has landed; with an error it has not, and must be ended."""
    feeder: MakeFeeder = Feeder


class Journey:
    """A Flight at an engine. Ends by `arrived`, or by `cancel`."""

    __slots__ = (
        "_connecting", "_connection", "_over", "_reused", "_road", "_tried", "feeder", "flight", "lease",
    )  # fmt: skip

    def __init__(self, flight: Flight, lease: Lease, road: Road) -> None:
        self.flight = flight
        self.lease = lease
        self.feeder: Feeder | None = None
        self._road = road
        self._tried: list[Backend] = []
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._reused = False
        self._over = False

    def __repr__(self) -> str:
        return f"<Journey of {self.flight!r} at {self.lease.backend.name}>"

    def begin(self) -> None:
        self.flight.times.dispatched = self.flight.clock()
        self._depart()

    def cancel(self) -> None:
        """Nobody wants the answer: the engine is told at once, whatever it is doing."""
        if self._over:
            return
        if self._connecting is not None:
            self._connecting.cancel()
        self._part(content=False)
        self._over = True

    # -- inside -----------------------------------------------------------------------------------

    def _depart(self) -> None:
        """The first attempt at an engine."""
        backend = self.lease.backend
        self.flight.backend = backend.name
        self._road.metrics.upstream_request(backend.name)
        self._attempt(backend)

    def _attempt(self, backend: Backend) -> None:
        self.flight.enter(Phase.CONNECTING)
        connection = backend.pool.take()
        if connection is not None:
            self._send(backend, connection, reused=True)
        else:
            self._connecting = asyncio.ensure_future(self._connect(backend))
            self._road.own(self._connecting)

    async def _connect(self, backend: Backend) -> None:
        try:
            connection = await backend.pool.connect()
        except GatewayError as e:
            self._connecting = None
            self._failed(e)
            return
        self._connecting = None
        self._send(backend, connection, reused=False)

    def _send(self, backend: Backend, connection: Connection, *, reused: bool) -> None:
        flight, plan = self.flight, self.flight.plan
        flight.enter(Phase.PREFILL)
        body = with_usage(plan.ask) if plan.usage_added and plan.ask is not None else plan.body
        try:
            request = backend.pool.request(plan.method, plan.path, plan.headers, body)
        except GatewayError as e:  # it cannot be written
            backend.pool.give(connection)
            self._arrive(e)
            return
        self._reused = reused
        self._connection = connection
        self.feeder = self._road.feeder(flight, self._road.limits, self._road.watch, self._fed)
        flight.throttle = self._throttle
        connection.send(request, self.feeder)

    def _fed(self, error: GatewayError | None) -> None:
        """The exchange is over."""
        connection = self._connection
        self._part(content=error is None)
        if error is None or error.code is Code.CONTENT_DENIED:
            self._arrive(error)  # what we do not let through is no failure of the engine's
        elif (
            self._reused
            and connection is not None
            and not connection.received
            and error.code is Code.UPSTREAM_UNREACHABLE
        ):
            self._attempt(self.lease.backend)  # a kept connection that had died: not the engine's failure
        else:
            self._failed(error)

    def _failed(self, error: GatewayError) -> None:
        """An attempt failed: another engine, where this one could not be reached and nothing has gone out."""
        backend, road = self.lease.backend, self._road
        road.metrics.upstream_error(backend.name, error.code.code)
        self._tried.append(backend)
        if error.code.code not in _ELSEWHERE or self.flight.started:
            self._arrive(error)
            return
        road.backends.seen_down(backend, error.message)
        try:
            other = road.backends.acquire(self.flight.plan.model, exclude=frozenset(self._tried))
        except GatewayError:
            other = None
        if other is None:
            self._arrive(error)
            return
        self.lease.release()
        self.lease = other
        self._depart()

    def _part(self, *, content: bool) -> None:
        """Leave the connection; `content`: the answer is whole, so it may be kept."""
        feeder, connection = self.feeder, self._connection
        self.flight.throttle = None
        self._connection = None
        if feeder is not None and connection is not None:
            feeder.close()  # without effect where it has ended itself
            connection.release(feeder, content=content)

    def _arrive(self, error: GatewayError | None) -> None:
        self._over = True
        self._road.arrived(self, error)

    def _throttle(self, hold: bool) -> None:
        """Hold the engine back for a private Flight whose one reader lags, and stop its clock meanwhile."""
        if self.feeder is not None and self._connection is not None:
            self.feeder.hold(hold)
            self._connection.throttle(self.feeder, hold)
