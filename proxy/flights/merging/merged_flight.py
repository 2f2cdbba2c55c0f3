"""The MergedFlight: one request at an engine for several clients' sampled twins, each in a Flight of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Raw

from proxy.errors import Code, GatewayError
from proxy.flights.flight import FREE, Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import FlightSpec, Head, Mode, QueueState
from proxy.telemetry import internal, raised
from proxy.wire import DONE, Part, StreamSplit, Usage, split_body
from proxy.wire.fold import Unfoldable


class MergedFlight(Flight):
    """A Flight without readers: its frames go to its members at once, split by choice.

    A member ends when its own choices have; one whose client leaves drops out, and the others go on. Members whose
    choices did not all come, or did not complete, are left at its end: see `Merger.finish`.
    """

    divides = True

    __slots__ = ("_allowed", "_free", "_ids", "_limit", "_on_member", "_split", "_touched", "broken", "members")

    def __init__(
        self,
        spec: FlightSpec,
        queue_state: QueueState,
        members: Sequence[tuple[Flight, int]],
        *,
        limit: int,
        on_member: Callable[[Flight], None],
        fingerprint: Raw | None = None,
        ids: bool = False,
    ) -> None:
        """`members`: each with how many choices it wants; `limit`: bytes that a member's log may hold;
        `on_member` is called with each that has ended while the merged flight goes on; `ids`: the request asks for
        token ids, which count the tokens of a body's choices."""
        super().__init__(spec, memory=members[0][0].memory, queue_state=queue_state)
        self.members: list[Flight | None] = [member for member, _ in members]
        self._limit = limit
        self._ids = ids
        self._free = min(FREE, limit)
        self._allowed: dict[int, int] = {}  # limits of members' logs that have reached FREE
        self._on_member = on_member
        self._touched: set[int] = set()
        self.broken: GatewayError | None = None  # the answer cannot be split
        parts, first = [], 0
        for member, count in members:
            usage = member.spec.api_request is not None and member.spec.api_request.include_usage
            parts.append(Part(first, count, usage, member.spec.request_id))
            first += count
        self._split = StreamSplit(parts, request_id=spec.request_id, fingerprint=fingerprint)

    @property
    def fingerprint(self) -> Raw | None:
        """The engine's `system_fingerprint`, once it has come."""
        return self._split.fingerprint

    def drop(self, member: Flight) -> bool:
        """A member's client has left. True: it was the last one."""
        self.members = [None if one is member else one for one in self.members]
        return not any(self.members)

    # -- writing ----------------------------------------------------------------------------------

    def add(self, frame: bytes, *, same: bool = False) -> None:
        if same:
            self.content_events += 1
        if self.phase is not Phase.STREAMING:
            self.enter(Phase.STREAMING)
        if self.broken is not None:
            return
        try:
            given = self._split.feed(frame)
        except Unfoldable as e:
            self.broken = _unsplittable(e)
            return
        for n, own, content in given:
            member = self.members[n]
            if member is None:
                continue
            self._touched.add(n)
            try:
                member.add(own)
            except Exception as e:  # noqa: BLE001 - the other members go on
                self._member_broke(n, member, e)
                continue
            if content:
                member.token(self.clock())

    def append_token(self, frame: bytes, wired: bytes = b"") -> None:
        self.add(frame, same=True)
        self.flush()

    def flush(self) -> None:
        touched, self._touched = self._touched, set()
        for n in touched:
            member = self.members[n]
            if member is None or member.ended:
                continue
            if self.head is not None and member.head is not self.head:
                member.begins(self.head)
                member.moves_to(self.backend)
            try:
                if self._split.parts[n].ended:
                    self._land_member(n, member)
                elif (
                    member.size > self._allowed.get(n, self._free) and (error := self._more(n, member)) is not None
                ):
                    self._end_member(n, member, error)
                else:
                    member.flush()
            except Exception as e:  # noqa: BLE001 - the other members go on
                self._member_broke(n, member, e)

    def _more(self, n: int, member: Flight) -> GatewayError | None:
        """A member's log has reached its limit. Returns the error that ends it, where it may not grow."""
        allowed = member.grow(self._limit)
        if isinstance(allowed, GatewayError):
            return allowed
        self._allowed[n] = allowed
        return None

    def finish_members(self) -> None:
        """The answer has ended: land each member whose choices are all complete."""
        if self.mode is Mode.WHOLE:
            self._land_bodies()
        elif self.phase is Phase.STREAMING:
            self.add(DONE)  # an incomplete answer came without it
            self.flush()

    def take_untouched(self) -> list[Flight]:
        """Remove and return the members that have had nothing of the answer: they may be retried."""
        found = [member for member in self.members if member is not None and member.phase is Phase.QUEUED]
        self.members = [None if member in found else member for member in self.members]
        return found

    @property
    def failed(self) -> bool:
        """Whether the engine told an error in the stream, by which all members end."""
        return self._split.failed

    @property
    def lacks_choices(self) -> bool:
        """Whether a member has not ended though the engine reports no error: it does not support `n`."""
        return not self.failed and any(member is not None for member in self.members)

    def fail_members(self, error: GatewayError) -> None:
        for n, member in enumerate(self.members):
            if member is not None:
                try:
                    self._end_member(n, member, error)
                except Exception as e:  # noqa: BLE001 - the other members go on
                    self._member_broke(n, member, e)

    # -- inside -----------------------------------------------------------------------------------

    def _land_bodies(self) -> None:
        head, body = self.head or Head(), b"".join(self.log)
        parts = self._split.parts
        if head.status == 200:
            try:
                bodies = split_body(body, parts, request_id=self.spec.request_id, ids=self._ids)
            except Unfoldable as e:
                self.broken = _unsplittable(e)
                return
        else:
            bodies = [(body, Usage())] * len(parts)
        for n, member in enumerate(self.members):
            found = bodies[n]
            if member is None or found is None:
                continue
            own, usage = found
            member.reports(usage if head.status == 200 else None, estimated=parts[n].estimated)
            member.moves_to(self.backend)
            member.is_whole()
            now = self.clock()
            try:
                member.append_body(own, now)
                self.members[n] = None
                member.land(Head(head.status, head.headers, len(own)), last=now)
                self._on_member(member)
            except Exception as e:  # noqa: BLE001 - the other members go on
                self._member_broke(n, member, e)

    def _member_broke(self, n: int, member: Flight, error: Exception) -> None:
        raised("a member's part of an answer", error)
        self.members[n] = None
        if not member.finished:
            member.broke(internal())
        try:
            self._on_member(member)
        except Exception as e:  # noqa: BLE001 - it has ended; the next member is still to be served
            raised("a member that has ended", e)

    def _land_member(self, n: int, member: Flight) -> None:
        self.members[n] = None
        part = self._split.parts[n]
        member.reports(self._split.usage_of(n), estimated=part.estimated)
        if self.failed and not part.whole:
            member.tells_error()
        member.land(self.head, last=self.clock())
        self._on_member(member)

    def _end_member(self, n: int, member: Flight, error: GatewayError) -> None:
        self.members[n] = None
        member.moves_to(self.backend)
        member.fail(error)
        self._on_member(member)


def _unsplittable(error: Unfoldable) -> GatewayError:
    return GatewayError(Code.UPSTREAM_PROTOCOL, f"The answer cannot be split into its choices: {error}.")
