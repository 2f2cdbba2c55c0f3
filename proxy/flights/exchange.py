"""A dispatched Flight: its lease, its attempts, which failures lead to another attempt, and the continuation of a
stream that broke.

No task belongs to an exchange: it advances as its connection calls it."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from proxy.config import CONNECT, FIRST_TOKEN, MALFORMED, RESET, STALE, TRUNCATED
from proxy.errors import Code, GatewayError
from proxy.flights.continuing import (
    IDS,
    REPLAY,
    Continuation,
    Continuations,
    IdsIngest,
    Replay,
    RestFlight,
    TokenIds,
    asks_for_ids,
    continuable,
    not_continued,
    with_ids,
)
from proxy.flights.events import EventIngest, RawIngest
from proxy.flights.flight import Flight
from proxy.flights.ingest import REFUSAL, Callbacks, Ingest, Timeouts
from proxy.flights.phase import Phase
from proxy.flights.spec import Mode
from proxy.telemetry import BAD_STATUS, Fault, Metrics, contained, internal
from proxy.upstream import GONE, STATUSES, Backend, Backends, Budget, Lease, RetryRules, repeatable, retry_after
from proxy.upstream.http import Connection
from proxy.wire import DONE, salted, settable, with_usage

_FAULTS: Final = frozenset(
    {
        Code.UPSTREAM_UNREACHABLE,
        Code.UPSTREAM_CONNECT_TIMEOUT,
        Code.UPSTREAM_TRUNCATED,
        Code.UPSTREAM_INCOMPLETE,
        Code.UPSTREAM_ERROR_FRAME,
        Code.UPSTREAM_PROTOCOL,
        Code.UPSTREAM_FIRST_TOKEN_TIMEOUT,
        Code.UPSTREAM_TOKEN_TIMEOUT,
    }
)
"""Errors that count against an engine. Limits that one request exceeds, of size or of total time, do not."""

_BREAKS: Final = frozenset({Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_TRUNCATED, Code.UPSTREAM_TOKEN_TIMEOUT})
"""Failed attempts whose stream another answer may continue, besides what `Exchange._on_break` is called with."""

_DROPPED: Final = frozenset({Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_TRUNCATED, Code.UPSTREAM_INCOMPLETE})
"""Those after which the engine works no more for the request: see `GONE`. All its streams break at once when it is
killed, and the retry budget does not apply to them where another engine runs."""

_ENDED: Final = frozenset({Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_TRUNCATED, Code.UPSTREAM_ERROR_FRAME})
"""The answer ended before it was complete."""

_CUT: Final = frozenset({Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_TRUNCATED})
"""The engine's connection ended: the request may have killed it. See `Exchange._look_whether_gone`."""

_NO_ENGINES: Final[frozenset[Backend]] = frozenset()

_OURS: Final = frozenset({Code.CONTENT_DENIED, Code.MEMORY_FULL, Code.INTERNAL})
"""Errors of the gateway's own: denied content, no memory, a bug. They say nothing about an engine."""

# Globals are cheaper to look up than members of a class.
_PREFILL: Final = Phase.PREFILL
_RAW: Final = Mode.RAW

_BAD_STATUSES: Final = frozenset({500, 502, 503, 504})

_ID: Final = re.compile(rb'"id"\s*:\s*"([^"]*)"')
ID_WITHIN: Final = 1024  # bytes at the start of a body that are searched for its id

GONE_SECONDS: Final = 5.0
"""How long an engine that is down may be silent: in a graceful shutdown it still completes its streams."""

MakeIngest = Callable[[Flight, Timeouts, Callbacks], Ingest]


@dataclass(slots=True, kw_only=True, frozen=True)
class ExchangeContext:
    """What all exchanges share."""

    backends: Backends
    timeouts: Timeouts
    metrics: Metrics
    later: Callable[[float, Callable[[], None]], Any]  # calls back after seconds; returns a handle with `cancel`
    fault: Fault  # reports an error of the gateway's own
    retry: RetryRules = field(default_factory=RetryRules)
    budget: Budget = field(default_factory=Budget)
    resume: bool = True  # continue streams that break
    ids: bool = False  # ask for the ids of tokens, to continue sampled streams too
    hand_over: float = 10.0  # seconds that streams of a removed engine have to end there
    continuations: Continuations  # of the streams that are continued
    jitter: Callable[[], float] = random.random
    ingest: MakeIngest = Ingest


