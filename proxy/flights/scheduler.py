"""The loop that serves Flights: queue, store look-up, lease, exchange, store, cancellation.

It is given Flights and ends every one of them, whatever is raised on the way."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from itertools import repeat
from typing import Final

from proxy.errors import Code, GatewayError, shutting_down
from proxy.flights.continuing import LONGEST_WAIT, Continuation, continuable, not_continued
from proxy.flights.exchange import Exchange, ExchangeContext
from proxy.flights.fleet import Node
from proxy.flights.flight import Flight, Subscriber
from proxy.flights.group import FlightGroup
from proxy.flights.merging.merged_flight import MergedFlight
from proxy.flights.merging.merger import NOT_DONE, Merger
from proxy.flights.phase import Phase
from proxy.flights.queue.metrics import QueueMetrics
from proxy.flights.queue.request_queue import RequestQueue
from proxy.flights.queue.timers import Timers
from proxy.flights.spec import Mode
from proxy.flights.stored import WHOLE, replay, snapshot
from proxy.flights.watchdog import Stray, stray_places
from proxy.redis import Cache, Held, Stored
from proxy.telemetry import contained, internal
from proxy.upstream import Backend, Lease

_STREAM: Final = Mode.STREAM
AGAIN: Final = 0.05  # seconds until the next turn after one that raised, or after a contained exception
HAND_OVER: Final = 1.0  # seconds between two looks at streams that a removed engine still has
MAX_FAILED_TURNS: Final = 5  # in succession; then all queued flights fail, as one of them makes each turn raise


class Scheduler:
    """Serves Flights until each has landed, failed or been cancelled.

    A callback here serves many Flights. An exception in one Flight's part of it ends that Flight with a 500 and
    releases its lease; the others go on. A turn follows each such exception, so that no wake-up is lost.
    """

    def __init__(
        self,
        exchange_context: ExchangeContext,
        *,
        group: FlightGroup,
        request_queue: RequestQueue[Flight],
        cache: Cache | None,
        loop: asyncio.AbstractEventLoop,
        merge_max: int = 1,
        fleet: Callable[[Scheduler], Node | None] = lambda scheduler: None,
        on_complete: Callable[[Flight], None] = lambda flight: None,
        on_unknown_shape: Callable[[Backend, Flight], None] = lambda engine, flight: None,
        on_taken_over: Callable[[Flight], None] = lambda flight: None,
    ) -> None:
        """`merge_max`: choices of one merged request, 1 for none. `fleet` makes this process' node, where gateways
        share flights. `on_complete` is called with each answer that
        is complete and was queued with a ticket, `on_unknown_shape` with each complete stream of an engine whose
        streams are not known, `on_taken_over` with each stream of another gateway that is continued here."""
        self._group = group
        self.queue = request_queue
        self._context = exchange_context
        self._backends = exchange_context.backends
        self._cache = cache
        self._metrics = exchange_context.metrics
        self.metrics = QueueMetrics(exchange_context.metrics.registry)
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._flying: dict[Flight, Exchange] = {}
        self._lost: dict[Flight, tuple[GatewayError, Continuation]] = {}
        """Streams that another gateway fed until it was lost, and that wait for an engine."""
        self._on_fault = exchange_context.fault
        self._merger = Merger(
            merge_max,
            limit=exchange_context.timeouts.limits.flight,
            window=request_queue.window,
            on_member=self._member_ended,
        )
        self._on_complete = on_complete
        self._on_unknown_shape = on_unknown_shape
        self._on_taken_over = on_taken_over
        self._timers = Timers(loop, self._fault)
        self._turn_due = False
        self._turns = 0
        self._failed_turns = 0
        self._closed = False
        self.fleet = fleet(self)
        self._backends.subscribe(
            capacity_changed=self._capacity_changed,
            gone=partial(self._tell_exchanges, Exchange.engine_gone),
            silent=partial(self._tell_exchanges, Exchange.engine_silent),
            removed=self._engine_removed,
        )

    def __repr__(self) -> str:
        return f"<Scheduler {self.queue!r} flying={len(self._flying)}>"

    @property
    def flying(self) -> int:
        """Flights at an engine, or between two attempts."""
        return len(self._flying)

    def submit(self, flight: Flight) -> None:
        """Take a new Flight. Raises GatewayError 429 or 503, and has forgotten it then: see
        `RequestQueue.offer`."""
        spec = flight.spec
        lookup = spec.key is not None and not spec.fresh and self._cache is not None and self._cache.available
        try:
            if self._closed:
                raise shutting_down(retry_after=1)
            now = self._loop.time()
            expects = flight.queue_state.merge and self._merger.may_have_twins(flight, now)
            if lookup or expects or self.queue.waits or not self._dispatch(flight):
                hold = expects and self.queue.window > 0
                self.queue.offer(flight, now, lookup=lookup, hold=hold, on_pushed=self._pushed)
                if flight.trace is not None:
                    flight.trace.event("queued")
                if hold:
                    self._timers.set(flight, now + self.queue.window, partial(self._unhold, flight))
                elif not self._turn_due:
                    self._soon()
        except GatewayError as e:
            self._group.remove(flight)
            self.metrics.refused(e.code.code)
            raise
        except Exception:
            self.abandon(flight)
            raise
        flight.when_abandoned(self._cancel)

    def abandon(self, flight: Flight) -> None:
        """End a Flight whose handling raised: queue, timers and exchange drop it, and its readers get a 500."""
        contained(
            self._fault,
            "ending a flight",
            partial(self._group.unpublish, flight),
            partial(self._timers.drop, flight),
            partial(self.queue.discard, flight),
            partial(self._abort_upstream, flight),
            partial(self._end, flight, internal()),
        )
        self._group.remove(flight)
        if not flight.finished:
            flight.broke(internal())

    async def close(self) -> None:
        """Fail queued Flights, cancel dispatched ones, and await all tasks."""
        self._closed = True
        self._timers.close()
        for flight in tuple(self._group.live):
            if not flight.ended:
                self.queue.discard(flight)
                self._abort_upstream(flight)
                self._end(flight, shutting_down())
        self._context.timeouts.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- the queue --------------------------------------------------------------------------------

    def _soon(self) -> None:
        """Schedule a turn at the end of this event loop iteration: all that arrives in it is one batch."""
        if not self._turn_due:
            self._turn_due = True
            self._loop.call_soon(contained, self._fault, "a turn of the scheduler", self._turn)

    def _capacity_changed(self) -> None:
        """An engine may have room."""
        if self.queue.waits:
            self._soon()

    def _turn(self) -> None:
        self._turn_due = False
        self._turns += 1
        if self._closed:
            return
        try:
            self._serve_queue()
        except Exception as e:  # noqa: BLE001 - the loop's border: queued flights still need a turn
            self._failed_turns += 1
            self._fault("a turn of the scheduler", e)
            contained(self._fault, "the order of the queue", self.queue.rebuild)
            if self._failed_turns >= MAX_FAILED_TURNS:
                self._failed_turns = 0
                for flight in self.queue.clear():
                    self.abandon(flight)
        else:
            self._failed_turns = 0

    def _serve_queue(self) -> None:
        batch = self.queue.due(self._loop.time())
        if batch:
            try:
                self._look_up(batch)
            except Exception as e:  # noqa: BLE001 - a look-up that cannot be sent has found nothing
                self._fault("a look-up", e)
                self._looked_up(batch, [None] * len(batch))
        else:
            self._wait_for_window()
        self._dispatch_waiting()

    def _fault(self, where: str, error: BaseException) -> None:
        """Report a contained exception. A wake-up may be lost with it, so a turn follows."""
        self._on_fault(where, error)
        if not self._closed:
            self._loop.call_later(AGAIN, self._turn)

    def _dispatch_waiting(self) -> None:
        queue = self.queue
        if queue.waits:
            queue.dispatch(self._take, self._loop.time())
            if queue.waits:
                self._backends.wanted()
                if queue.timeout < math.inf:
                    self._timers.set("overdue", queue.next_overdue(), self._overdue)

    def _overdue(self) -> None:
        """The timer of the oldest queued Flight: its wait may be over."""
        now = self._loop.time()
        for flight, error in self.queue.overdue(now):
            try:
                if flight.refuse(error, lambda reader: reader.since <= now - self.queue.timeout):
                    self._enqueue_again(flight, now)  # for readers that joined later
                    self.metrics.refused(error.code.code)
                else:
                    self._refuse(flight, error)
            except Exception as e:  # noqa: BLE001 - the others are overdue too
                self._fault("a flight that is overdue", e)
                self.abandon(flight)
        self._dispatch_waiting()

    def _enqueue_again(self, flight: Flight, now: float) -> None:
        """Queue it anew, if it can be in time."""
        try:
            self.queue.enqueue(flight, now)
        except GatewayError as e:
            self._refuse(flight, e)
        except Exception as e:  # noqa: BLE001 - the others still want their place
            self._fault("queueing a flight again", e)
            self.abandon(flight)

    def _refuse(self, flight: Flight, error: GatewayError) -> None:
        """End a Flight that is rejected."""
        self._end(flight, error)
        self.metrics.refused(error.code.code)

    def _take(self, flight: Flight) -> bool:
        """Dispatch the Flight whose turn it is. True: it leaves the queue."""
        try:
            if self._served(flight):
                return True  # it was dispatched by a turn that raised afterwards
            return self._taken(flight)
        except Exception as e:  # noqa: BLE001 - one flight's data must not end the turn of all others
            self._fault("dispatching a flight", e)
            self.abandon(flight)
            return True

    def _served(self, flight: Flight) -> bool:
        """Whether it needs no engine any more. An exchange without a lease waits for its next attempt."""
        exchange = self._flying.get(flight)
        return flight.ended or flight in self._merger or (exchange is not None and exchange.lease.held)

    def _taken(self, flight: Flight) -> bool:
        latest = flight.queue_state.latest
        if latest < math.inf:
            late = self.queue.too_late(self._backends.pool_of(flight.spec.model), latest - self._loop.time())
            if late is not None:
                self.queue.discard(flight)  # not dispatched: its caller pays nothing
                self._refuse(flight, late)
                return True
        begun = flight.phase is Phase.STREAMING  # it is to be continued: its time so far is no wait
        if not self._dispatch(flight):
            return False
        if not begun:
            self.metrics.dispatched(flight.queue_state.priority, flight.clock() - flight.times.created)
        return True

    def _unhold(self, flight: Flight) -> None:
        """Its time to wait for twins is up."""
        if self.queue.release(flight, self._loop.time()):
            self._soon()

    def _pushed(self, flight: Flight, error: GatewayError) -> None:
        """It leaves the full queue for another caller's Flight."""
        self._end(flight, error)
        self.metrics.refused("pushed_out")

    def promote(
        self,
        flight: Flight,
        priority: int,
        deadline: float,
        reader: Subscriber | None = None,
        owner: Hashable = None,
    ) -> None:
        """A reader joins, or another `owner` of an array's items: it may be more urgent than those before, or have
        an earlier turn."""
        flight.queue_state.promote(priority, deadline)
        if flight.phase is Phase.QUEUED:
            if reader is not None:
                reader.waits(self._loop.time())
                owner = reader.caller
            if self.queue.promote(flight, priority, deadline, owner):
                self.metrics.promoted()

    def _wait_for_window(self) -> None:
        deadline = self.queue.next_deadline()
        if self.queue.window > 0 and deadline is not None:
            self._timers.set("window", deadline, self._turn)

    def own(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _look_up(self, batch: list[Flight]) -> None:
        """One round trip for the whole batch."""
        assert self._cache is not None  # else nothing is queued for a look-up
        keys, others = [], []  # what is of each one's own kind comes first, then the other kind
        for flight in batch:  # here and not in a function: once a request
            spec = flight.spec
            stream = key = spec.key or b""
            whole = key + WHOLE
            streams = spec.mode is _STREAM
            keys.append(stream if streams else whole)
            others.append(whole if streams else stream if spec.fold else b"")
        if self.fleet is not None and self.fleet.live:
            self._cache.look(keys, partial(self._looked_up, batch), others, self.fleet.claims(batch))
        else:
            self._cache.lookup(keys, partial(self._looked_up, batch), others)
        self._metrics.batch(len(batch))

    def _looked_up(self, batch: list[Flight], found: list[Stored | None], held: Held = None) -> None:
        """The reply: hits land, those that another gateway leads follow it, other misses are dispatched or queued.
        `held`: for each, the fence that holds its claim, or nothing. May be called again after it raised."""
        misses: list[Flight] = []
        looking, waits = self.queue.looking, self.queue.waits
        for flight, stored, fence in zip(batch, found, held or repeat(b"", len(batch)), strict=True):
            try:
                if flight not in looking or flight.ended or flight.times.dispatched is not None:
                    if fence and self.fleet is not None:
                        self.fleet.unwanted(flight, fence)
                    continue  # its last reader left meanwhile, or it was served before this raised
                if stored is not None and self._answer_from_store(flight, stored):
                    if fence and self.fleet is not None:
                        self.fleet.unwanted(flight, fence)
                    continue
                if fence and self.fleet is not None and self.fleet.takes(flight, fence):
                    continue
                if held is None and self.fleet is not None and flight in self.fleet:
                    continue  # it was before this raised
                if flight.trace is not None:
                    flight.trace.event("lookup", hit=False)
                if waits or misses or not self._dispatch(flight):
                    misses.append(flight)
            except Exception as e:  # noqa: BLE001 - one flight's data must not end the batch
                self._fault("a look-up's reply", e)
                self.abandon(flight)
        for flight, error in self.queue.lookups_done(batch, misses, self._loop.time()):
            self._refuse(flight, error)
        if self.queue.next_deadline() is not None:
            self._soon()  # not at once: with the store away each look-up would end inside the one before it
        self._dispatch_waiting()

    def _answer_from_store(self, flight: Flight, stored: Stored) -> bool:
        """Answer a Flight from the store. False: the entry does not serve it."""
        if not self._backends.makes(flight.spec.model, stored.build):
            self._metrics.cache("other_build")
            flight.replace_stored()
            return False
        if not replay(flight, stored):
            return False
        self._group.remove(flight)
        self._metrics.flight_landed("hit" if flight.error is None else "failed", flight.spec.model, None)
        return True

    def _dispatch(self, flight: Flight) -> bool:
        """Dispatch a Flight to an engine with capacity. True: it need not be queued."""
        exchange = self._flying.get(flight)
        if exchange is not None:  # it is back for its next attempt
            return exchange.resume()
        if self._lost and flight in self._lost:
            return self._dispatch_lost(flight)
        spec = flight.spec
        if spec.falls_back and not self._backends.serves(spec.model):
            words = "No engine that serves this model is up."
            self._end(flight, GatewayError(Code.NO_BACKEND, words, retry_after=1))
            return True
        try:
            lease = self._backends.acquire(spec.model, affinity=spec.affinity, only=spec.engine)
        except GatewayError as e:
            self._end(flight, e)
            return True
        if lease is None:
            return False
        try:
            if flight.queue_state.merge and self.queue.twin_index and lease.backend.merges:
                flight = self._merger.merge(flight, self.queue.twins(flight), lease.backend.name)
                if isinstance(flight, MergedFlight):
                    self._merge_twins(flight)
            exchange = self._flying[flight] = Exchange(
                flight, lease, self._context, self, flight, self._context.retry.retries
            )
            exchange.begin()
        except Exception as e:  # noqa: BLE001 - the lease is released, and only this flight fails
            self._fault("sending a flight to an engine", e)
            self._fail_all(flight)
            lease.release()
        return True

    def _fail_all(self, flight: Flight) -> None:
        """End a Flight, or a merged one and its members, whose handling raised."""
        if isinstance(flight, MergedFlight):
            for member in flight.members:
                if member is not None:
                    self.abandon(member)
            contained(self._fault, "ending a merged flight", partial(self._merger.finish, flight, internal()))
        self.abandon(flight)

    def _merge_twins(self, merged: MergedFlight) -> None:
        """Its members are dispatched with it: they leave the queue."""
        trace = merged.members[0].trace if merged.members[0] is not None else None
        rest = merged.members[1:]
        contained(
            self._fault,
            "dispatching the members of a merged flight",
            *([partial(trace.carries, merged)] if trace is not None else ()),
            *(partial(self._timers.drop, member) for member in rest if member is not None),
            *(partial(self.queue.grant, member) for member in rest if member is not None),
        )

    # -- at the engine ----------------------------------------------------------------------------

    def arrived(self, exchange: Exchange, error: GatewayError | None) -> None:
        flight = exchange.flight
        try:
            self._flying.pop(flight, None)
            if isinstance(flight, MergedFlight):
                self._finish_merged(flight, error, exchange.lease)
            elif error is None:
                self._landed(exchange)
            else:
                self._end(flight, error)
        except Exception as e:  # noqa: BLE001 - whatever is raised here, the lease is released
            self._fault("an answer's end", e)
            self._fail_all(flight)
        finally:
            try:
                exchange.lease.release()
            except Exception as e:  # noqa: BLE001 - it is released once more
                self._release_again(exchange, e)

    def _release(self, exchange: Exchange) -> None:
        try:
            exchange.lease.release()
        except Exception as e:  # noqa: BLE001 - it is released once more
            self._release_again(exchange, e)

    def _release_again(self, exchange: Exchange, error: Exception) -> None:
        """Releasing a lease raised. Once more: without effect where only telling of it failed."""
        self._fault("releasing a lease", error)
        contained(self._fault, "releasing a lease", exchange.lease.release)

    def requeue(self, exchange: Exchange) -> bool:
        """No engine is free for its next attempt: it waits at the head of the queue."""
        if self._closed:
            return False
        self.queue.requeue(exchange.flight, self._loop.time())
        if exchange.continues:
            self.parked(exchange)
        self._soon()
        return True

    def parked(self, exchange: Exchange) -> None:
        """A stream that is to be continued waits, for an engine or for its place among those."""
        self._bound(exchange.flight)

    def _bound(self, flight: Flight) -> None:
        """Let a stream that is to be continued wait so long and no longer."""
        self._timers.drop(flight)
        self._timers.set(flight, self._loop.time() + LONGEST_WAIT, partial(self._waited, flight))

    def _waited(self, flight: Flight) -> None:
        exchange = self._flying.get(flight)
        if flight.ended or (exchange.lease.held if exchange is not None else flight not in self._lost):
            return
        self.queue.discard(flight)
        error = GatewayError(Code.NO_BACKEND, f"no engine had capacity within {LONGEST_WAIT:g} s")
        if exchange is not None:
            exchange.give_up(error)
        else:
            self._end(flight, error)

    def _tell_exchanges(self, what: Callable[[Exchange], None], backend: Backend) -> None:
        """An engine is down, silent or removed: its exchanges move to another one, or end soon."""
        for exchange in tuple(self._flying.values()):
            if exchange.lease.backend is backend:
                try:
                    what(exchange)
                except Exception as e:  # noqa: BLE001 - the other exchanges are told too
                    self._context.fault("an engine that is down", e)

    def _engine_removed(self, backend: Backend) -> None:
        """Its streams have some time to end there; then they are continued elsewhere."""
        self._timers.set(
            ("removed", backend), self._loop.time() + self._context.hand_over, partial(self._hand_over, backend)
        )

    def _hand_over(self, backend: Backend) -> None:
        """Hand over its streams to engines with room that no request waits for, and look again in a while."""
        if not self._context.resume or not backend.leaving or not backend.inflight:
            return
        if not self.queue.waits:
            self._tell_exchanges(Exchange.hand_over, backend)
        self._timers.set(("removed", backend), self._loop.time() + HAND_OVER, partial(self._hand_over, backend))

    def _finish_merged(self, merged: MergedFlight, error: GatewayError | None, lease: Lease | None = None) -> None:
        """End a merged Flight and its members, but for members whose request an engine refused or did not
        complete: those are queued one by one, as `n` may be what the engine does not support."""
        made = merged.usage.completion_tokens if merged.usage else merged.content_events
        alone, few = self._merger.finish(merged, error)
        if lease is not None and any(member.refused_by for member in alone):
            self._backends.record_too_few_choices(lease)
        elif few and lease is not None:
            self._backends.record_too_few_choices(lease)
            self._metrics.upstream_error(lease.backend.name, Code.UPSTREAM_INCOMPLETE.code)
        for member in alone:
            self._enqueue_again(member, self._loop.time())
            self._soon()
        outcome = _outcome(error) if error is not None else "error" if few or merged.failed else "landed"
        self._metrics.flight_landed(outcome, merged.spec.model, None, made)

    def _member_ended(self, member: Flight) -> None:
        self._group.remove(member)
        if member.phase is Phase.LANDED and member.told_error is None:
            self._on_complete(member)

    def _abort_upstream(self, flight: Flight) -> None:
        """Cancel its generation at the engine, unless that serves other Flights too."""
        merged = self._merger.leave(flight)
        if merged is not None:
            self.queue.discard(merged)  # should it wait for its next attempt
            self._abort_upstream(merged)
            return
        if self.fleet is not None:
            self.fleet.ended(flight)
        exchange = self._flying.pop(flight, None)
        if exchange is not None:
            try:
                exchange.cancel()
            finally:
                self._release(exchange)

    def _landed(self, exchange: Exchange) -> None:
        """The answer is complete: store it. The Flight can be joined until that is settled."""
        flight, ingest = exchange.flight, exchange.ingest
        if flight.queue_state.latest < math.inf and flight.times.dispatched is not None:
            self.queue.estimates.record_answer(
                self._backends.pool_of(flight.spec.model), flight.clock() - flight.times.dispatched
            )
        if flight.refused_by == flight.backend and flight.head is not None and flight.head.status in NOT_DONE:
            self._backends.clear_too_few_choices(
                exchange.lease
            )  # it refuses this request alone too: `n` was not the reason
        broken = ingest is None or ingest.error_frame
        if flight.queue_state.assumed and not broken:
            self._on_complete(flight)
        self._measure(flight, "error" if broken else "landed")
        if broken and flight.backend is not None:
            self._metrics.upstream_error(flight.backend, Code.UPSTREAM_ERROR_FRAME.code)
        key = flight.spec.key
        if flight.shape is None and flight.spec.usage_added and ingest is not None and ingest.clean:
            self._on_unknown_shape(exchange.lease.backend, flight)
        fence = b""
        if self.fleet is not None and flight.spec.mode is _STREAM:  # no other is led: a call less
            fence = self.fleet.landed(flight)
        stored = False
        if self._cache is None or key is None or ingest is None or not ingest.clean or not flight.storable:
            self._group.remove(flight)
        elif flight.size > self._cache.max_entry:
            self._cache.skip()  # before up to 64 MiB are copied
            self._group.remove(flight)
        else:
            replace = flight.mode is _STREAM or flight.replace or flight.spec.fresh
            build = self._backends.build_of(flight.backend, flight.spec.model, flight.times.dispatched)
            if build is None:
                self._cache.skip()
                self._group.remove(flight)
            else:
                stored = self._cache.store(
                    key if flight.mode is _STREAM else key + WHOLE,
                    snapshot(flight, build),
                    partial(self._group.remove, flight),
                    replace=replace,
                    asked=flight.times.created,
                    fence=fence,
                )
        if fence and not stored and self.fleet is not None:
            self.fleet.release(flight, fence)

    # -- other gateways -----------------------------------------------------------------------------

    def look_again(self, flight: Flight) -> None:
        """It was followed at another gateway, and nothing has come: look it up again."""
        if flight.ended:
            return
        try:
            self.queue.offer(flight, self._loop.time(), lookup=True, on_pushed=self._pushed)
        except GatewayError as e:
            self._refuse(flight, e)
        self._soon()

    def go_alone(self, flight: Flight) -> None:
        """It is not followed at another gateway, and nothing has come: an engine is to answer it."""
        if not flight.ended:
            self._enqueue_again(flight, self._loop.time())
            self._soon()

    def follow(self, flight: Flight, claim: bytes, fence: bytes, seconds: float) -> bool:
        """Feed a new Flight with a stream that a gateway of the fleet publishes, and that lasts so many seconds.
        False: none does."""
        if self.fleet is None or self._closed or not self.fleet.follow(flight, claim, fence, seconds):
            return False
        if not flight.ended:
            flight.when_abandoned(self._cancel)
        return True

    def followed(self, flight: Flight, error: GatewayError | None) -> None:
        """A flight that another gateway fed has ended there. With an error it was lost in the middle."""
        if error is None:
            self._group.remove(flight)
            self._measure(flight, "followed")
        elif not self._take_over(flight, error):
            self._end(flight, error)

    def _take_over(self, flight: Flight, error: GatewayError) -> bool:
        """Continue a stream whose gateway was lost at an engine. It takes its turn as a new request of its callers
        does, since no engine of this gateway has served it yet. False: that is not possible."""
        if error.code is not Code.UPSTREAM_TRUNCATED or not (self._context.resume and continuable(flight)):
            return False
        self._lost[flight] = error, self._context.continuations.queued(flight)
        if self.queue.waits or not self._dispatch_lost(flight):
            try:
                self.queue.offer(flight, self._loop.time(), lookup=False, on_pushed=self._pushed)
                self._bound(flight)
                self._soon()
            except GatewayError as e:
                self._end(flight, e)
        return True

    def _dispatch_lost(self, flight: Flight) -> bool:
        """Continue such a stream at an engine with capacity. True: it need not be queued."""
        spec = flight.spec
        try:
            lease = self._backends.acquire(spec.model, affinity=spec.affinity, only=spec.engine)
        except GatewayError as e:
            self._end(flight, e)
            return True
        if lease is None:
            return False
        error = self._forget_lost(flight)
        self._begin(flight, lease, lambda exchange: exchange.take_over(error))
        if not flight.ended:
            self._on_taken_over(flight)
        return True

    def _forget_lost(self, flight: Flight) -> GatewayError:
        """It waits no more. Returns the error that it broke with."""
        error, continuation = self._lost.pop(flight)
        self._context.continuations.give_back(continuation)
        self._timers.drop(flight)
        return error

    def _begin(self, flight: Flight, lease: Lease, begin: Callable[[Exchange], None]) -> None:
        """Give a Flight to an engine. `begin` starts the exchange."""
        try:
            exchange = self._flying[flight] = Exchange(
                flight, lease, self._context, self, flight, self._context.retry.retries
            )
            begin(exchange)
        except Exception as e:  # noqa: BLE001 - the lease is released, and only this flight fails
            self._fault("sending a flight to an engine", e)
            self._fail_all(flight)
            lease.release()

    # -- for the watchdog ------------------------------------------------------------------------

    def strays(self, known: Callable[[Flight], bool] = lambda flight: False) -> Iterator[Stray]:
        """For the watchdog. `known`: whether another component feeds a Flight."""
        if self._turn_due:
            yield Stray("turn", self._turns, self._turn)
        looking = self.queue.in_lookup()
        if looking:
            yield Stray("lookup", looking[0], partial(self._looked_up, looking, [None] * len(looking)))
        yield from stray_places(
            self._backends, (lease for exchange in self._flying.values() for lease in exchange.leases)
        )
        for flight in tuple(self._group.live):
            if flight.ended:
                yield Stray("flight", flight, partial(self._group.remove, flight))
            elif not (
                flight in self._flying
                or flight in self._merger
                or flight in self.queue
                or (self.fleet is not None and flight in self.fleet)
                or known(flight)
            ):
                yield Stray("flight", flight, partial(self.abandon, flight))

    # -- ends -------------------------------------------------------------------------------------

    def _end(self, flight: Flight, error: GatewayError) -> None:
        self._group.remove(flight)
        if self.fleet is not None:
            self.fleet.ended(flight)
        if flight in self._lost:
            error = not_continued(self._forget_lost(flight), error.message)
        if flight in self._flying:  # it waited for its next attempt
            error = self._flying[flight].explains(error)
            self._abort_upstream(flight)
            if isinstance(flight, MergedFlight):
                self._finish_merged(flight, error)
                return
        if not flight.ended:
            try:
                flight.fail(error)
            except Exception as e:  # noqa: BLE001 - its readers are told all the same, below
                self._fault("the end of a flight", e)
            self._measure(flight, _outcome(error))
        if not flight.finished:
            flight.broke(error)

    def _cancel(self, flight: Flight) -> None:
        """The last reader left. In one step it cannot be joined, is not queued, and its engine stops."""
        self._group.remove(flight)
        if flight in self._lost:
            self._forget_lost(flight)
        contained(
            self._fault,
            "an abandoned flight",
            flight.cancel,
            partial(self._timers.drop, flight),
            partial(self.queue.discard, flight),
            partial(self._abort_upstream, flight),
        )
        if not flight.finished:
            flight.broke(internal())
        self._measure(flight, "cancelled")

    def _measure(self, flight: Flight, outcome: str) -> None:
        """Count it. An exception here affects no Flight."""
        try:
            if flight.leader and flight.continued is None:  # its tokens are counted there
                self._metrics.flight_landed(outcome, flight.spec.model, None)
                return
            times, gap = flight.times, None
            events = flight.usage.completion_tokens if flight.usage else flight.content_events
            if times.first is not None and times.last is not None and events > 1 and flight.mode is _STREAM:
                gap = (times.last - times.first) / (events - 1)
            self._metrics.flight_landed(outcome, flight.spec.model, gap, events)
        except Exception as e:  # noqa: BLE001 - an exception here affects no Flight
            self._fault("counting a flight", e)


def _outcome(error: GatewayError) -> str:
    """The outcome of a failed Flight, as it is counted. `error`: the engine called an incomplete answer
    complete."""
    return "error" if error.code is Code.UPSTREAM_INCOMPLETE else "failed"
