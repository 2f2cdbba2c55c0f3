"""The second answer to a request whose stream broke: a Flight without readers, which feeds the broken one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from proxy.errors import GatewayError
from proxy.flights.continuing.comparison import Comparison, Differs
from proxy.flights.flight import Flight, Times
from proxy.flights.phase import Phase
from proxy.flights.sharing import sharing_of
from proxy.flights.spec import FlightSpec, Head, Mode
from proxy.wire import Usage, has_content, is_done

REPLAY: Final = "replay"
"""How a stream was continued, in log, metrics and traces: by sending its request again."""


def continuable(flight: Flight) -> bool:
    """Whether a broken stream may be continued: asking twice gives the same answer, and the log has all that
    readers got. A private flight keeps no log, and the parts of a merged one are sampled."""
    api_request = flight.spec.api_request
    return (
        flight.phase is Phase.STREAMING
        and flight.mode is Mode.STREAM
        and not flight.private
        and not flight.divides
        and api_request is not None
        and sharing_of(api_request, "auto").shared
    )


def not_continued(broke: GatewayError, why: str) -> GatewayError:
    """The error of a stream that broke with one error and is not continued, and why it is not."""
    why = why.rstrip(".")
    reason = "" if why == broke.message.rstrip(".") else f": {why}"
    return GatewayError(broke.code, f"{broke.message} The stream cannot be continued{reason}.")


class Joint(Protocol):
    """Makes what readers get of frames of a second answer; all methods raise Differs where it is not theirs."""

    def feed(self, frame: bytes) -> bytes | None: ...
    def end(self) -> None: ...
    def renew(self) -> None: ...


class Replay(Flight):
    """Takes the second answer in place of the broken Flight, compares it with what readers have, and gives the
    rest to that Flight. At the first difference it calls `on_differs` with the reason, and takes nothing more."""

    __slots__ = ("_comparison", "_flight", "_on_differs", "_on_joined", "_passed")

    def __init__(
        self,
        flight: Flight,
        on_differs: Callable[[str], None],
        *,
        comparison: Joint | None = None,
        spec: FlightSpec | None = None,
        on_joined: Callable[[], bool] | None = None,
    ) -> None:
        """`comparison`: with the log, by default. `spec`: of its request, by default the Flight's. `on_joined` is
        called before the first frame that readers get of it; False: they do not get it."""
        super().__init__(spec or flight.spec, flight.clock, on_spoiled=self._spoiled)
        self.times = Times(dispatched=flight.times.dispatched)  # the time limit is of all attempts together
        self._flight = flight
        self._comparison: Joint = comparison or Comparison(flight.log)
        self._on_differs: Callable[[str], None] | None = on_differs
        self._on_joined = on_joined
        self._passed = False  # the broken flight has frames that its readers were not served

    def close(self) -> None:
        """Take nothing more, and call nobody."""
        self._on_differs = self._on_joined = self.on_spoiled = None  # no reference cycle is left

    def rewind(self) -> None:
        super().rewind()
        self._flight.counts_attempt()

    def dispatched(self, backend: str, throttle: Callable[[bool], None]) -> None:
        self.backend = backend
        self._flight.dispatched(backend, throttle)

    # -- feeding ------------------------------------------------------------------------------------

    def add(self, frame: bytes, *, same: bool = False) -> None:
        if self._on_differs is None:
            return
        if self.phase is not Phase.STREAMING:
            self.enter(Phase.STREAMING)
        try:
            rest = self._rest(frame)
        except Differs as e:
            self._differs(str(e))
            return
        if rest is not None:
            self._flight.add(rest)
            self._passed = True
            self.size = self._flight.size

    def _rest(self, frame: bytes) -> bytes | None:
        if is_done(frame):
            self._comparison.end()
            return frame if self._joins() else None
        rest = self._comparison.feed(frame)
        if rest is not None:
            if not self._joins():
                return None
            flight = self._flight
            if flight.trace is not None:
                flight.trace.frame(rest)
            if flight.look is not None:
                flight.look(rest)
            if has_content(rest):
                flight.token(self.clock())
        return rest

    def _joins(self) -> bool:
        on_joined, self._on_joined = self._on_joined, None
        return on_joined is None or on_joined()

    def append_token(self, frame: bytes, wired: bytes = b"") -> None:
        self.add(frame, same=True)
        self.flush()

    def flush(self) -> None:
        self._comparison.renew()
        if self._passed:
            self._passed = False
            self._flight.flush()

    def remark(self, frames: bytes) -> None:
        self._flight.remark(frames)

    def reports(self, usage: Usage | None, *, estimated: bool = False) -> None:
        self._flight.reports(usage, estimated=estimated)

    def grow(self, most: int) -> int | GatewayError:
        return self._flight.grow(most)

    def land(self, head: Head | None = None, *, last: float | None = None, usage: Usage | None = None) -> None:
        if self._on_differs is None:
            return
        if self.mode is Mode.WHOLE:
            self._differs(f"the status {head.status if head is not None else 200} and is no stream")
            return
        self.enter(Phase.LANDED)
        self.close()
        self._flight.land(last=last, usage=usage)

    # -- inside -------------------------------------------------------------------------------------

    def _spoiled(self, _: Flight) -> None:
        if self._flight.on_spoiled is not None:
            self._flight.on_spoiled(self._flight)

    def _differs(self, why: str) -> None:
        on_differs = self._on_differs
        self.close()
        if on_differs is not None:
            on_differs(why)
