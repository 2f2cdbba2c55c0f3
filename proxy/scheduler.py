"""Owns the one loop that feeds Flights: queue, store look-up, lease, attempt, landing, cancellation.
Must not know HTTP servers, clients or sharing policy: it is given Flights and ends every one of them.
Called by the gateway (submit) and the app (lifecycle)."""

from __future__ import annotations

import asyncio
from typing import Final

from proxy import cache as store
from proxy.backends import Backend, Backends, Lease
from proxy.batcher import Batcher
from proxy.cache import Cache, Stored
from proxy.connection import Connection
from proxy.errors import Code, GatewayError
from proxy.feeder import Feeder, Limits
from proxy.flight import Flight, FlightGroup, Phase
from proxy.metrics import Metrics
from proxy.plan import Head, Mode
from proxy.wire.fold import Unfoldable, fold, forces_tool
from proxy.wire.frames import Usage
from proxy.wire.openai import with_usage
from proxy.wire.sse import unchunks

_JSON: Final = (("content-type", "application/json"),)
_SSE: Final = (("content-type", "text/event-stream; charset=utf-8"),)


class Scheduler:
    """Feeds Flights until each has landed, failed or been cancelled."""

    def __init__(
        self,
        *,
        group: FlightGroup,
        batcher: Batcher[Flight],
        backends: Backends,
        cache: Cache | None,
        limits: Limits,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._group = group
        self.queue = batcher
        self._backends = backends
        self._cache = cache
        self._limits = limits
        self._metrics = metrics
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._flying: dict[Flight, asyncio.Task[None]] = {}
        self._leases: dict[Flight, Lease] = {}
        self._turn_due = False
        self._window: asyncio.TimerHandle | None = None
        self._closed = False
        backends.on_release = self._soon

    def __repr__(self) -> str:
        return f"<Scheduler {self.queue!r} flying={len(self._flying)}>"

    def submit(self, flight: Flight) -> None:
        """Take charge of a new Flight. Raises GatewayError 503 (and forgets it) when the queue is full."""
        plan = flight.plan
        try:
            if self._closed:
                raise GatewayError(Code.SHUTTING_DOWN, "The gateway is shutting down.", retry_after=1)
            lookup = plan.key is not None and not plan.fresh and self._cache is not None and self._cache.available
            self.queue.offer(flight, self._loop.time(), lookup=lookup)
        except GatewayError:
            self._group.remove(flight)
            raise
        flight.on_empty = self._cancel
        self._soon()

    async def close(self) -> None:
        """Fail what waits, cancel what flies, and wait for all of it."""
        self._closed = True
        if self._window is not None:
            self._window.cancel()
        for flight in tuple(self._group.live):
            if not flight.ended and flight not in self._flying:
                self.queue.discard(flight)
                self._end(flight, GatewayError(Code.SHUTTING_DOWN, "The gateway is shutting down."))
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the queue --------------------------------------------------------------------------------

    def _soon(self) -> None:
        """All that arrives in one turn of the loop is looked at together, at its end."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self._closed:
            return
        batch = self.queue.due(self._loop.time())
        if batch:
            self._own(asyncio.ensure_future(self._look_up(batch)))
        else:
            self._wait_for_window()
        full: set[str | None] = set()
        self.queue.place(lambda flight: self._place(flight, full))

    def _wait_for_window(self) -> None:
        deadline = self.queue.next_deadline()
        if self.queue.window > 0 and deadline is not None and self._window is None:
            self._window = self._loop.call_at(deadline, self._window_closed)

    def _window_closed(self) -> None:
        self._window = None
        self._turn()

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, batch: list[Flight]) -> None:
        """One round trip for the whole batch. Hits land; misses wait for an engine."""
        misses = batch
        try:
            if self._cache is not None:
                self._metrics.batch(len(batch))
                found = await self._cache.lookup([flight.plan.key or b"" for flight in batch])
                misses = []
                for flight, stored in zip(batch, found, strict=True):
                    if not self.queue.looking(flight):
                        continue  # its last reader left meanwhile
                    if stored is None or not self._hit(flight, stored):
                        misses.append(flight)
        finally:
            self.queue.looked(misses)
            self._soon()

    def _hit(self, flight: Flight, stored: Stored) -> bool:
        """Land a Flight from the store; False where what is stored does not serve it."""
        if flight.plan.mode is Mode.WHOLE:
            body = stored.body if stored.kind == "whole" else b""
            ask = flight.plan.ask
            if stored.kind == "stream" and ask is not None and ask.endpoint != "embeddings":
                try:
                    body = fold(unchunks(stored.body), ask.endpoint, forced_tool=forces_tool(ask.fields))
                except Unfoldable:
                    return False
                except ValueError:
                    body = b""  # whole chunks, but not ours
            if not body:
                flight.replace = True
                return False
            flight.piece(body)
            head = Head(200, _JSON, len(body))
        elif stored.kind == "stream":
            try:
                flight.frames(unchunks(stored.body))
            except ValueError:
                flight.replace = True
                return False
            head = Head(200, _SSE)
        else:
            flight.replace = True  # one body is no stream; the stream that now follows serves both
            return False
        flight.stored_at = stored.created
        if stored.prompt_tokens is not None or stored.completion_tokens is not None:
            flight.usage = Usage(
                prompt_tokens=stored.prompt_tokens or 0, completion_tokens=stored.completion_tokens or 0
            )
        flight.times.first = flight.clock()
        flight.land(head)
        for reader in flight.subscribers:
            reader.verdict = "hit"
        self._group.remove(flight)
        self._metrics.flight_landed("hit", flight.plan.model, None)
        return True

    def _place(self, flight: Flight, full: set[str | None]) -> bool:
        """Give one waiting Flight to an engine with room. True: it need not wait any longer."""
        model = flight.plan.model
        if model in full:
            return False
        try:
            lease = self._backends.acquire(model)
        except GatewayError as e:
            self._end(flight, e)
            return True
        if lease is None:
            full.add(model)
            return False
        self._leases[flight] = lease
        task = asyncio.ensure_future(self._fly(flight))
        self._flying[flight] = task
        # Not in a `finally`: a task that is cancelled before its first step never gets to one.
        task.add_done_callback(lambda _: self._flown(flight))
        self._own(task)
        return True

    def _flown(self, flight: Flight) -> None:
        del self._flying[flight]
        self._leases.pop(flight).release()

    # -- at the engine ----------------------------------------------------------------------------

    async def _fly(self, flight: Flight) -> None:
        flight.times.dispatched = flight.clock()
        tried: set[Backend] = set()
        error: GatewayError | None
        try:
            while True:
                backend = self._leases[flight].backend
                flight.backend = backend.name
                self._metrics.upstream_request(backend.name)
                error = await self._attempt(flight, backend)
                if error is None:
                    return
                self._metrics.upstream_error(backend.name, error.code.code)
                tried.add(backend)
                if error.code not in (Code.UPSTREAM_UNREACHABLE, Code.UPSTREAM_CONNECT_TIMEOUT) or flight.started:
                    break
                self._backends.seen_down(backend, error.message)
                other = self._other(flight, frozenset(tried))
                if other is None:
                    break
                self._leases[flight].release()
                self._leases[flight] = other
            self._end(flight, error)
        except GatewayError as e:  # the request itself cannot be written
            self._end(flight, e)
        except asyncio.CancelledError:
            if not flight.ended:
                self._end(flight, GatewayError(Code.SHUTTING_DOWN, "The gateway is shutting down."))

    def _other(self, flight: Flight, tried: frozenset[Backend]) -> Lease | None:
        """Another engine, where the first could not be reached: nothing has gone to the client yet."""
        try:
            return self._backends.acquire(flight.plan.model, exclude=tried)
        except GatewayError:
            return None

    async def _attempt(self, flight: Flight, backend: Backend) -> GatewayError | None:
        """One exchange. None: the Flight has landed. A kept connection that turns out dead is replaced."""
        plan, pool = flight.plan, backend.pool
        body = with_usage(plan.ask) if plan.usage_added and plan.ask is not None else plan.body
        request = pool.request(plan.method, plan.path, plan.headers, body)
        while True:
            flight.enter(Phase.CONNECTING)
            connection = pool.take()
            reused = connection is not None
            if connection is None:
                try:
                    connection = await pool.connect()
                except GatewayError as e:
                    return e
            flight.enter(Phase.PREFILL)
            feeder = Feeder(flight, self._limits, self._loop)
            flight.throttle = _Throttle(feeder, connection)
            complete = False
            try:
                connection.send(request, feeder)
                error = await feeder.done
                complete = error is None
            finally:
                flight.throttle = None
                feeder.close()
                connection.release(feeder, content=complete)
            if error is None:
                self._landed(flight, feeder)
                return None
            if not (reused and not connection.received and error.code is Code.UPSTREAM_UNREACHABLE):
                return error

    def _landed(self, flight: Flight, feeder: Feeder) -> None:
        """The answer is whole: store it, then let the Flight go. It stays joinable until that is settled."""
        self._measure(flight, "error" if feeder.error_frame else "landed")
        if feeder.error_frame and flight.backend is not None:
            self._metrics.upstream_error(flight.backend, Code.UPSTREAM_ERROR_FRAME.code)
        key = flight.plan.key
        if self._cache is None or key is None or not feeder.clean:
            self._group.remove(flight)
            return
        streamed = flight.mode is Mode.STREAM
        usage = flight.usage
        body, cut, tail = store.stream_views(flight.log, flight.view(usage=not streamed))
        stored = Stored(
            kind="stream" if streamed else "whole",
            created=store.now(),
            body=body,
            cut=cut,
            tail=tail,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
        )
        replace = streamed or flight.replace or flight.plan.fresh
        self._cache.store(key, stored, lambda: self._group.remove(flight), replace=replace)

    # -- ends -------------------------------------------------------------------------------------

    def _end(self, flight: Flight, error: GatewayError) -> None:
        self._group.remove(flight)
        if not flight.ended:
            flight.fail(error)
            self._measure(flight, "failed")

    def _cancel(self, flight: Flight) -> None:
        """The last reader left. In one step no one can join it, it is no longer queued, the engine is told."""
        self._group.remove(flight)
        flight.cancel()
        self.queue.discard(flight)
        self._measure(flight, "cancelled")
        task = self._flying.get(flight)
        if task is not None:
            task.cancel()

    def _measure(self, flight: Flight, outcome: str) -> None:
        times, gap = flight.times, None
        events = flight.usage.completion_tokens if flight.usage else flight.content_events
        if times.first is not None and times.last is not None and events > 1 and flight.mode is Mode.STREAM:
            gap = (times.last - times.first) / (events - 1)
        self._metrics.flight_landed(outcome, flight.plan.model, gap)


class _Throttle:
    """Holds an engine back for a private Flight whose one reader lags, and stops its clock meanwhile."""

    __slots__ = ("_connection", "_feeder")

    def __init__(self, feeder: Feeder, connection: Connection) -> None:
        self._feeder = feeder
        self._connection = connection

    def __call__(self, hold: bool) -> None:
        self._feeder.held = hold
        self._connection.throttle(self._feeder, hold)
