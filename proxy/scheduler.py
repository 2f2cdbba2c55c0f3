"""Owns the one loop that feeds Flights: queue, store look-up, lease, attempt, landing, cancellation.
Must not know HTTP servers, clients or sharing policy: it is given Flights and ends every one of them.
Called by the gateway (submit) and the app (lifecycle)."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial

from proxy import kept
from proxy.alarms import Alarms
from proxy.backends import Backends
from proxy.batcher import Batcher
from proxy.cache import Cache, Stored
from proxy.carrier import Carrier
from proxy.errors import Code, GatewayError
from proxy.feeder import Fault, Feeder, Limits, Watch, raised
from proxy.flight import Flight
from proxy.group import FlightGroup
from proxy.journey import Journey, MakeFeeder, Road
from proxy.merger import Merger
from proxy.metrics import Metrics
from proxy.phase import Phase
from proxy.plan import Mode
from proxy.queue_metrics import QueueMetrics
from proxy.retry import Budget, RetryRules


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
        merge_max: int = 1,
        retry: RetryRules | None = None,
        budget: Budget | None = None,
        on_fault: Fault = raised,
        feeder: MakeFeeder = Feeder,
        learn: Callable[[Flight], None] = lambda flight: None,
    ) -> None:
        self._group = group
        self.queue = batcher
        self._backends = backends
        self._cache = cache
        self._metrics = metrics
        self.told = QueueMetrics(metrics.registry)
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._flying: dict[Flight, Journey] = {}
        self._watch = Watch(limits, loop, on_fault)
        self._road = Road(
            backends=backends,
            limits=limits,
            watch=self._watch,
            metrics=metrics,
            own=self._own,
            arrived=self._arrived,
            later=loop.call_later,
            fault=on_fault,
            retry=retry or RetryRules(),
            budget=budget or Budget(),
            feeder=feeder,
        )
        self._merger = Merger(merge_max, limit=limits.flight, window=batcher.window, on_rider=self._rider_ended)
        self._learn = learn  # told of each whole answer of an engine's
        self._alarms = Alarms(loop)
        self._turn_due = False
        self._closed = False
        batcher.on_pushed = self._pushed
        backends.on_release = self._released

    def __repr__(self) -> str:
        return f"<Scheduler {self.queue!r} flying={len(self._flying)}>"

    def submit(self, flight: Flight) -> None:
        """Take charge of a new Flight. Raises GatewayError 429 or 503 (and forgets it): see `Batcher.offer`."""
        plan = flight.plan
        lookup = plan.key is not None and not plan.fresh and self._cache is not None and self._cache.available
        try:
            if self._closed:
                raise GatewayError(Code.SHUTTING_DOWN, "The gateway is shutting down.", retry_after=1)
            now = self._loop.time()
            expects = plan.merge and self._merger.expects(flight, now)
            if lookup or expects or self.queue.waits or not self._place(flight):
                hold = expects and self.queue.window > 0
                self.queue.offer(flight, now, lookup=lookup, hold=hold)
                if flight.trace is not None:
                    flight.trace.event("queued")
                if hold:
                    self._alarms.set(flight, now + self.queue.window, partial(self._unhold, flight))
                else:
                    self._soon()
        except GatewayError as e:
            self._group.remove(flight)
            self.told.refused(e.code.code)
            raise
        flight.on_empty = self._cancel

    async def close(self) -> None:
        """Fail what waits, cancel what flies, and wait for all of it."""
        self._closed = True
        self._alarms.close()
        for flight in tuple(self._group.live):
            if not flight.ended:
                self.queue.discard(flight)
                self._cut(flight)
                self._end(flight, GatewayError(Code.SHUTTING_DOWN, "The gateway is shutting down."))
        self._watch.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the queue --------------------------------------------------------------------------------

    def _soon(self) -> None:
        """All that arrives in one turn of the loop is looked at together, at its end."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _released(self) -> None:
        """A place at an engine is free."""
        if self.queue.waits:
            self._soon()

    def _turn(self) -> None:
        self._turn_due = False
        if self._closed:
            return
        batch = self.queue.due(self._loop.time())
        if batch:
            self._look_up(batch)
        else:
            self._wait_for_window()
        self._place_waiting()

    def _place_waiting(self) -> None:
        queue = self.queue
        if queue.waits:
            queue.place(self._take, self._loop.time())
        if queue.waits and queue.timeout < math.inf:
            self._alarms.set("overdue", queue.next_overdue(), self._overdue)

    def _overdue(self) -> None:
        """The oldest that waits may have waited for as long as it may."""
        for flight, error in self.queue.overdue(self._loop.time()):
            self.told.refused(error.code.code)
            self._end(flight, error)
        self._place_waiting()

    def _take(self, flight: Flight) -> bool:
        plan = flight.plan
        if plan.latest < math.inf:
            late = self.queue.too_late(self._backends.pool_of(plan.model), plan.latest - self._loop.time())
            if late is not None:
                self.told.refused(late.code.code)
                self.queue.discard(flight)  # it has had no place: nobody pays for one
                self._end(flight, late)
                return True
        if not self._place(flight):
            return False
        self.told.placed(flight.plan.priority, flight.clock() - flight.times.created)
        return True

    def _unhold(self, flight: Flight) -> None:
        """Its time to wait for twins is over."""
        if self.queue.release(flight, self._loop.time()):
            self._soon()

    def _pushed(self, flight: Flight, error: GatewayError) -> None:
        """It had to make room for another's."""
        self.told.refused("pushed_out")
        self._end(flight, error)

    def promote(self, flight: Flight, priority: int, deadline: float) -> None:
        """One more reader, who may be more urgent than those before."""
        plan = flight.plan
        plan.latest = max(plan.latest, deadline)
        if priority < plan.priority or deadline < plan.deadline:
            plan.priority, plan.deadline = min(plan.priority, priority), min(plan.deadline, deadline)
            if flight.phase is Phase.QUEUED and self.queue.promote(flight, priority, deadline):
                self.told.promoted()

    def _wait_for_window(self) -> None:
        deadline = self.queue.next_deadline()
        if self.queue.window > 0 and deadline is not None:
            self._alarms.set("window", deadline, self._turn)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _look_up(self, batch: list[Flight]) -> None:
        """One round trip for the whole batch."""
        if self._cache is None:
            self._found(batch, [None] * len(batch))
            return
        self._metrics.batch(len(batch))
        self._cache.lookup([flight.plan.key or b"" for flight in batch], lambda found: self._found(batch, found))

    def _found(self, batch: list[Flight], found: list[Stored | None]) -> None:
        """Hits land; misses are given to an engine, or wait for one."""
        misses: list[Flight] = []
        for flight, stored in zip(batch, found, strict=True):
            if not self.queue.looking(flight):
                continue  # its last reader left meanwhile
            if stored is not None and self._hit(flight, stored):
                continue
            if flight.trace is not None:
                flight.trace.event("lookup", hit=False)
            if misses or self.queue.waits or not self._place(flight):
                misses.append(flight)
        for flight, error in self.queue.looked(batch, misses, self._loop.time()):
            self.told.refused(error.code.code)
            self._end(flight, error)
        if self.queue.next_deadline() is not None:
            self._soon()  # not at once: with the store away each look-up would end inside the one before it
        self._place_waiting()

    def _hit(self, flight: Flight, stored: Stored) -> bool:
        """Land a Flight from the store; False where what is stored does not serve it."""
        if not kept.land(flight, stored):
            return False
        self._group.remove(flight)
        self._metrics.flight_landed("hit" if flight.error is None else "failed", flight.plan.model, None)
        return True

    def _place(self, flight: Flight) -> bool:
        """Give one waiting Flight to an engine with room. True: it need not wait any longer."""
        plan = flight.plan
        try:
            lease = self._backends.acquire(plan.model, affinity=plan.affinity)
        except GatewayError as e:
            self._end(flight, e)
            return True
        if lease is None:
            return False
        if plan.merge and self.queue.has_twins and lease.backend.merges:
            flight = self._board(flight, lease.backend.name)
        journey = self._flying[flight] = Journey(flight, lease, self._road)
        journey.begin()
        return True

    def _board(self, flight: Flight, backend: str) -> Flight:
        """All twins of it that wait go along; each has its place with that."""
        carrier = self._merger.merge(flight, self.queue.twins(flight), backend)
        if isinstance(carrier, Carrier):
            if flight.trace is not None:
                flight.trace.carries(carrier)
            for rider in carrier.riders:
                if rider is not None and rider is not flight:
                    self._alarms.drop(rider)
                    self.queue.grant(rider)
        return carrier

    # -- at the engine ----------------------------------------------------------------------------

    def _arrived(self, journey: Journey, error: GatewayError | None) -> None:
        flight = journey.flight
        self._flying.pop(flight, None)
        if isinstance(flight, Carrier):
            self._unload(flight, error)
        elif error is None:
            self._landed(journey)
        else:
            self._end(flight, error)
        journey.lease.release()

    def _unload(self, carrier: Carrier, error: GatewayError | None) -> None:
        """A carrier has arrived, or has failed: so have its riders, but for those that an engine turned away
        together. Those are asked for one by one: `n` may be what it did not like."""
        made = carrier.usage.completion_tokens if carrier.usage else carrier.content_events
        self._metrics.flight_landed("landed" if error is None else "failed", carrier.plan.model, None, made)
        for rider in self._merger.unload(carrier, error):
            try:
                self.queue.put(rider, self._loop.time())
            except GatewayError as e:  # the time that it has is not enough any more
                self.told.refused(e.code.code)
                self._end(rider, e)
            self._soon()

    def _rider_ended(self, rider: Flight) -> None:
        self._group.remove(rider)
        if rider.phase is Phase.LANDED:
            self._learn(rider)

    def _cut(self, flight: Flight) -> None:
        """Stop its engine, unless it is working for others too."""
        carrier = self._merger.leave(flight)
        if carrier is not None:
            self._cut(carrier)
            return
        journey = self._flying.pop(flight, None)
        if journey is not None:
            journey.cancel()
            journey.lease.release()

    def _landed(self, journey: Journey) -> None:
        """The answer is whole: store it, then let the Flight go. It stays joinable until that is settled."""
        flight, feeder = journey.flight, journey.feeder
        if flight.plan.latest < math.inf and flight.times.dispatched is not None:
            self.queue.served(self._backends.pool_of(flight.plan.model), flight.clock() - flight.times.dispatched)
        broken = feeder is None or feeder.error_frame
        if flight.plan.assumed and not broken:
            self._learn(flight)
        self._measure(flight, "error" if broken else "landed")
        if broken and flight.backend is not None:
            self._metrics.upstream_error(flight.backend, Code.UPSTREAM_ERROR_FRAME.code)
        key = flight.plan.key
        if self._cache is None or key is None or feeder is None or not feeder.clean:
            self._group.remove(flight)
            return
        replace = flight.mode is Mode.STREAM or flight.replace or flight.plan.fresh
        self._cache.store(key, kept.keep(flight), lambda: self._group.remove(flight), replace=replace)

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
        self._alarms.drop(flight)
        self.queue.discard(flight)
        self._measure(flight, "cancelled")
        self._cut(flight)

    def _measure(self, flight: Flight, outcome: str) -> None:
        times, gap = flight.times, None
        events = flight.usage.completion_tokens if flight.usage else flight.content_events
        if times.first is not None and times.last is not None and events > 1 and flight.mode is Mode.STREAM:
            gap = (times.last - times.first) / (events - 1)
        self._metrics.flight_landed(outcome, flight.plan.model, gap, events)
