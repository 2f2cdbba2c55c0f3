"""Owns one Flight's way to an engine and back: its lease, its attempts, which failures lead to another one.
Must not know the queue, the store or readers. No task: it moves as its connection calls it.
Called by the scheduler, once a Flight that has been given a place."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from proxy.backends import Backend, Backends, Lease
from proxy.connection import Connection
from proxy.errors import Code, GatewayError
from proxy.feeder import Fault, Feeder, Limits, OnHead, Watch
from proxy.flight import Flight
from proxy.metrics import BAD_STATUS, Metrics
from proxy.phase import Phase
from proxy.plan import Mode
from proxy.retry import (
    CONNECT,
    FIRST_TOKEN,
    GONE,
    RESET,
    STALE,
    STATUSES,
    TRUNCATED,
    Budget,
    RetryRules,
    repeatable,
    retry_after,
)
from proxy.wire.openai import with_usage

_FAULTS: Final = frozenset(
    {
        Code.UPSTREAM_UNREACHABLE,
        Code.UPSTREAM_CONNECT_TIMEOUT,
        Code.UPSTREAM_TRUNCATED,
        Code.UPSTREAM_PROTOCOL,
        Code.UPSTREAM_FIRST_TOKEN_TIMEOUT,
        Code.UPSTREAM_TOKEN_TIMEOUT,
    }
)
"""What speaks against an engine. Not what one request asked too much: its size, its whole time."""

_BAD_STATUSES: Final = frozenset({500, 502, 503, 504})


MakeFeeder = Callable[
    [Flight, Limits, Watch, Callable[[GatewayError | None], None], OnHead | None, Callable[[], None] | None],
    Feeder,
]


@dataclass(slots=True, kw_only=True)
class Road:
    """What every journey needs."""

    backends: Backends
    limits: Limits
    watch: Watch
    metrics: Metrics
    own: Callable[[asyncio.Task[None]], None]  # takes a task and awaits it at the end
    arrived: Callable[[Journey, GatewayError | None], None]
    """Called once a journey: with None the Flight has landed; with an error it has not, and must be ended."""
    later: Callable[[float, Callable[[], None]], Any]  # calls back after seconds; what it gives can be cancelled
    fault: Fault  # is told of an error of ours
    retry: RetryRules
    budget: Budget
    jitter: Callable[[], float] = random.random
    feeder: MakeFeeder = Feeder


class Journey:
    """A Flight at an engine. Ends by `arrived`, or by `cancel`."""

    __slots__ = (
        "_connecting", "_connection", "_error", "_judged", "_left", "_over", "_reused", "_road", "_tried",
        "_waiting", "feeder", "flight", "lease",
    )  # fmt: skip

    def __init__(self, flight: Flight, lease: Lease, road: Road) -> None:
        self.flight = flight
        self.lease = lease
        self.feeder: Feeder | None = None
        self._road = road
        self._tried: set[Backend] = set()
        self._left = road.retry.retries
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waiting: Any = None  # the timer of a retry
        self._error: GatewayError | None = None  # of the last attempt
        self._reused = False
        self._judged: bool | None = None  # what has been said of this attempt's engine: that it did well, or not
        self._over = False

    def __repr__(self) -> str:
        return f"<Journey of {self.flight!r} at {self.lease.backend.name}>"

    def begin(self) -> None:
        self.flight.times.dispatched = self.flight.clock()
        self._road.budget.deposit()
        self._depart()

    def cancel(self) -> None:
        """Nobody wants the answer: the engine is told at once, whatever it is doing."""
        if self._over:
            return
        if self._connecting is not None:
            self._connecting.cancel()
        if self._waiting is not None:
            self._waiting.cancel()
        self._part(content=False)
        self._over = True
        pacer, flight = self.lease.backend.pacer, self.flight
        if pacer is not None and flight.mode is Mode.STREAM and flight.phase is Phase.CANCELLED:
            sent = flight.times.dispatched
            if sent is not None and flight.times.first is None:
                pacer.left(sent, flight.clock())  # its first token never came

    # -- one attempt ------------------------------------------------------------------------------

    def _depart(self) -> None:
        """An attempt at the engine that there is a lease for."""
        backend = self.lease.backend
        self.flight.backend = backend.name
        if self.flight.trace is not None:
            self.flight.trace.attempt(backend.name)
        self._judged = None
        self._road.metrics.upstream_request(backend.name)
        plan = self.flight.plan
        # What must not be sent twice does not go where it could meet a connection that is being closed.
        self._attempt(backend, fresh=plan.mode is Mode.RAW and not repeatable(plan.method, plan.path))

    def _attempt(self, backend: Backend, *, fresh: bool = False) -> None:
        self.flight.enter(Phase.CONNECTING)
        connection = None if fresh else backend.pool.take()
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
            self._failed(e, CONNECT)
            return
        except Exception as e:  # noqa: BLE001 - a Flight whose task died would wait for ever, and its place with it
            self._connecting = None
            self._broke("connecting to an engine", e)
            return
        self._connecting = None
        self._send(backend, connection, reused=False)

    def _send(self, backend: Backend, connection: Connection, *, reused: bool) -> None:
        flight, plan, road = self.flight, self.flight.plan, self._road
        flight.enter(Phase.PREFILL)
        try:
            body = with_usage(plan.ask) if plan.usage_added and plan.ask is not None else plan.body
            headers = plan.headers if flight.trace is None else flight.trace.headers(plan.headers)
            request = backend.pool.request(plan.method, plan.path, headers, body)
        except GatewayError as e:  # it cannot be written
            backend.pool.give(connection)
            self._arrive(e)
            return
        except Exception as e:  # noqa: BLE001 - as above
            backend.pool.give(connection)
            self._broke("writing a request", e)
            return
        self._reused = reused
        self._connection = connection
        first = self._first if self.lease.probe or backend.pacer is not None else None
        self.feeder = road.feeder(flight, road.limits, road.watch, self._fed, self._head, first)
        flight.throttle = self._throttle
        connection.send(request, self.feeder)

    def _head(self, status: int, headers: list[tuple[str, str]]) -> bool:
        """The engine's answer begins. True: it is asked again, this answer is dropped."""
        if status < 429:
            return False
        if status in _BAD_STATUSES:
            self._bad(f"it answered {status}")
            self._road.metrics.upstream_error(self.lease.backend.name, BAD_STATUS)
        if status not in STATUSES:
            return False
        self._error = None  # should no engine be free after a wait, that is what is said
        return self._again(str(status), retry_after(headers, time.time))

    def _first(self) -> None:
        """A stream has begun. A probe's need not end before others may go, and a pacer is told at once: by the end
        of a stream what its beginning said would be old."""
        pacer, sent = self.lease.backend.pacer, self.flight.times.dispatched
        if pacer is not None and sent is not None:
            pacer.answered(sent, self.flight.clock())
        if self.lease.probe:
            self._good()

    def _fed(self, error: GatewayError | None) -> None:
        """The exchange is over."""
        connection, flight = self._connection, self.flight
        self._part(content=error is None)
        if error is None:
            self._good()
            self._arrive(None)
            return
        if error.code in (Code.CONTENT_DENIED, Code.MEMORY_FULL):
            self._good()  # what we do not let through, or have no room for, is no failure of the engine's
            self._arrive(error)
            return
        cause = None
        if error.code is Code.UPSTREAM_UNREACHABLE and flight.head is None:
            if self._reused and connection is not None and not connection.received:
                # A kept connection that had died: not the engine's failure. Once, and then on a new one.
                self._road.metrics.retry(STALE)
                self._attempt(self.lease.backend, fresh=True)
                return
            cause = RESET
        elif error.code in (Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_TRUNCATED):
            cause = TRUNCATED
        elif error.code is Code.UPSTREAM_FIRST_TOKEN_TIMEOUT:
            cause = FIRST_TOKEN
        self._failed(error, cause)

    # -- its outcome ------------------------------------------------------------------------------

    def _good(self) -> None:
        if self._judged is None:
            self._judged = True
            self._road.backends.seen_good(self.lease)

    def _bad(self, why: str) -> None:
        if self._judged is not False:  # a stream that began well may still be cut
            self._judged = False
            self._road.backends.seen_bad(self.lease, why)

    def _failed(self, error: GatewayError, cause: str | None) -> None:
        """An attempt failed: once more, where the rules allow it and nothing has gone out."""
        backend, road = self.lease.backend, self._road
        road.metrics.upstream_error(backend.name, error.code.code)
        if error.code in _FAULTS:
            self._bad(error.message)
        if cause is CONNECT:
            road.backends.seen_down(backend, error.message)
        self._error = error
        if cause is None or not self._again(cause):
            self._arrive(error)

    def _again(self, cause: str, after: float | None = None) -> bool:
        """Ask again: another engine now, else this or any one after a wait. False: by the rules it is not."""
        road, flight, plan = self._road, self.flight, self.flight.plan
        if self._left <= 0 or cause not in road.retry.on or not flight.untouched:
            return False
        if cause is not CONNECT and plan.mode is Mode.RAW and not repeatable(plan.method, plan.path):
            return False
        self._tried.add(self.lease.backend)
        other = road.backends.another(plan.model, frozenset(self._tried), plan.affinity)
        pause = None
        if other is None:
            pause = road.retry.wait(flight.attempts, road.jitter(), after)
            if pause is None:
                return False
        if (other is None or cause not in GONE) and not road.budget.withdraw():
            road.metrics.retry_denied()
            if other is not None:
                other.release()
            return False
        self._left -= 1
        road.metrics.retry(cause)
        if flight.trace is not None:
            flight.trace.retried(cause)
        self._part(content=True)  # of an answer that is dropped; else there is nothing to part with
        flight.rewind()
        self.lease.release()
        if other is not None:
            self.lease = other
            self._depart()
        else:
            self._waiting = road.later(pause or 0.0, self._resume)
        return True

    def _resume(self) -> None:
        """A retry's wait is over: one that was not tried yet, else any. None is free: another wait, while any is
        left."""
        road, plan = self._road, self.flight.plan
        self._waiting = None
        lease = road.backends.another(plan.model, frozenset(self._tried), plan.affinity)
        lease = lease or road.backends.another(plan.model, frozenset(), plan.affinity)
        if lease is not None:
            self.lease = lease
            self._depart()
        elif self._left > 0:
            self._left -= 1
            pause = road.retry.wait(road.retry.retries - self._left + 1, road.jitter()) or 0.0
            self._waiting = road.later(pause, self._resume)
        else:
            none = GatewayError(Code.NO_BACKEND, "No engine is free for another attempt.", retry_after=1)
            self._arrive(self._error or none)

    def _broke(self, where: str, error: Exception) -> None:
        """An error of ours."""
        self._road.fault(where, error)
        self._arrive(GatewayError(Code.INTERNAL, "The gateway failed; its log has the reason."))

    def _part(self, *, content: bool) -> None:
        """Leave the connection; `content`: nothing more is wanted of the answer, so it may be kept."""
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
