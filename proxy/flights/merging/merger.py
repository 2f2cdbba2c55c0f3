"""Owns the merging of sampled twins that wait together: who rides with whom, and who still does.
Must not know leases, connections or the store.
Called by the scheduler, when a Flight gets its place and when one ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from msgspec import Raw

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.merging.merged_flight import MergedFlight
from proxy.flights.merging.twins import RecentPrompts, choices_asked, lists_ids, mergeable, merged_body, twin_key
from proxy.flights.phase import Phase
from proxy.flights.plan import REQUEST_ID, Mode, headers_in_common, new_id

NOT_DONE: Final = frozenset({400, 422})
"""How an engine refuses what it does not do: `n` may be what it did not like."""
_MAX_ENGINES: Final = 256


class Merger:
    """Finds twins among what waits and sends them up as one request. None waits longer for that than its turn of
    the loop, or `window` seconds where that is set."""

    def __init__(self, most: int, *, limit: int, window: float, on_rider: Callable[[Flight], None]) -> None:
        self.window = window
        self._most = most  # choices of one request
        self._limit = limit
        self._on_rider = on_rider
        self._recent = RecentPrompts()
        self._carried: dict[Flight, MergedFlight] = {}
        self._fingerprints: dict[str, Raw] = {}

    def __len__(self) -> int:
        return len(self._carried)

    def __contains__(self, rider: Flight) -> bool:
        return rider in self._carried

    def __repr__(self) -> str:
        return f"<Merger {len(self._carried)} riders>"

    def expects(self, flight: Flight, now: float) -> bool:
        """Whether twins of it may come in this turn: one was here a moment ago, or the setting says to wait."""
        ask = flight.plan.ask
        if self._most < 2 or ask is None:
            return False
        return (self._recent.seen(ask.prompt, now) or self.window > 0) and mergeable(ask)

    def merge(self, flight: Flight, waiting: Iterable[Flight], backend: str) -> Flight:
        """The Flight that goes up: a carrier with all its twins aboard, or the Flight itself where it has none.
        `waiting`: those of the same prompt that may merge, see `twin_of`."""
        riders = self._riders(flight, waiting)
        ask = flight.plan.ask
        if len(riders) < 2 or ask is None:
            return flight
        count = sum(count for _, count in riders)
        body = merged_body(ask, count)
        request_id = new_id()  # one client's is in the answer's id, which all of them see
        headers = [(name, request_id if name == REQUEST_ID else value) for name, value in flight.plan.headers]
        carrier = MergedFlight(
            replace(
                flight.plan, body=body, merge=False, many=True, request_id=request_id, headers=headers, parts=count
            ),
            riders,
            limit=self._limit,
            on_rider=self._left,
            fingerprint=self._fingerprints.get(backend),
            ids=lists_ids(ask, count),
        )
        now = carrier.clock()
        for rider, _ in riders:
            rider.plan.carried_as = request_id
            rider.times.dispatched = now
            rider.backend = backend
            for reader in rider.subscribers:
                reader.verdict = "merged"
        self._carried.update((rider, carrier) for rider, _ in riders)  # last: from here on they wait for it
        return carrier

    def leave(self, rider: Flight) -> MergedFlight | None:
        """A client has left. The carrier, where that was its last one: nobody wants the answer any more."""
        carrier = self._carried.pop(rider, None)
        if carrier is None or not carrier.drop(rider):
            return None
        carrier.cancel()
        return carrier

    def unload(self, carrier: MergedFlight, error: GatewayError | None) -> tuple[Sequence[Flight], bool]:
        """End every rider that has not ended. Given back, to be asked for one by one, are those that the engine
        refused together, and those whose choices it did not complete and that have had nothing of them. True: it
        did not answer the choices that it was asked for, so it should be asked for one by one from now on."""
        if carrier.fingerprint is not None and carrier.backend is not None:
            if len(self._fingerprints) >= _MAX_ENGINES:
                self._fingerprints.clear()
            self._fingerprints[carrier.backend] = carrier.fingerprint
        alone: Sequence[Flight]
        refused = carrier.head is not None and 400 <= carrier.head.status < 500 and carrier.mode is Mode.WHOLE
        if error is None and refused:
            alone = self._alone(carrier)
            if carrier.head is not None and carrier.head.status in NOT_DONE:
                for rider in alone:
                    rider.plan.refused_by = carrier.backend or ""
            return alone, False
        began = carrier.phase is Phase.STREAMING
        partial = error is None or error.code is Code.UPSTREAM_INCOMPLETE
        if partial:
            carrier.land_riders()
        few = error is None and carrier.few
        alone = ()
        if partial or (began and error is not None and error.code is Code.UPSTREAM_TRUNCATED):
            alone = self._alone(carrier)
        if error is not None:
            carrier.fail(error)
        lost = GatewayError(Code.UPSTREAM_TRUNCATED, "The engine ended before its last choice.")
        carrier.fail_riders(carrier.broken or error or lost)
        return alone, few

    # -- inside -----------------------------------------------------------------------------------

    def _alone(self, carrier: MergedFlight) -> Sequence[Flight]:
        riders = carrier.untouched_riders()
        for rider in riders:
            self._carried.pop(rider, None)
            rider.plan.merge, rider.plan.carried_as = False, ""
            for reader in rider.subscribers:
                reader.verdict = "bypass"
        return riders

    def _left(self, rider: Flight) -> None:
        self._carried.pop(rider, None)
        self._on_rider(rider)

    def _riders(self, flight: Flight, waiting: Iterable[Flight]) -> list[tuple[Flight, int]]:
        ask = flight.plan.ask
        if self._most < 2 or ask is None or not mergeable(ask):
            return []
        room = self._most - (choices_asked(ask) or 1)
        key = _key(flight)
        riders = [(flight, choices_asked(ask) or 1)]
        for other in waiting:
            theirs = other.plan.ask
            if other is flight or theirs is None or other in self._carried:
                continue
            if not mergeable(theirs) or _key(other) != key:
                continue
            count = choices_asked(theirs) or 1
            if count <= room:
                room -= count
                riders.append((other, count))
        return riders


def _key(flight: Flight) -> bytes:
    plan = flight.plan
    if plan.ask is None:
        return b""
    return twin_key(plan.ask, tenant=plan.tenant, headers=headers_in_common(plan.headers))
