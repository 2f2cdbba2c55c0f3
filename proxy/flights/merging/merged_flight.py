"""Owns the Carrier: one request at an engine that carries several clients' sampled twins, each in its own Flight.
Must not know the queue, leases or which requests are twins.
Called by the scheduler (made, landed, failed, left) and, as the Flight that it is, by its feeder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Raw

from proxy.errors import Code, GatewayError
from proxy.flights.flight import FREE, Flight
from proxy.flights.phase import Phase
from proxy.flights.plan import Head, Mode, Plan
from proxy.telemetry import internal, raised
from proxy.wire import DONE, Part, StreamSplit, Usage, split_body
from proxy.wire.fold import Unfoldable


class MergedFlight(Flight):
    """A Flight without readers: what it is fed goes to its riders at once, taken apart by choice.

    A rider ends when its own choices have; one whose client leaves drops out, and the others go on. Riders whose
    choices did not all come, or did not end well, are left at its end: see the merger.
    """

    divides = True

    __slots__ = ("_allowed", "_free", "_ids", "_limit", "_on_rider", "_split", "_touched", "broken", "riders")

    def __init__(
        self,
        plan: Plan,
        riders: Sequence[tuple[Flight, int]],
        *,
        limit: int,
        on_rider: Callable[[Flight], None],
        fingerprint: Raw | None = None,
        ids: bool = False,
    ) -> None:
        """`riders`: each with how many choices it wants; `limit`: bytes that a rider's log may hold; `on_rider` is
        told of each that has ended while the carrier still flies; `ids`: the engine is asked for token ids, which
        count the tokens of a body's choices."""
        super().__init__(plan, memory=riders[0][0].memory)
        self.riders: list[Flight | None] = [rider for rider, _ in riders]
        self._limit = limit
        self._ids = ids
        self._free = min(FREE, limit)
        self._allowed: dict[int, int] = {}  # bytes of riders' logs that have passed what is free
        self._on_rider = on_rider
        self._touched: set[int] = set()
        self.broken: GatewayError | None = None  # what came cannot be told apart
        parts, first = [], 0
        for rider, count in riders:
            usage = rider.plan.ask is not None and rider.plan.ask.include_usage
            parts.append(Part(first, count, usage, rider.plan.request_id))
            first += count
        self._split = StreamSplit(parts, request_id=plan.request_id, fingerprint=fingerprint)

    @property
    def fingerprint(self) -> Raw | None:
        """The engine's, once it has told it."""
        return self._split.fingerprint

    def drop(self, rider: Flight) -> bool:
        """Its client has left. True: it was the last one."""
        self.riders = [None if one is rider else one for one in self.riders]
        return not any(self.riders)

    # -- fed --------------------------------------------------------------------------------------

    def add(self, frame: bytes, *, same: bool = False) -> None:
        if self.phase is not Phase.STREAMING:
            self.enter(Phase.STREAMING)
        if self.broken is not None:
            return
        try:
            given = self._split.feed(frame)
        except Unfoldable as e:
            self.broken = GatewayError(Code.UPSTREAM_PROTOCOL, f"The engine sent what cannot be told apart: {e}.")
            return
        for n, own, content in given:
            rider = self.riders[n]
            if rider is None:
                continue
            self._touched.add(n)
            try:
                rider.add(own)
            except Exception as e:  # noqa: BLE001 - one rider's part must not end the others'
                self._rider_broke(n, rider, e)
                continue
            if content:
                rider.content_events += 1
                if rider.times.first is None:
                    rider.times.first = self.clock()

    def push(self, frame: bytes) -> None:
        self.add(frame)
        self.flush()

    def flush(self) -> None:
        touched, self._touched = self._touched, set()
        for n in touched:
            rider = self.riders[n]
            if rider is None or rider.ended:
                continue
            rider.head, rider.backend = self.head, self.backend
            try:
                if self._split.parts[n].ended:
                    self._land_rider(n, rider)
                elif rider.size > self._allowed.get(n, self._free) and (error := self._more(n, rider)) is not None:
                    self._end_rider(n, rider, error)
                else:
                    rider.flush()
            except Exception as e:  # noqa: BLE001 - as above
                self._rider_broke(n, rider, e)

    def _more(self, n: int, rider: Flight) -> GatewayError | None:
        """A rider's log needs room for more. The error that ends it where there is none."""
        allowed = rider.grow(self._limit)
        if isinstance(allowed, GatewayError):
            return allowed
        self._allowed[n] = allowed
        return None

    def land_riders(self) -> None:
        """No more comes: land each rider whose choices are all there and whole."""
        if self.mode is Mode.WHOLE:
            self._land_bodies()
        elif self.phase is Phase.STREAMING:
            self.add(DONE)  # which the engine's answer did not get, being not whole
            self.flush()

    def untouched_riders(self) -> list[Flight]:
        """Those that have had nothing of the answer: they may be asked for again. They are no riders any more."""
        found = [rider for rider in self.riders if rider is not None and rider.phase is Phase.QUEUED]
        self.riders = [None if rider in found else rider for rider in self.riders]
        return found

    @property
    def few(self) -> bool:
        """Whether a rider has not ended though the engine reports no error: it does not do `n`."""
        return not self._split.failed and any(rider is not None for rider in self.riders)

    def fail_riders(self, error: GatewayError) -> None:
        for n, rider in enumerate(self.riders):
            if rider is not None:
                try:
                    self._end_rider(n, rider, error)
                except Exception as e:  # noqa: BLE001 - as above
                    self._rider_broke(n, rider, e)

    # -- inside -----------------------------------------------------------------------------------

    def _land_bodies(self) -> None:
        head, body = self.head or Head(), b"".join(self.log)
        parts = self._split.parts
        if head.status == 200:
            try:
                bodies = split_body(body, parts, request_id=self.plan.request_id, ids=self._ids)
            except Unfoldable as e:
                self.broken = GatewayError(Code.UPSTREAM_PROTOCOL, f"The engine sent what has no parts: {e}.")
                return
        else:
            bodies = [(body, Usage())] * len(parts)
        for n, rider in enumerate(self.riders):
            found = bodies[n]
            if rider is None or found is None:
                continue
            own, usage = found
            rider.usage, rider.estimated = usage if head.status == 200 else None, parts[n].estimated
            rider.backend, rider.mode = self.backend, Mode.WHOLE
            rider.times.first = rider.times.last = self.clock()
            try:
                rider.piece(own)
                self.riders[n] = None
                rider.land(Head(head.status, head.headers, len(own)))
                self._on_rider(rider)
            except Exception as e:  # noqa: BLE001 - as above
                self._rider_broke(n, rider, e)

    def _rider_broke(self, n: int, rider: Flight, error: Exception) -> None:
        raised("a rider's part of an answer", error)
        self.riders[n] = None
        if not rider.finished:
            rider.broke(internal())
        try:
            self._on_rider(rider)
        except Exception as e:  # noqa: BLE001 - it has ended; the next rider is still to be served
            raised("a rider that has ended", e)

    def _land_rider(self, n: int, rider: Flight) -> None:
        self.riders[n] = None
        rider.usage, rider.estimated = self._split.usage_of(n), self._split.parts[n].estimated
        rider.times.last = self.clock()
        rider.land(self.head)
        self._on_rider(rider)

    def _end_rider(self, n: int, rider: Flight, error: GatewayError) -> None:
        self.riders[n] = None
        rider.backend = self.backend
        rider.fail(error)
        self._on_rider(rider)
