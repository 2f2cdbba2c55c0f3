"""The merging of queued sampled twins: which Flights go together, and which are still members."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from msgspec import Raw
from msgspec.structs import replace

from proxy.errors import Code, GatewayError
from proxy.flights.flight import Flight
from proxy.flights.merging.merged_flight import MergedFlight
from proxy.flights.merging.twins import RecentPrompts, choices_asked, lists_ids, mergeable, merged_body, twin_key
from proxy.flights.phase import Phase
from proxy.flights.spec import REQUEST_ID, Mode, headers_in_common, new_id
from proxy.wire import PROMPT_FIELD

NOT_DONE: Final = frozenset({400, 422})
"""Statuses by which an engine refuses what it does not support: it may be `n`."""
_MAX_ENGINES: Final = 256


class Merger:
    """Finds twins in the queue and makes one request of them. No request is delayed for that beyond its event loop
    iteration, or `window` seconds where that is set."""

    def __init__(self, most: int, *, limit: int, window: float, on_member: Callable[[Flight], None]) -> None:
        self.window = window
        self._most = most  # choices of one request
        self._limit = limit
        self._on_member = on_member
        self._recent = RecentPrompts()
        self._carried: dict[Flight, MergedFlight] = {}
        self._fingerprints: dict[str, Raw] = {}

    def __len__(self) -> int:
        return len(self._carried)

    def __contains__(self, member: Flight) -> bool:
        return member in self._carried

    def __repr__(self) -> str:
        return f"<Merger {len(self._carried)} members>"

    def may_have_twins(self, flight: Flight, now: float) -> bool:
        """Whether twins may arrive in this iteration: one came within a second, or `window` is set."""
        api_request = flight.spec.api_request
        if self._most < 2 or api_request is None:
            return False
        # `api_request.prompt`, without its call: this is once a request.
        prompt = bytes(api_request.fields.get(PROMPT_FIELD[api_request.endpoint], b"null"))
        return (self._recent.seen(prompt, now) or self.window > 0) and mergeable(api_request)

    def merge(self, flight: Flight, waiting: Iterable[Flight], backend: str) -> Flight:
        """The Flight to dispatch: a merged one with all its twins, or the Flight itself where it has none.
        `waiting`: queued Flights with the same prompt that may merge, see `twin_of`."""
        members = self._members(flight, waiting)
        api_request = flight.spec.api_request
        if len(members) < 2 or api_request is None:
            return flight
        count = sum(count for _, count in members)
        body = merged_body(api_request, count)
        request_id = new_id()  # not a client's own: the answer's id contains it, which all members see
        headers = [(name, request_id if name == REQUEST_ID else value) for name, value in flight.spec.headers]
        merged = MergedFlight(
            replace(flight.spec, body=body, many=True, request_id=request_id, headers=headers, parts=count),
            replace(flight.queue_state, merge=False),
            members,
            limit=self._limit,
            on_member=self._member_ended,
            fingerprint=self._fingerprints.get(backend),
            ids=lists_ids(api_request, count),
        )
        now = merged.clock()
        flights = [member for member, _ in members]
        for member in flights:
            member.joins(request_id, backend, now)
        self._carried |= dict.fromkeys(flights, merged)  # last, and all of them or none: now they are its members
        return merged

    def leave(self, member: Flight) -> MergedFlight | None:
        """A member's client has left. Returns the merged Flight, cancelled, where that was its last member."""
        merged = self._carried.pop(member, None)
        if merged is None or not merged.drop(member):
            return None
        merged.cancel()
        return merged

    def finish(self, merged: MergedFlight, error: GatewayError | None) -> tuple[Sequence[Flight], bool]:
        """End every member that has not ended. Returns the members to be requested one by one: those that the
        engine refused together, and those without a byte whose choices it did not complete. True: it did not
        answer all choices, so it is sent one at a time from now on."""
        if merged.fingerprint is not None and merged.backend is not None:
            if len(self._fingerprints) >= _MAX_ENGINES:
                self._fingerprints.clear()
            self._fingerprints[merged.backend] = merged.fingerprint
        alone: Sequence[Flight]
        refused = merged.head is not None and 400 <= merged.head.status < 500 and merged.mode is Mode.WHOLE
        if error is None and refused:
            not_done = merged.head is not None and merged.head.status in NOT_DONE
            return self._alone(merged, (merged.backend or "") if not_done else ""), False
        began = merged.phase is Phase.STREAMING
        partial = error is None or error.code is Code.UPSTREAM_INCOMPLETE
        if partial:
            merged.finish_members()
        few = error is None and merged.lacks_choices
        alone = ()
        if partial or (began and error is not None and error.code is Code.UPSTREAM_TRUNCATED):
            alone = self._alone(merged)
        if error is not None and not merged.ended:  # else its last member has left already
            merged.fail(error)
        lost = GatewayError(Code.UPSTREAM_TRUNCATED, "The engine ended before the last choice was complete.")
        merged.fail_members(merged.broken or error or lost)
        return alone, few

    # -- inside -----------------------------------------------------------------------------------

    def _alone(self, merged: MergedFlight, refused_by: str = "") -> Sequence[Flight]:
        members = merged.take_untouched()
        for member in members:
            self._carried.pop(member, None)
            member.goes_alone(refused_by)
        return members

    def _member_ended(self, member: Flight) -> None:
        self._carried.pop(member, None)
        self._on_member(member)

    def _members(self, flight: Flight, waiting: Iterable[Flight]) -> list[tuple[Flight, int]]:
        api_request = flight.spec.api_request
        if self._most < 2 or api_request is None or not mergeable(api_request):
            return []
        room = self._most - (choices_asked(api_request) or 1)
        key = _key(flight)
        members = [(flight, choices_asked(api_request) or 1)]
        for other in waiting:
            theirs = other.spec.api_request
            if other is flight or theirs is None or other in self._carried:
                continue
            if not mergeable(theirs) or _key(other) != key:
                continue
            count = choices_asked(theirs) or 1
            if count <= room:
                room -= count
                members.append((other, count))
        return members


def _key(flight: Flight) -> bytes:
    spec = flight.spec
    if spec.api_request is None:
        return b""
    return twin_key(spec.api_request, tenant=spec.tenant, headers=headers_in_common(spec.headers))
