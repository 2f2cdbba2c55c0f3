"""From an engine's answer into a Flight: frames, the end of the stream, size limits and timeouts.

One `Ingest` for each attempt; it is the `Receiver` that a connection calls with bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final

import msgspec

from proxy.errors import Code, GatewayError
from proxy.flights.flight import FREE, Flight
from proxy.flights.phase import Phase
from proxy.flights.spec import RATE_LIMITS, Head, Mode
from proxy.telemetry import Fault, raised
from proxy.upstream.http import HOP_BY_HOP, PLACES, KnownHead, engine_at, told
from proxy.wire import (
    DONE,
    FINISH,
    REASONS,
    Framer,
    FrameTemplate,
    Lack,
    Usage,
    asked_of,
    fault_of,
    has_content,
    is_comment,
    is_done,
    is_error,
    lack_of,
    note,
    read_body,
    take_event,
    usage_of,
)
from proxy.wire.http import SECURITY_HEADERS

_NOT_PASSED: Final = HOP_BY_HOP.union(SECURITY_HEADERS, {  # headers that the gateway sets itself
    "x-request-id", "request-id", "x-gateway-cache", "x-gateway-model", "x-gateway-fallback", "age",
    "access-control-allow-credentials", "access-control-allow-headers", "access-control-allow-methods",
    "access-control-allow-origin", "access-control-allow-private-network", "access-control-expose-headers",
    "access-control-max-age",
})  # fmt: skip
_OF_ONE_CLIENT: Final = _NOT_PASSED | {"set-cookie"}  # headers of an error that several clients may get
_OF_ANY_READER: Final = RATE_LIMITS | {
    "content-type", "endpoint-load-metrics", "retry-after", "retry-after-ms", "x-should-retry",
}  # fmt: skip
"""The headers of a successful answer that several clients may read: no others are passed on."""
_OF_LINK: Final = frozenset({",close", ",keep-alive"})
"""Values of `Connection` that name no header. One that it names is of the engine's connection (RFC 9110 7.6.1)."""
_VALUE: Final = itemgetter(1)
_STREAM: Final = Mode.STREAM
_WHOLE: Final = Mode.WHOLE
_RAW: Final = Mode.RAW
_CHOICE: Final = b'"choices":[{'
_ROLE: Final = b'"role"'
_FIRST: Final = b'"choices":[{"index":0,'
_INDEX: Final = b'"index"'
_NO_CHOICE: Final = b'"choices":[],"usage":{'
_PREFILL: Final = Phase.PREFILL
_WITHOUT: Final = frozenset({204, 205, 206})
"""Successes without a body, or with a part of one."""

REFUSAL: Final = 429
"""The least status that may lead to another attempt, or counts against an engine."""
LATE: Final = 0.1  # seconds; a tick that is later than this is postponed
PUT_OFF: Final = 0.02
ABORT: Final = "abort"  # vLLM's finish_reason of a request that it dropped, when it is paused or shut down


class Callbacks(msgspec.Struct, frozen=True):
    """What an `Ingest` calls at the exchange that it belongs to. A struct of msgspec: no Python call makes it."""

    done: Callable[[GatewayError | None], None]
    """Called once, at the end: with None, or the error."""
    head: Callable[[int, list[tuple[str, str]]], bool] | None = None
    """Called with status and headers where the status is REFUSAL or more. True: drop the answer."""
    first: Callable[[], None] | None = None
    """Called at the first token of a stream."""
    vet: Callable[[bytes], bool | None] | None = None
    """Called with the body's bytes until it has decided. True: drop the answer, it is to another request; False:
    it is to this one; None: not decided, the body goes on."""
    breaks: Callable[[GatewayError], bool] | None = None
    """Called where the engine says in its stream that it does not complete it. True: drop the answer, another one
    continues the stream."""