class ExchangeOwner(Protocol):
    """Starts exchanges and is called when they end."""

    def arrived(self, exchange: Exchange, error: GatewayError | None) -> None:
        """Called once an exchange. None: the Flight has landed; else it has not, and must be ended."""

    def requeue(self, exchange: Exchange) -> bool:
        """Put an exchange without an engine for its next attempt at the head of the queue, which calls `resume`.
        False: there is no queue any more."""

    def parked(self, exchange: Exchange) -> None:
        """It waits for its place among the streams that are continued, which resumes it."""

    def own(self, task: asyncio.Task[None]) -> None:
        """Keep a task, and await it at the end."""


class _Left(NamedTuple):
    """An attempt at an engine that is removed, while another one repeats its stream. Nothing is read from it."""

    lease: Lease
    connection: Connection
    ingest: Ingest
    judged: bool | None
    read: tuple[int, int]  # what readers have: see `_read`


@settable
class Exchange(msgspec.Struct, eq=False):
    """A Flight at an engine. Ends by `ExchangeOwner.arrived`, or by `cancel`. A Struct, made in C."""

    flight: Flight
    lease: Lease
    _context: ExchangeContext
    _owner: ExchangeOwner
    _fed: Flight
    """What the answer is written into: the Flight, or the Replay that continues it."""
    _left: int  # attempts
    ingest: Ingest | None = None
    _tried: set[Backend] = msgspec.field(default_factory=set)
    _connection: Connection | None = None
    _connecting: asyncio.Task[None] | None = None
    _waiting: Any = None  # the timer of a retry
    _gone: Any = None  # the timer of an engine that is down
    _error: GatewayError | None = None  # of the last attempt
    _reused: bool = False
    _begin: bytes = b""  # of the answer's body, until its id is known
    _judged: bool | None = None  # this attempt's outcome, as reported: success or failure
    _broke: GatewayError | None = None  # why its stream is continued
    _differs: bool = False  # the other answer is another one
    _how: str = REPLAY  # in which way it is continued
    _token_ids: TokenIds | None = None  # the ids of its tokens, where they were asked for
    _ids_refused: Backend | None = None  # by this engine, perhaps
    _continuation: Continuation | None = None  # among the streams that are continued
    _leaves: _Left | None = None  # at an engine that is removed
    _stays: bool = False  # handing it over has failed
    _over: bool = False

    def __repr__(self) -> str:
        return f"<Exchange of {self.flight!r} at {self.lease.backend.name}>"

    def cancel(self) -> None:
        """No reader is left: the engine is told at once, in every phase."""
        if self._over:
            return
        if self._connecting is not None:
            self._connecting.cancel()
        if self._waiting is not None:
            self._waiting.cancel()
        self._detach(content=False)
        self._leave_removed()
        self._over = True
        if self._fed is not self.flight:
            self._replayed("cancelled" if self.flight.phase is Phase.CANCELLED else "failed")
        adaptive_limit, flight = self.lease.backend.adaptive_limit, self.flight
        if adaptive_limit is not None and flight.mode is Mode.STREAM and flight.phase is Phase.CANCELLED:
            sent = flight.times.dispatched
            if sent is not None and flight.times.first is None:
                adaptive_limit.abandoned(sent, flight.clock())  # its first token never came

    def resume(self) -> bool:
        """Called at the head of the queue: take a lease of an engine that was not tried yet, else of any. True: it
        leaves the queue."""
        spec, others = self.flight.spec, self._of_other_builds()
        try:
            lease = self._acquire_untried(others) or self._context.backends.acquire(
                spec.model, exclude=others, affinity=spec.affinity, only=spec.engine
            )
        except GatewayError as none:
            error = self._error or none
            if others:
                error = GatewayError(Code.NO_BACKEND, "no engine of the same build is up")
            self._finish(error)
            return True
        if lease is None:
            return False
        self.lease = lease
        self.begin()
        return True

    def engine_gone(self) -> None:
        """Its engine is down. Before its first byte it moves to another engine; afterwards it goes on while bytes
        come, and for GONE_SECONDS without. Called with each check while the engine is down."""
        if self._over or self._gone is not None or self._connection is None or self._move_elsewhere():
            return
        now = self.flight.clock()
        self._gone = self._context.later(GONE_SECONDS, self._check_silence(now))

    def engine_silent(self) -> None:
        """Its engine answers no checks. Before its first byte it moves to another; else its timeouts apply."""
        if not self._over and self._connection is not None:
            self._move_elsewhere()

    def _check_silence(self, since: float) -> Callable[[], None]:
        return partial(self._safely, "an engine that is down", partial(self._still_gone, since))

    def _still_gone(self, since: float) -> None:
        """Whether anything has come since the engine was found down."""
        self._gone = None
        ingest, backend = self.ingest, self.lease.backend
        if self._over or ingest is None or self._connection is None or backend.up or self._move_elsewhere():
            return
        now = self.flight.clock()
        if ingest.last > since or ingest.held:
            self._gone = self._context.later(GONE_SECONDS, self._check_silence(now))
            return
        code = Code.UPSTREAM_UNREACHABLE if self._fed.untouched else Code.UPSTREAM_TRUNCATED
        why = f"The engine is down ({backend.detail.rstrip('.')}) and sent nothing for {GONE_SECONDS:g} s."
        self._context.metrics.upstream_error(backend.name, code.code)
        error = GatewayError(code, why)
        if not self._continue(error):
            self._detach(content=False)
            self._finish(error)

    def _move_elsewhere(self) -> bool:
        """Retry at another engine that runs, where the rules allow it. True: an attempt follows."""
        return self._has_other_engine() and self._retry(RESET, content=False)

    def _acquire_untried(self, others: frozenset[Backend]) -> Lease | None:
        """A lease of an engine that was not tried yet and is none of `others`, if one may answer and has room. It
        is returned at once: what is called with a lease in hand may raise, and lose it."""
        spec = self.flight.spec
        if spec.engine is not None:
            return None
        return self._context.backends.acquire_untried(spec.model, others.union(self._tried), spec.affinity)

    def _of_other_builds(self) -> frozenset[Backend]:
        """The engines that may not continue this stream: ids of tokens mean something to one build only."""
        token_ids, model = self._token_ids, self.flight.spec.model
        if self._how != IDS or token_ids is None:
            return _NO_ENGINES
        engines = self._context.backends.candidates(model)
        return frozenset(b for b in engines if (b.build.of(model, math.inf) or b"") != token_ids.build)

    def _has_other_engine(self) -> bool:
        """Whether an engine runs that was not tried, with capacity or not."""
        if self.flight.spec.engine is not None:
            return False
        here, tried = self.lease.backend, self._tried
        engines = self._context.backends.candidates(self.flight.spec.model)
        return any(b.up is not False and b is not here and b not in tried for b in engines)

    # -- one attempt ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin an attempt at the leased engine."""
        backend = self.lease.backend
        if self.flight.attempts == 1:
            self._context.budget.deposit()
        self._fed.dispatched(backend.name, self._throttle)
        if self.flight.spec.usage_added:
            self._reshape(backend)
        if self.flight.trace is not None:
            self.flight.trace.attempt(backend.name)
        self._judged = None
        self._context.metrics.upstream_request(backend.name)
        spec = self.flight.spec
        # A request that must not be sent twice gets a new connection: a kept one may be closing.
        once = (spec.mode is _RAW or spec.event_api is not None) and not repeatable(spec.method, spec.path)
        once = once or self._broke is not None  # a kept one that ends could be one that had died
        connection = None if once else backend.pool.take()
        if connection is not None:
            self._send(backend, connection, reused=True)
        else:
            self._connect_anew(backend)

    def _reshape(self, backend: Backend) -> None:
        """A shared stream is at this engine now: readers that wait for its fold may have to be served
        otherwise."""
        flight, api_request = self.flight, self.flight.spec.api_request
        if api_request is not None:
            shape = backend.abilities.shape(api_request)
            if self._fed is not flight and shape != flight.shape:
                flight.unfold()  # the stream has frames of both shapes
                shape = None
            flight.expects(shape)
            if flight.look is not None and not backend.abilities.folds(api_request):
                flight.unfold()

    def _connect_anew(self, backend: Backend) -> None:
        """Send it over a new connection."""
        self._fed.enter(Phase.CONNECTING)
        self._connecting = task = asyncio.ensure_future(self._connect(backend))
        self._owner.own(task)
        task.add_done_callback(self._connected)

    async def _connect(self, backend: Backend) -> None:
        try:
            connection = await backend.pool.connect()
        except GatewayError as e:
            self._attempt_failed(e, CONNECT)
            return
        self._send(backend, connection, reused=False)

    def _connected(self, task: asyncio.Task[None]) -> None:
        """The task that connects has ended. An unexpected exception of it ends the Flight."""
        if self._connecting is task:
            self._connecting = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._contain("connecting to an engine", error)

    def _send(self, backend: Backend, connection: Connection, *, reused: bool) -> None:
        flight, spec, exchange_context = self.flight, self._fed.spec, self._context
        try:
            self._fed.enter(_PREFILL)
            body = with_usage(spec.api_request) if spec.usage_added and spec.api_request is not None else spec.body
            token_ids = None
            if exchange_context.ids and self._fed is flight:
                token_ids = self._token_ids = self._token_ids_at(backend)
                body = body if token_ids is None else with_ids(body)
            if spec.salt:
                body = salted(body, spec.salt)
            headers = spec.headers if flight.trace is None else flight.trace.headers(spec.headers)
            request = backend.pool.request(spec.method, spec.path, headers, body)
            self._reused = reused
            first = self._on_first_token if self.lease.probe or backend.adaptive_limit is not None else None
            self._begin = b""
            passed = spec.mode is _RAW or spec.event_api is not None
            vet = None if backend.echoes is False or passed else self._check_id
            callbacks = Callbacks(self._on_response_end, self._on_head, first, vet, self._on_break)
            if token_ids is not None:
                self.ingest = IdsIngest(flight, exchange_context.timeouts, callbacks, token_ids)
            else:
                make = exchange_context.ingest
                if spec.event_api is not None:
                    make = EventIngest
                elif passed and (spec.cost is None or spec.cost[1]):  # it may generate
                    make = RawIngest
                self.ingest = make(self._fed, exchange_context.timeouts, callbacks)
            self._connection = connection
            connection.send(request, self.ingest)
        except GatewayError as e:  # it cannot be written
            backend.pool.release(connection)
            self._finish(e)
        except Exception as e:  # noqa: BLE001 - else the flight would wait for ever
            connection.abort()
            self._contain("sending a request", e)

    def _on_head(self, status: int, headers: list[tuple[str, str]]) -> bool:
        """The head of an answer whose status is REFUSAL or more. True: it is dropped, another attempt follows."""
        try:
            return self._on_refusal(status, headers)
        except Exception as e:  # noqa: BLE001 - the connection may be detached already: nothing else would end this
            self._contain("an engine's refusal", e)
            return True

    def _on_refusal(self, status: int, headers: list[tuple[str, str]]) -> bool:
        if status < REFUSAL and self._token_ids is not None:
            return self._ask_without_ids()
        if status in _BAD_STATUSES:
            self._report_failure(f"it answered {status}")
            self._context.metrics.upstream_error(self.lease.backend.name, BAD_STATUS)
        if status not in STATUSES:
            return False
        self._error = None  # if no engine is free after the backoff, that is the error
        return self._retry(str(status), retry_after(headers, time.time))

    def _check_id(self, data: bytes) -> bool | None:
        """Compare the answer's `id` with the request's, from which vLLM makes it. On a reused connection a
        different id means a stale answer to an earlier request: it is dropped (True), and a new connection is
        used. None: the id is still to come."""
        self._begin = begin = self._begin + data if self._begin else data
        found = _ID.search(begin, 0, ID_WITHIN)
        if found is None and len(begin) < ID_WITHIN and (b"\n\n" not in begin or b"data:" not in begin):
            return None
        backend = self.lease.backend
        self._begin = b""
        if found is None:
            return False
        if b"-" + self.flight.spec.request_id.encode() in found[1]:
            if not backend.echoes:
                backend.learn_echo(echoes=True)
        elif not self._reused:
            backend.learn_echo(echoes=False)
        elif backend.echoes:
            self._detach(content=False)
            self._fed.rewind()
            self._context.metrics.retry(STALE)
            self._connect_anew(backend)
            return True
        return False

    def _on_first_token(self) -> None:
        """The first token. It is a half-open breaker's success already, and the adaptive limit needs TTFT when it
        happens, not at the end of the stream."""
        adaptive_limit, sent = self.lease.backend.adaptive_limit, self.flight.times.dispatched
        if adaptive_limit is not None and sent is not None and self._fed is self.flight:
            adaptive_limit.answered(sent, self.flight.clock())
        if self.lease.probe:
            self._report_success()

    def _on_response_end(self, error: GatewayError | None) -> None:
        """The answer has ended, or the connection has."""
        try:
            if self._leaves is not None and self._leaves.ingest.done:
                self._stay()  # it is the one at the removed engine that has ended
            connection, ingest = self._connection, self.ingest
            self._detach(content=error is None and not (ingest is not None and ingest.surplus))
            if error is None:
                if self._judged is None:
                    self._judged = True
                    self._context.backends.record_success(self.lease)
                backend, head = self.lease.backend, self._fed.head
                if self._ids_refused is backend and head is not None and head.status == 200:
                    backend.abilities.refuses_ids()
                self._finish(None)
            elif error.code in _OURS:
                if error.code is not Code.INTERNAL:
                    self._report_success()
                self._finish(error)
            else:
                self._on_response_lost(error, connection)
        except Exception as e:  # noqa: BLE001 - a connection's border: flight and lease would be left behind
            self._contain("the end of an exchange", e)

    def _on_response_lost(self, error: GatewayError, connection: Connection | None) -> None:
        """The connection ended without a complete answer."""
        cause = None
        if error.code is Code.UPSTREAM_UNREACHABLE and self._fed.head is None:
            if self._reused and connection is not None and not connection.received:
                # A reused connection that had died: no failure of the engine. Retried once, on a new connection.
                self._context.metrics.retry(STALE)
                self._connect_anew(self.lease.backend)
                return
            cause = RESET
        elif error.code in _ENDED:
            cause = TRUNCATED
        elif error.code is Code.UPSTREAM_INCOMPLETE:
            cause = None if self.flight.divides else TRUNCATED
        elif error.code is Code.UPSTREAM_PROTOCOL and not self._answered:
            cause = MALFORMED
        elif error.code is Code.UPSTREAM_FIRST_TOKEN_TIMEOUT:
            cause = FIRST_TOKEN
        self._attempt_failed(error, cause)

    # -- its outcome ------------------------------------------------------------------------------

    def _report_success(self) -> None:
        if self._judged is None:
            self._judged = True
            self._context.backends.record_success(self.lease)

    def _report_failure(self, why: str) -> None:
        if self._judged is not False:  # a stream that began well may still be cut
            self._judged = False
            self._context.backends.record_failure(self.lease, why, self.flight.queue_state.resolve_tenant())

    def _attempt_failed(self, error: GatewayError, cause: str | None) -> None:
        """An attempt failed: retry, where the rules allow it and no byte has gone to a client."""
        if error.code is Code.LOCAL_RESOURCES:
            self._finish(error)  # ours: at another engine it would be the same
            return
        backend, exchange_context = self.lease.backend, self._context
        exchange_context.metrics.upstream_error(backend.name, error.code.code)
        if error.code in _FAULTS and not (error.code is Code.UPSTREAM_PROTOCOL and self._answered):
            self._report_failure(error.message)
        if cause is CONNECT:
            exchange_context.backends.record_unreachable(backend, error.message)
        self._error = error
        if self._leaves is not None:
            self._stay()
            return
        broke_again = self._broke is not None and error.code in _CUT and cause is not CONNECT
        if cause is not None and not broke_again and self._retry(cause):
            return
        if not (error.code in _BREAKS or cause is MALFORMED) or not self._continue(error):
            self._finish(error)

    @property
    def _answered(self) -> bool:
        """The answer was complete HTTP: an error in it concerns this request alone."""
        return self.ingest is not None and self.ingest.answered

    def _retry(self, cause: str, after: float | None = None, *, content: bool = True) -> bool:
        """Retry: at another engine at once, else at any after a backoff. False: the rules do not allow it.
        `content`: the rest of this answer may be read, to keep the connection."""
        spec = self.flight.spec
        if cause not in self._context.retry.on or not self._fed.untouched or self._leaves is not None:
            return False
        passed = spec.mode is Mode.RAW or spec.event_api is not None
        if cause is not CONNECT and passed and not repeatable(spec.method, spec.path):
            return False
        return self._again(cause, self._rewind, gone=cause in GONE, after=after, content=content)

    def _rewind(self, cause: str) -> None:
        self._context.metrics.retry(cause)
        self._fed.rewind()

    def _again(
        self,
        cause: str,
        prepare: Callable[[str], None],
        *,
        gone: bool,
        after: float | None = None,
        content: bool = True,
    ) -> bool:
        """Another attempt: at another engine at once, else at any after a backoff. False: none is possible.
        `prepare` gets the cause once it is certain. `gone`: this engine works no more for the request."""
        exchange_context, flight = self._context, self.flight
        if self._left <= 0:
            return False
        self._tried.add(self.lease.backend)
        other = self._acquire_untried(self._of_other_builds())
        try:
            pause = None
            if other is None:
                pause = exchange_context.retry.wait(flight.attempts, exchange_context.jitter(), after)
                if pause is None:
                    return False
            moves = gone and (other is not None or self._has_other_engine())
            if not moves and not exchange_context.budget.withdraw():
                exchange_context.metrics.retry_denied()
                return False
            self._left -= 1
            if flight.trace is not None:
                flight.trace.retried(cause)
            self._detach(content=content)
            prepare(cause)
            self.lease.release()
            if not self._granted:
                self._owner.parked(self)
            elif other is not None:
                self.lease, other = other, None
                self.begin()
            else:
                self._waiting = exchange_context.later(
                    pause or 0.0, partial(self._safely, "another attempt", self._resume)
                )
            return True
        finally:
            if other is not None:
                other.release()

    # -- continuing a stream that broke -----------------------------------------------------------

    def _continue(self, error: GatewayError) -> bool:
        """Send the request again, compare what readers have with the new answer, and go on after that; or request
        the rest by the ids of the tokens so far. False: the rules do not allow it."""
        flight, context, how = self.flight, self._context, self._way()
        if how is None or self._leaves is not None:
            return False
        if how == IDS and self._token_ids is not None and self._token_ids.finished:
            self._complete(self._token_ids)
            return True
        if self._left <= 0 or context.continuations.blamed(flight):
            return False
        self._how = how
        if self._broke is None:
            self._broke = error
            return self._again(error.code.code, self._replay, gone=error.code in _DROPPED, content=False)
        if error.code not in _CUT:
            return self._again(error.code.code, self._replay, gone=False, content=False)
        self._detach(content=False)
        self._connecting = task = asyncio.ensure_future(self._look_whether_gone(error))
        self._owner.own(task)
        task.add_done_callback(self._connected)
        return True

    def _way(self) -> str | None:
        """How its stream can be continued; None: not at all."""
        flight, token_ids = self.flight, self._token_ids
        if not self._context.resume or flight.untouched:
            return None
        if continuable(flight):
            return REPLAY
        if token_ids is None or flight.phase is not Phase.STREAMING or flight.mode is not Mode.STREAM:
            return None
        api_request = flight.spec.api_request
        if api_request is None:
            return None
        if token_ids.finished:
            return IDS if token_ids.completes(usage=api_request.include_usage) else None
        return IDS if token_ids.continues(api_request) else None

    def _token_ids_at(self, backend: Backend) -> TokenIds | None:
        """For the ids of the tokens of an answer that cannot be had twice; None: they are not asked for."""
        flight, spec = self.flight, self.flight.spec
        if not (flight.private and spec.mode is Mode.STREAM) or flight.divides or self._ids_refused is not None:
            return None
        if spec.api_request is None or not backend.abilities.lists_ids or not asks_for_ids(spec.api_request):
            return None
        return TokenIds(backend.build.of(spec.model, math.inf) or b"")

    def _ask_without_ids(self) -> bool:
        """The engine refused a request for ids: perhaps it does not know them. The same goes to it without."""
        self._token_ids, self._ids_refused = None, self.lease.backend
        self._detach(content=True)
        self._fed.rewind()
        self._connect_anew(self.lease.backend)
        return True

    def _complete(self, token_ids: TokenIds) -> None:
        """Readers have all of the answer, but for [DONE] and perhaps the usage."""
        flight, api_request = self.flight, self.flight.spec.api_request
        self._detach(content=False)
        if api_request is not None and api_request.include_usage and not token_ids.usage:
            flight.reports(token_ids.counts())
            flight.add(token_ids.usage_chunk())
        flight.add(DONE)
        flight.land(last=flight.clock())
        self._finish(None)

    async def _look_whether_gone(self, error: GatewayError) -> None:
        """The connection of a continuation ended too. If its engine takes no connection any more, the request is
        to blame as far as can be known: it is sent to no third engine."""
        backend = self.lease.backend
        try:
            connection = await backend.pool.connect()
        except GatewayError as e:
            if e.code is Code.LOCAL_RESOURCES:
                self._finish(e)  # ours: it says nothing about the engine or the request
                return
            self._context.backends.record_unreachable(backend, e.message)
            self._context.continuations.blame(self.flight)
            self._finish(GatewayError(error.code, "the engine that continued it is gone too"))
            return
        backend.pool.release(connection)
        if not self._again(error.code.code, self._replay, gone=False, content=False):
            self._finish(error)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """Its leases: two while its stream is handed over."""
        leaves = self._leaves
        return (self.lease,) if leaves is None else (self.lease, leaves.lease)

    @property
    def continues(self) -> bool:
        """Whether it continues a stream that broke."""
        return self._broke is not None

    def take_over(self, error: GatewayError) -> None:
        """Begin by continuing a stream that another gateway fed, and that broke with this error."""
        self._broke = error
        self._replay(error.code.code)
        if self._granted:
            self.begin()
        else:
            self.lease.release()
            self._owner.parked(self)

    def give_up(self, error: GatewayError) -> None:
        """It has waited too long for an engine or for its place. A backoff that has begun since ends by itself,
        and a further wait has its own limit."""
        if self._waiting is None:
            self._finish(error)

    @property
    def _granted(self) -> bool:
        return self._continuation is None or self._continuation.granted

    def _enter(self) -> None:
        """Take a place among the streams that are continued: at most half of what the engines take at one time."""
        backends, spec = self._context.backends, self.flight.spec
        capacity = sum(b.max_inflight for b in backends.candidates(spec.model) if b.up is not False)
        go = partial(self._safely, "a stream's turn to be continued", self._go)
        self._continuation = self._context.continuations.take(self.flight, max(1, capacity // 2), go)

    def _go(self) -> None:
        if not self._over and self._waiting is None and not self.lease.held:
            self._resume()

    def _replay(self, cause: str) -> None:
        flight, fed = self.flight, self._fed
        if isinstance(fed, Replay):
            fed.close()
        flight.continues(self._how)
        self._fed = self._other_answer()  # before the place, which is given back with it whatever is raised
        if self._continuation is None:
            self._enter()
        if flight.trace is not None:
            flight.trace.event("continued", how=self._how)

    def _other_answer(self, on_joined: Callable[[], bool] | None = None) -> Replay:
        """What takes the answer that continues the stream."""
        flight, token_ids, api_request = self.flight, self._token_ids, self.flight.spec.api_request
        if self._how == IDS and token_ids is not None and api_request is not None:
            return RestFlight(flight, token_ids, token_ids.request(api_request), self._on_difference, on_joined)
        return Replay(flight, self._on_difference, on_joined=on_joined)

    # -- leaving an engine that is removed --------------------------------------------------------

    def hand_over(self) -> None:
        """Its engine is removed: continue its stream at another one that has room. Until that has repeated what
        readers have, the answer here is kept, and nothing is read of it; where it does not, it goes on here."""
        flight, ingest, connection = self.flight, self.ingest, self._connection
        if self._over or self._stays or self._fed is not flight or ingest is None or connection is None:
            return
        how, token_ids = self._way(), self._token_ids
        if how is None or ingest.held or (how == IDS and token_ids is not None and token_ids.finished):
            return
        self._how = how
        self._tried.add(self.lease.backend)
        others = self._of_other_builds()
        self._enter()
        other = self._acquire_untried(others) if self._granted else None
        if other is None:
            self._give_back()
            return
        leaves = _Left(self.lease, connection, ingest, self._judged, self._read)
        self._leaves, self.lease, self._connection, self.ingest = leaves, other, None, None
        ingest.hold(True)
        connection.throttle(ingest, True)
        try:
            flight.counts_attempt()
            self._fed = self._other_answer(self._joined)
        except BaseException:
            self._stay()  # a bug of ours: it goes on where it is
            raise
        self.begin()

    @property
    def _read(self) -> tuple[int, int]:
        """How much readers have: events with content, and bytes of the log, for an end without content."""
        return self.flight.content_events, self.flight.size

    def _joined(self) -> bool:
        """The other engine has repeated all that readers have. False: they have more by now, as bytes were on
        their way when reading was paused."""
        if self._leaves is not None and self._leaves.read != self._read:
            self._stay()
            return False
        self._leave_removed()
        self.flight.handed_over(self._how)
        if self.flight.trace is not None:
            self.flight.trace.event("continued", how=self._how)
        return True

    def _leave_removed(self) -> None:
        leaves, self._leaves = self._leaves, None
        if leaves is not None:
            if not leaves.ingest.done:
                leaves.ingest.close()
            if not leaves.ingest.answered:
                leaves.connection.release(leaves.ingest, content=False)
            leaves.lease.release()

    def _stay(self) -> None:
        """The other engine does not continue it: it goes on at the one that is removed, to its end."""
        leaves, self._leaves = self._leaves, None
        if leaves is None:
            return
        if self._connecting is not None:
            self._connecting.cancel()  # the answer here may end before the other engine is reached
        lags = self.ingest is not None and self.ingest.held
        self._detach(content=False)
        self.lease.release()
        self._replayed("stayed")
        if self._how == IDS and self._token_ids is not None:
            self._token_ids.forget()  # it is of the other answer
        self._differs, self._stays = False, True
        self.lease, self._connection, self.ingest = leaves.lease, leaves.connection, leaves.ingest
        self._judged, self._error = leaves.judged, None
        self.flight.moves_to(self.lease.backend.name)
        if not self.ingest.done:
            self._throttle(lags)

    def _on_break(self, error: GatewayError) -> bool:
        """The engine ends its stream by an error frame or an abort. True: the answer is dropped, another attempt
        follows or the Flight has ended."""
        backend = self.lease.backend
        replays = self._fed is not self.flight
        if not replays and self._way() is None:
            return False
        self._report_failure(error.message)
        if not self._continue(error):
            if not replays:
                return False
            self._detach(content=False)
            self._finish(error)
        self._context.metrics.upstream_error(backend.name, error.code.code)
        return True

    def _on_difference(self, why: str) -> None:
        """The other answer is not the one that readers have the beginning of."""
        self._report_success()
        self._differs = True
        self._detach(content=False)
        self._finish(GatewayError(Code.UPSTREAM_TRUNCATED, f"another engine's answer has {why}"))

    def _end_replay(self, error: GatewayError | None) -> GatewayError | None:
        """What readers are told where a continued stream ends."""
        self._replayed("exact" if error is None else "differs" if self._differs else "failed")
        return error if error is None else self.explains(error)

    def explains(self, error: GatewayError) -> GatewayError:
        """What readers are told of an error that ends it: why their stream broke, and why it is not continued."""
        if error.code in _OURS or self._broke is None:
            return error
        return not_continued(self._broke, "no engine has capacity" if error is self._broke else error.message)

    def _replayed(self, outcome: str) -> None:
        fed, self._fed = self._fed, self.flight
        self._give_back()
        if isinstance(fed, Replay):
            fed.close()
        self._context.metrics.continued(self._how, outcome)

    def _give_back(self) -> None:
        continuation, self._continuation = self._continuation, None
        if continuation is not None:
            self._context.continuations.give_back(continuation)

    # -- its end ----------------------------------------------------------------------------------

    def _resume(self) -> None:
        """The backoff is over. If no engine is free, it waits at the head of the queue."""
        self._waiting = None
        if not self._granted:
            self._owner.parked(self)
        elif not self.resume() and not self._owner.requeue(self):
            none = GatewayError(Code.NO_BACKEND, "No engine has capacity for another attempt.", retry_after=1)
            self._finish(self._error or none)

    def _safely(self, where: str, step: Callable[[], None]) -> None:
        """A timer's border."""
        try:
            step()
        except Exception as e:  # noqa: BLE001 - else the flight would wait for ever
            self._contain(where, e)

    def _contain(self, where: str, error: BaseException) -> None:
        """A bug of ours: the connection is closed, readers get a 500, the lease is released."""
        self._context.fault(where, error)
        if self._over:
            return
        connection = self._connection
        steps: list[Callable[[], object]] = [partial(self._detach, content=False)]
        contained(self._context.fault, where, *steps, *([connection.abort] if connection is not None else ()))
        self._finish(internal())

    def _detach(self, *, content: bool) -> None:
        """Leave the connection. `content`: the rest of the answer may be read, to keep the connection."""
        ingest, connection = self.ingest, self._connection
        if self._gone is not None:
            self._gone.cancel()
            self._gone = None
        self._connection = None
        if ingest is not None and connection is not None:
            if not ingest.done:
                ingest.close()
            if not ingest.answered:  # else the connection has left it already
                connection.release(ingest, content=content)

    def _finish(self, error: GatewayError | None) -> None:
        if self._leaves is not None and error is not None:
            self._stay()
            return
        self._over = True
        try:
            self._owner.arrived(self, error if self._fed is self.flight else self._end_replay(error))
        except Exception as e:  # noqa: BLE001 - once more: else the lease would be held for ever
            self._context.fault("the end of an exchange", e)
            self._owner.arrived(self, error or internal())

    def _throttle(self, hold: bool) -> None:
        """Backpressure: pause reading for a private Flight whose one reader lags, and stop its timeouts."""
        if self.ingest is not None and self._connection is not None:
            self.ingest.hold(hold)
            self._connection.throttle(self.ingest, hold)