class StreamLimits(msgspec.Struct, frozen=True):
    """Limits of an answer, in seconds (0: none) and bytes."""

    first_token: float = 300.0
    token: float = 60.0
    total: float = 1800.0
    frame: int = 4 * 1024 * 1024
    flight: int = 64 * 1024 * 1024


def _failed_with(fault: str) -> GatewayError:
    """The error for an engine's own, told in its stream."""
    said = fault[:200].strip(" .")
    return GatewayError(
        Code.UPSTREAM_ERROR_FRAME, f"The engine failed in its stream{f': {said}' if said else ''}."
    )


_NOBODY: Final = Callbacks(lambda error: None)
"""Those of an exchange that has ended."""


class Timeouts:
    """The timeouts of all exchanges, by one timer: no timer is set for a token or a request.

    A pause of this process is not an engine's silence: after one the sockets are read before any timeout is
    checked, and the time of the pause does not count."""

    def __init__(
        self,
        limits: StreamLimits,
        loop: asyncio.AbstractEventLoop,
        on_fault: Fault = raised,
        lost: Callable[[float], float] = lambda since: 0.0,
    ) -> None:
        """`lost`: seconds since a moment (by the flights' clock) during which the process was paused."""
        bounds = [limit for limit in (limits.first_token, limits.token, limits.total) if limit > 0]
        # A timeout is noticed late by at most a tenth of the smallest limit, and by at most a second.
        self._every = min(1.0, min(bounds) / 10) if bounds else None
        self.limits = limits
        self._loop = loop
        self._on_fault = on_fault
        self.lost = lost
        self._watched: set[Ingest] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._put_off = False  # the next check, once already

    def __len__(self) -> int:
        return len(self._watched)

    def add(self, ingest: Ingest) -> Callable[[Ingest], None]:
        """Check its times. Returns the function that ends that."""
        self._watched.add(ingest)
        if self._timer is None and self._every is not None:
            self._timer = self._loop.call_later(self._every, self._tick)
        return self._watched.discard

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and self._loop.time() - timer.when() > LATE and not self._put_off:
            self._put_off = True
            # Timers run before sockets are read: first read the bytes that have arrived.
            self._timer = self._loop.call_later(PUT_OFF, self._tick)
            return
        self._put_off = False
        for ingest in tuple(self._watched):
            try:
                ingest.look()
            except Exception as e:  # noqa: BLE001 - one exchange's fault must not stop the others' clocks
                self._on_fault("the clock of an exchange", e)
        if self._watched and self._every is not None:
            self._timer = self._loop.call_later(self._every, self._tick)


class Ingest:
    """Writes one answer into one Flight."""

    __slots__ = (
        "_allowed", "_asked", "_began", "_callbacks", "_ended", "_events", "_forget", "_framer", "_head", "_lack",
        "_last", "_limits", "_timeouts", "_total", "_twins", "_usage",
        "answered", "clean", "done", "error_frame", "flight", "held", "surplus", "vet",
    )  # fmt: skip

    def __init__(
        self,
        flight: Flight,
        timeouts: Timeouts,
        callbacks: Callbacks,
    ) -> None:
        """`timeouts` check its times until it ends, and hold the limits of its size."""
        self.flight = flight
        self.clean = False  # a complete, successful answer: it may be stored
        self.error_frame = False
        self.answered = False  # complete as far as HTTP framing goes
        self.surplus = False  # something came after the end of the answer
        self.vet = callbacks.vet  # None: decided
        self.held = False  # reading is paused for a lagging reader: the silence is ours
        self._callbacks = callbacks
        self.done = False
        self._limits = limits = timeouts.limits
        self._allowed = FREE if limits.flight > FREE else limits.flight  # bytes of the log, until `_more`
        self._timeouts = timeouts
        if flight.mode is _STREAM:
            self._framer = Framer(limits.frame)
            self._twins = FrameTemplate()
        spec = flight.spec
        self._asked = spec.parts  # choices or vectors; 0: not known
        if spec.api_request is not None and not self._asked:
            usual = spec.api_request.endpoint == "chat" and "n" not in spec.api_request.fields
            self._asked = 1 if usual else asked_of(spec.api_request)
        self._ended: dict[int, str] = {}  # choices, and why each has ended
        self._lack: Lack | None = None  # an event that no whole answer has
        self._began = self._last = now = flight.clock()
        self._total = now if flight.times.dispatched is None else flight.times.dispatched  # of all attempts
        self._head: Head | None = None
        self._usage: Usage | None = None  # of a body
        self._events = False  # the answer is a stream of events
        self._forget = timeouts.add(self)

    # -- Receiver ---------------------------------------------------------------------------------

    def head(self, status: int, headers: list[tuple[str, str]], known: KnownHead | None = None) -> None:
        if status >= REFUSAL and self._drops(status, headers):
            return
        flight = self.flight
        if status != 200 and self._no_answer(status):
            return
        self._last = flight.clock()
        shared = flight.spec.many or not flight.private
        key = shared, flight.backend
        made = known.made.get(key) if known is not None else None
        length: int | None = None
        if known is not None and made is not None:
            passed, self._events = made
            if known.framing is None:
                length = int(headers[len(known.before)][1])
        else:  # here and not in a function: once a stream
            chosen = shared and status < 400
            dropped = _OF_ONE_CLIENT if shared else _NOT_PASSED
            engine, named = None, False
            if not chosen and flight.backend is not None:
                engine = engine_at(flight.backend)
                # All values at once: in nearly every answer none names it.
                named = engine.named("\n".join(map(_VALUE, headers)))
            kept = []
            kind = links = ""
            for header in headers:
                name, value = header
                if name == "content-length":
                    length = int(value) if value.isascii() and value.isdigit() else None
                    continue
                if name == "connection":
                    links += f",{value.lower()}"
                    continue
                if name == "content-type":
                    kind = value
                elif name not in _OF_ANY_READER if chosen else name in dropped:
                    continue
                if engine is not None and (name in PLACES or (named and engine.named(value))):
                    rewritten = told(name, value, engine)
                    if rewritten is None:
                        continue
                    header = (name, rewritten)
                kept.append(header)
            if links and links not in _OF_LINK:
                hops = set(links.replace(" ", "").replace("\t", "").split(",")) - {"content-type"}
                kept = [header for header in kept if header[0] not in hops]
            passed, self._events = tuple(kept), kind.lower().startswith("text/event-stream")
            if known is not None:
                known.keep(key, (passed, self._events))
        self._head = Head(status, passed, length)
        if flight.mode is _RAW:
            flight.start(self._head)
            if flight.spec.method == "HEAD":
                self._land()  # its Content-Length is of a body that does not come
        elif flight.mode is _STREAM:
            if status == 200 and self._events:
                flight.begins(self._head)
            else:
                flight.is_whole()  # an error, or an engine that does not stream

    def _no_answer(self, status: int) -> bool:
        """Fail an answer whose status is neither a success with a whole body nor an error: a redirect may not lead
        a client to an engine. False: the status is usable, or the answer is passed through."""
        fits = 400 <= status < 600 or (200 <= status < 300 and status not in _WITHOUT)
        if fits or self.flight.spec.api_request is None:
            return False
        words = f"The engine answered {status}, which is no answer to this request."
        if 300 <= status < 400 and status != 304:
            words += " Name the address that it redirects to as the engine."
        self._fail(GatewayError(Code.UPSTREAM_PROTOCOL, words))
        return True

    def _drops(self, status: int, headers: list[tuple[str, str]]) -> bool:
        """Whether the exchange drops this answer."""
        head = self._callbacks.head
        return head is not None and head(status, headers)

    def body(self, data: bytes, wired: bytes = b"") -> None:
        if self.done:
            return
        if self.vet is not None:
            stale = self.vet(data)
            if stale:
                return
            if stale is False:
                self.vet = None
        flight = self.flight
        now = flight.clock()
        if flight.mode is _STREAM:
            twins = self._twins
            # `data in twins`, here and not in a function: it is nearly every token.
            if data.startswith(twins.front) and data.endswith(twins.back):
                text = data[twins.start : twins.stop]
                if (
                    text and 34 not in text and 10 not in text and 13 not in text and text[-1] != 92
                    and not self._framer.pending
                ):  # fmt: skip
                    self._last = now
                    flight.append_token(data, wired)
                else:
                    self._frames(data, now)
            else:
                self._frames(data, now)
        else:
            if self._events and data[:1] == b":" and b"\ndata" not in data:  # comments are no answer
                flight.append_body(data)
            else:
                self._last = now
                flight.append_body(data, now)
        if flight.size > self._allowed and not self.done:
            self._more()

    def end(self) -> None:
        if self.done:
            return
        self.answered = True
        flight, head = self.flight, self._head
        if flight.mode is _RAW:
            self._land()
        elif flight.mode is _WHOLE and head is not None:
            if head.status == 200 and not self._read_whole():
                return
            self.clean = head.status == 200 and self._lack is None
            if head.length != flight.size:
                head = Head(head.status, head.headers, flight.size)
            flight.land(head, last=self._last, usage=self._usage)
            self._close(None)
        else:
            self._fail(
                GatewayError(Code.UPSTREAM_TRUNCATED, "The engine ended the stream before it was complete.")
            )

    def lost(self, error: GatewayError) -> None:
        self._fail(error)

    def _more(self) -> None:
        """The log has reached its limit."""
        allowed = self.flight.grow(self._limits.flight)
        if isinstance(allowed, GatewayError):
            self._fail(allowed)
        else:
            self._allowed = allowed

    # -- inside -----------------------------------------------------------------------------------

    def _said(self, frames: list[bytes], now: float) -> list[bytes]:
        """Remove comments and events without data, which engines send to keep a connection open. They do not reset
        a timeout; readers get them once there is an answer."""
        said = [frame for frame in frames if not is_comment(frame)]
        if said or self._framer.speaks:
            self._last = now
        if len(said) < len(frames) and self.flight.phase is Phase.STREAMING:
            self.flight.remark(b"".join([frame for frame in frames if is_comment(frame)]))
        return said

    def _frames(self, data: bytes, now: float) -> None:
        try:
            frames = self._framer.feed(data)
        except GatewayError as e:
            self.lost(e)
            return
        for frame in frames:
            if frame[:5] != b"data:":
                frames = self._said(frames, now)
                break
        else:
            if frames or self._framer.speaks:
                self._last = now
        if self.flight.phase is not _PREFILL or not self._spoiled_at_once(frames):
            self._pass_on(frames, now)

    def _pass_on(self, frames: list[bytes], now: float) -> None:
        """Append frames without comments to the flight."""
        flight, twins = self.flight, self._twins
        for frame in frames:
            if twins.front and frame in twins:
                flight.add(frame, same=True)
            elif frame[:7] != b"data: {" and (frame == DONE or is_done(frame)):  # both tests save calls
                self.surplus = frame is not frames[-1] or bool(self._framer.pending)
                self._finish(frame)
                return
            elif self._look_at(frame, now):
                flight.add(frame)
            elif self.done:
                return
        if frames:
            flight.flush()

    def _spoiled_at_once(self, frames: Iterable[bytes]) -> bool:
        """Whether the first frames have an error of the engine's own, as vLLM sends where it fails in prefill, or
        a finish reason that completes nothing, as it sends for requests that it has not begun when it shuts down.
        No byte has gone out, so it may be retried."""
        flight = self.flight
        if flight.spec.api_request is None:
            return False
        ended: dict[int, str] = {}
        for frame in frames:
            if b"[DONE]" in frame and is_done(frame):
                return False  # nothing after it is read
            if frame.find(b"error") >= 0 and flight.untouched and usage_of(frame) is None and is_error(frame):
                fault = fault_of(frame)
                if fault is not None:
                    self._fail(_failed_with(fault))
                return fault is not None
            if not flight.divides and FINISH.search(frame) is not None and not note(frame, ended):
                break
        else:
            return False
        lack = lack_of(ended, self._asked)
        return lack is not None and not lack.few and self._lacks(lack)  # few: the other choices are still to come

    def _finish(self, done: bytes) -> None:
        """[DONE] has come; nothing after it is read. An incomplete answer gets our error in its place, and after
        the engine's own error it is dropped."""
        lack = None
        if not self.error_frame and self.flight.spec.api_request is not None:
            ended = self._ended
            if not (self._asked == 1 == len(ended) and ended.get(0) in REASONS):  # else it lacks nothing
                lack = lack_of(ended, self._asked)
            lack = lack or self._lack
            if lack is not None and self._lacks(lack):
                return
        self.clean = lack is None and not self.error_frame
        if not self.error_frame or self.flight.divides:  # a merged flight ends its parts by it
            self.flight.add(done)
        self._land(self._head)

    def _lacks(self, lack: Lack) -> bool:
        """Fail an incomplete answer. False: it has more than was asked for, or choices are missing, which the
        merged flight requests again."""
        if lack.more or (lack.few and self.flight.divides):
            return False
        self._fail(GatewayError(Code.UPSTREAM_INCOMPLETE, lack.words))
        return True

    def _spoil(self) -> None:
        """The answer cannot become complete: no request joins it any more."""
        if self.flight.on_spoiled is not None:
            self.flight.on_spoiled(self.flight)

    def _look_at(self, frame: bytes, now: float) -> bool:
        """Take the facts of a frame that differs from the one before. False: readers do not get it."""
        flight, twins = self.flight, self._twins
        plain = self._asked == 1 and not self._ended and flight.trace is None and flight.look is None
        if plain:
            reason = twins.known(frame)
            if reason is not None:
                if reason:
                    self._ended[0] = reason
                    twins.forget()  # a later frame of this choice is looked at
                return True
            if twins.learns_known(frame):
                if flight.token(now) and self._callbacks.first is not None:
                    self._callbacks.first()
                return True
        content = has_content(frame)
        lack, ends = None, FINISH.search(frame)
        # Nearly every event is of the one choice that was asked for, or has the usage: it takes no further call.
        usual = self._asked == 1 and not self._ended and _FIRST in frame and frame.count(_INDEX) == 1
        if ends is not None or not (usual or self._lack is not None or _NO_CHOICE in frame):
            lack = take_event(frame, self._ended, self._asked, content=content)
        usage = usage_of(frame)
        failed = usage is None and is_error(frame)
        aborted = lack is not None and ABORT in self._ended.values() and not flight.divides
        if (aborted or failed) and self._breaks(frame, aborted=aborted):
            return False
        if flight.trace is not None:
            flight.trace.frame(frame)
        if flight.look is not None:
            flight.look(frame)
        if content and flight.token(now) and self._callbacks.first is not None:
            self._callbacks.first()
        if lack is not None and not failed and flight.spec.api_request is not None:
            self._lack = self._lack or lack
            self._spoil()
        if usage is not None:
            flight.reports(usage)
        elif failed:
            self.error_frame = True
            flight.tells_error()
            self._spoil()
        elif ends is not None:
            twins.forget()
            reason = self._ended.get(0)
            if plain and lack is None and not content and reason:
                twins.share_event(frame, reason)
        elif content:
            if twins.learn(frame) and plain and usual:
                twins.share_text()
        elif _CHOICE in frame and _ROLE not in frame:
            flight.counts_events(flight.events + 1)  # a token without text, as a special one is
        elif plain and usual:
            twins.share_event(frame, "")
        # An abort is no end that a client should see: the error at the stream's end says what happened.
        return not aborted or flight.spec.api_request is None

    def _breaks(self, frame: bytes, *, aborted: bool) -> bool:
        """The engine does not complete the stream. True: another answer continues it, and this one is dropped."""
        breaks = self._callbacks.breaks
        if breaks is None:
            return False
        if aborted:
            words = f"The engine ended the answer with finish_reason {ABORT!r}."
            error = GatewayError(Code.UPSTREAM_INCOMPLETE, words)
        else:
            fault = fault_of(frame)
            if fault is None:
                return False  # the request's: another engine would say the same
            error = _failed_with(fault)
        self.flight.flush()  # frames before it in the same read
        return breaks(error)

    def _read_whole(self) -> bool:
        """Whether a successful body is a complete answer; takes its usage."""
        flight = self.flight
        api_request = flight.spec.api_request
        if api_request is None:
            return True
        log = flight.log
        try:
            usage, lack = read_body(log[0] if len(log) == 1 else b"".join(log), api_request.endpoint, self._asked)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._fail(
                GatewayError(Code.UPSTREAM_PROTOCOL, "The engine answered 200 with a body that is not JSON.")
            )
            return False
        self._usage = usage
        if lack is None:
            return True
        flight.reports(usage)
        self._lack = lack if lack.more else None
        return not self._lacks(lack)

    def _land(self, head: Head | None = None) -> None:
        if head is not None and self.flight.mode is Mode.STREAM:
            head = Head(head.status, head.headers, None)
        self.flight.land(head, last=self._last, usage=self._usage)
        self._close(None)

    def _fail(self, error: GatewayError) -> None:
        if not self.done:
            self._close(error)

    def _close(self, error: GatewayError | None) -> None:
        on_done = self._callbacks.done
        try:
            if not self.done:
                self.done = True
                self._callbacks, self.vet = _NOBODY, None  # no reference cycle is left
                self._forget(self)
        finally:
            try:
                on_done(error)
            except Exception as e:  # noqa: BLE001 - once more: else the lease would be held
                raised("the end of an exchange", e)
                on_done(error)

    # -- time -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take nothing more, and call nobody."""
        self._callbacks = _NOBODY
        self._close(None)

    @property
    def last(self) -> float:
        """When the last bytes of the answer came or, before the first, when it was requested."""
        return self._last

    def hold(self, held: bool) -> None:
        """Reading is paused for a lagging reader, or resumed: the token timeout begins anew."""
        self.held = held
        self._last = self.flight.clock()

    @property
    def _begun(self) -> bool:
        """Whether the first token has come."""
        return self._head is not None and self.flight.phase is not Phase.PREFILL

    def _deadline(self) -> tuple[float, Code, str]:
        """The next timeout: when, its code, and its message."""
        limits = self._limits
        total = (
            self._total + (limits.total or float("inf")),
            Code.UPSTREAM_TOTAL_TIMEOUT,
            f"The engine did not complete the answer within {limits.total:g} s.",
        )
        if self.held:
            return total
        if not self._begun:
            if self.flight.mode is Mode.WHOLE:
                return total  # one body: its first byte is as late as its last token
            wait = (
                self._began + (limits.first_token or float("inf")),
                Code.UPSTREAM_FIRST_TOKEN_TIMEOUT,
                f"The engine sent no token within {limits.first_token:g} s.",
            )
        else:
            wait = (
                self._last + (limits.token or float("inf")),
                Code.UPSTREAM_TOKEN_TIMEOUT,
                f"The engine sent nothing for {limits.token:g} s.",
            )
        return min(total, wait, key=lambda limit: limit[0])

    def look(self) -> None:
        """Fail the exchange if a timeout has passed."""
        when, code, message = self._deadline()
        now = self.flight.clock()
        if self.done or now < when:
            return
        if code is Code.UPSTREAM_TOTAL_TIMEOUT or now >= when + self._timeouts.lost(max(self._began, self._last)):
            self._fail(GatewayError(code, message))
